"""The results among a run's metrics: what they are called, and the tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from .kinds import RUN_KINDS, Result
from .kinds.detection import find_class
from .recorded import peak_memory
from .runs import RunFolder


@dataclass
class Cell:
    """A cell of a table: its text, a remark below it, and whether it is its column's best."""

    text: str
    remark: str = ""
    best: bool = False


@dataclass
class Figures:
    """A table of figures: the heads of its columns, and a row by each run's index."""

    columns: list[Cell]
    rows: dict[int, list[Cell]] = field(default_factory=dict)


def find_metric(key: str) -> Result | None:
    """The result that a key of metrics.json stands for, if it does."""
    found = (kind.find_result(key) for kind in RUN_KINDS)
    return next((result for result in found if result), None)


def find_metrics(runs: Sequence[RunFolder]) -> list[Result]:
    """The results that any of the runs has: of detectors AP, AP50, AP75; of GANs FID, IS first."""
    keys = dict.fromkeys(key for run in runs for key in run.series)
    found = [metric for metric in map(find_metric, keys) if metric]
    return sorted(found, key=lambda result: result.rank)


def final_figures(runs: Sequence[RunFolder]) -> Figures:
    """The results of each run's last evaluation; before them IS and FID, each at its peak.

    Where several runs have a value, the best of a column is marked.
    """
    metrics = find_metrics(runs)
    columns = [(metric, True) for metric in metrics if metric.peak]
    columns += [(metric, False) for metric in metrics]
    heads = [Cell("evaluated at")] * bool(columns)
    for m, peak in columns:
        heads.append(Cell(m.label + (", peak" if peak else ", last" if m.peak else ""), m.remark))
    figures = Figures(heads, {run.index: [] for run in runs})
    last = {run.index: last_evaluation(run) for run in runs}
    for run in runs if columns else []:
        step = last[run.index]
        figures.rows[run.index].append(Cell("–" if step is None else f"{run.unit} {step:g}"))
    for metric, peak in columns:
        good: dict[int, float] = {}
        for run in runs:
            value, remark = run.series.get(metric.key, {}).get(last[run.index]), ""
            if peak and (found := run.finite(metric.key)):
                step = max(found, key=lambda s: metric.sign * found[s])
                value, remark = found[step], f"{run.unit} {step:g}"
            figures.rows[run.index].append(Cell(metric.format(value), remark))
            if value is not None and math.isfinite(value):
                good[run.index] = metric.sign * value
        if len(good) > 1:
            for index, value in good.items():
                figures.rows[index][-1].best = value == max(good.values())
    return figures


def last_evaluation(run: RunFolder) -> float | None:
    """The step of the last one, whose results belong together: a worse one may have fewer."""
    keys = (key for key in run.series if find_metric(key) or find_class(key))
    return max((step for key in keys for step in run.series[key]), default=None)


def per_class(runs: Sequence[RunFolder]) -> dict[str, dict[str, dict[int, float]]]:
    """AP of each class at the last evaluation: title of the table -> class -> run index -> AP."""
    tables: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        last = last_evaluation(run)
        for key, values in run.series.items():
            if (found := find_class(key)) and last in values:
                title, name = found
                tables.setdefault(title, {}).setdefault(name, {})[run.index] = values[last]
    return tables


def speed(runs: Sequence[RunFolder]) -> Figures | None:
    """Seconds per step (medians), and memory, where it was recorded; None if nothing was."""
    titles = ["seconds per step", "images per second", "whole run (min)", "GPU memory (MiB)"]
    rows = {}
    for run in runs:
        seconds = _median(run, "time", "seconds")
        whole = _seconds(run.job.get("seconds"))
        memory = peak_memory(run.folder)
        rows[run.index] = [
            "–" if seconds is None else f"{seconds:.3g}",
            "–" if (x := _median(run, "images_per_second")) is None else f"{x:.3g}",
            "–" if whole is None else f"{whole / 60:.1f}",
            "–" if memory is None else f"{memory:.0f}",
        ]
    kept = [i for i in range(len(titles)) if any(row[i] != "–" for row in rows.values())]
    if not kept:
        return None
    cells = {index: [Cell(row[i]) for i in kept] for index, row in rows.items()}
    return Figures([Cell(titles[i]) for i in kept], cells)


def _median(run: RunFolder, *keys: str) -> float | None:
    values = [value for key in keys for value in run.finite(key).values()]
    return median(values) if values else None


def _seconds(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
