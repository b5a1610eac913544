"""The tables of the results among the runs' metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from .kinds import Result
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


def find_results(runs: Sequence[RunFolder]) -> list[Result]:
    """The results that any of these runs of one kind has, in the order of the kind."""
    keys = dict.fromkeys(key for run in runs for key in run.series)
    found = [result for result in map(runs[0].kind.find_result, keys) if result]
    return sorted(found, key=lambda result: result.rank)


def final_figures(runs: Sequence[RunFolder]) -> Figures:
    """The results of each run's last evaluation, after those that are reported at their peak.

    The best value of a column is marked if several runs have a value there.
    """
    found = find_results(runs)
    columns = [(result, True) for result in found if result.peak]
    columns += [(result, False) for result in found]
    heads = [Cell("evaluated at")] * bool(columns)
    for result, peak in columns:
        which = ", peak" if peak else ", last" if result.peak else ""
        heads.append(Cell(result.label + which, result.remark))
    figures = Figures(heads, {run.index: [] for run in runs})
    last = {run.index: last_evaluation(run) for run in runs}
    for run in runs if columns else []:
        step = last[run.index]
        figures.rows[run.index].append(Cell("–" if step is None else f"{run.unit} {step:g}"))
    for result, peak in columns:
        good: dict[int, float] = {}
        for run in runs:
            value, remark = run.series.get(result.key, {}).get(last[run.index]), ""
            if peak and (step := peak_step(run, result)) is not None:
                value, remark = run.series[result.key][step], f"{run.unit} {step:g}"
            figures.rows[run.index].append(Cell(result.format(value), remark))
            if value is not None and math.isfinite(value):
                good[run.index] = result.sign * value
        if len(good) > 1 and result.sign:
            for index, value in good.items():
                figures.rows[index][-1].best = value == max(good.values())
    return figures


def peak_step(run: RunFolder, result: Result) -> float | None:
    """The step at which a result is best, None if the run has no finite value of it."""
    values = run.finite(result.key)
    return max(values, key=lambda step: result.sign * values[step], default=None)


def last_evaluation(run: RunFolder) -> float | None:
    """The step of a run's last evaluation, None if there was none.

    All results that are shown together are of this step, though an evaluation of a poor model may
    give fewer results than one before it.
    """
    kind = run.kind
    keys = (key for key in run.series if kind.find_result(key) or kind.find_class(key))
    return max((step for key in keys for step in run.series[key]), default=None)


def per_class(runs: Sequence[RunFolder]) -> dict[str, dict[str, dict[int, float]]]:
    """The results of each class: by title of the table, class and index of the run."""
    tables: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        last = last_evaluation(run)
        for key, values in run.series.items():
            if (found := run.kind.find_class(key)) and last in values:
                title, name = found
                tables.setdefault(title, {}).setdefault(name, {})[run.index] = values[last]
    return tables


def speed(runs: Sequence[RunFolder]) -> Figures | None:
    """The speed of the runs as medians, and their memory; None if they recorded neither."""
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
