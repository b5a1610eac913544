"""The results among a run's metrics: what they are called, and the tables of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from .recorded import peak_memory
from .runs import RunFolder

# Detectron2's "bbox/AP50"; with several test sets "digits_val/bbox/AP50".
DETECTION = re.compile(
    r"(?:(.+)/)?(bbox|segm|keypoints|sem_seg|panoptic_seg)/(AP(?:50|75)?|mIoU|PQ)"
)
CLASS = re.compile(r"(?:(.+)/)?(bbox|segm|keypoints)/AP-(.+)", re.DOTALL)
# evonorm_gan.evaluation.metrics.metric_key: "FID", or "FID-digits (not comparable with Inception)".
GAN = re.compile(r"(FID|IS|KID|precision|recall)(-\S+)?( \(.*\))?")
TASKS = {
    "bbox": "box ",
    "segm": "mask ",
    "keypoints": "keypoint ",
    "sem_seg": "",
    "panoptic_seg": "",
}
# Their sign (1: the higher the better) and digits.
GAN_METRICS = {"FID": (-1, 2), "IS": (1, 2), "KID": (-1, 4), "precision": (1, 3), "recall": (1, 3)}
CLASSIFIER = {
    "accuracy": ("accuracy", "%", 1, 2),
    "train_accuracy": ("accuracy in training", "%", 1, 2),
    "val_loss": ("validation loss", "", -1, 4),
}


@dataclass(frozen=True)
class Result:
    """A result: its key in metrics.json, and how it is shown.

    Attributes:
        sign: 1 if higher is better, -1 if lower is.
        remark: what a stand-in's key says of it, such as "(not comparable with Inception)"; goes
            with the title wherever that is shown.
    """

    key: str
    title: str
    unit: str
    sign: int
    digits: int
    remark: str = ""

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def format(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "not finite"

    @property
    def peak(self) -> bool:
        """Whether the paper reports it at its peak (section 5.5)."""
        return self.key.startswith(("FID", "IS"))


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
    if found := DETECTION.fullmatch(key):
        where = f", {found[1]}" if found[1] else ""
        return Result(key, f"{TASKS[found[2]]}{found[3]}{where}", "%", 1, 1)
    if found := GAN.fullmatch(key):
        sign, digits = GAN_METRICS[found[1]]
        title = found[1] + (found[2] or "")
        return Result(key, title, "", sign, digits, (found[3] or "").strip())
    if key in CLASSIFIER:
        return Result(key, *CLASSIFIER[key])
    return None


def find_metrics(runs: Sequence[RunFolder]) -> list[Result]:
    """The results that any of the runs has: of detectors AP, AP50, AP75; of GANs FID, IS first."""
    keys = dict.fromkeys(key for run in runs for key in run.series)
    found = [metric for metric in map(find_metric, keys) if metric]
    return sorted(found, key=_rank)


def _rank(metric: Result) -> tuple[str, int, str]:
    if found := DETECTION.fullmatch(metric.key):
        return found[1] or "", list(TASKS).index(found[2]), found[3]
    name = re.split("[- ]", metric.key)[0]
    order = [*GAN_METRICS, *CLASSIFIER]
    return metric.key[len(name) :], order.index(name), ""


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
    keys = (key for key in run.series if find_metric(key) or CLASS.fullmatch(key))
    return max((step for key in keys for step in run.series[key]), default=None)


def per_class(runs: Sequence[RunFolder]) -> dict[str, dict[str, dict[int, float]]]:
    """AP of each class at the last evaluation: title of the table -> class -> run index -> AP."""
    tables: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        last = last_evaluation(run)
        for key, values in run.series.items():
            if (found := CLASS.fullmatch(key)) and last in values:
                title = f"{TASKS[found[2]]}AP" + (f", {found[1]}" if found[1] else "")
                by_run = tables.setdefault(title, {}).setdefault(found[3], {})
                by_run[run.index] = values[last]
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
