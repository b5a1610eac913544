"""The charts of a report: learning curves, results against results, results by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .figures import Chart, axis, figure, line, plain, wide
from .kinds import Result
from .recorded import Confusion
from .results import find_results
from .runs import RunFolder, number

POINTS = 1000  # at most, in a curve
ALL_POINTS = 30_000  # about, in the curves of all runs under one title
CLASSES = 100  # a chart shows no more; the table shows all
SQUARES = 40  # classes on a side of a confusion matrix, at most


def learning_curves(runs: Sequence[RunFolder], total: int) -> tuple[list[Chart], list[Chart]]:
    """The learning curves of runs of one kind: those that are shown, and those folded away.

    Args:
        total: the number of runs in the report.
    """
    kind = runs[0].kind
    keys = dict.fromkeys(key for run in runs for key in run.series)
    main = {key: title for key, title in kind.curves.items() if key in keys}
    results = find_results(runs)
    titles = {r.key: " ".join([r.label, r.remark]).strip() for r in results if r.sign}
    logarithmic = {r.key for r in results if r.logarithmic}
    shown = {r.key: titles[r.key] for r in results if r.first}
    rest = {key: title for key, title in titles.items() if key not in shown}
    rest |= {key: key.replace("_", " ") for key in keys if key.startswith(kind.more_curves)}
    # The results first, then the losses and rates.
    groups = ({**shown, **main}, rest)
    most = max(50, min(POINTS, ALL_POINTS // total))
    charts = [
        [_curve(runs, key, title, most, key in logarithmic) for key, title in group.items()]
        for group in groups
    ]
    return tuple([chart for chart in group if chart] for group in charts)


def _curve(
    runs: Sequence[RunFolder], key: str, title: str, most: int, logarithmic: bool
) -> Chart | None:
    traces, words = [], {}
    for run in runs:
        points = list(run.finite(key).items())
        if not points:
            continue
        x, y = zip(*_thin(points, most))
        traces.append(line(run, x, y))
        (first, start), (last, end) = points[0], points[-1]
        words[run.index] = (
            f"{start:.4g} at {run.unit} {first:g}, {end:.4g} at {run.unit} {last:g}; "
            f"from {min(v for _, v in points):.4g} to {max(v for _, v in points):.4g} in all"
        )
    if all(len(trace["x"]) < 2 for trace in traces):
        return None  # a single point shows no learning
    axes = {"xaxis": axis(runs[0].unit), "yaxis": axis(title)}
    if key.startswith("lr"):
        axes["yaxis"]["rangemode"] = "tozero"
    if logarithmic and wide(traces, "y"):
        axes["yaxis"]["type"] = "log"
    return Chart(title, figure(traces, hovermode="x unified", hoverdistance=-1, **axes), words)


def trade_off(runs: Sequence[RunFolder]) -> list[Chart]:
    """A result against another over the training, a chart for each pair, such as IS and FID."""
    charts = []
    for result in (r for r in find_results(runs) if r.against):
        paths = {run: _pairs(run.finite(result.key), run.finite(result.against)) for run in runs}
        labels = {run: [f"{run.unit} {step:g}" for step in path] for run, path in paths.items()}
        points = {run: list(path.values()) for run, path in paths.items()}
        charts.append(_trade("over the training", result, points, labels))
    return [chart for chart in charts if chart]


def truncation(curves: dict[RunFolder, list[dict[str, Any]]]) -> list[Chart]:
    """A result against another over the truncation, a chart for each pair, such as IS and FID.

    Args:
        curves: the rows of each run's curve, which hold "truncation" and results by their keys. The
            runs are of one kind.
    """
    charts = []
    kind = next(iter(curves)).kind
    keys = dict.fromkeys(key for rows in curves.values() for row in rows for key in row)
    for result in (r for r in map(kind.find_result, keys) if r and r.against):
        points, labels = {}, {}
        for run, rows in curves.items():
            x, y = (_column(rows, key) for key in (result.key, result.against))
            path = _pairs(x, y)
            points[run] = list(path.values())
            values = (rows[i]["truncation"] for i in path)
            labels[run] = ["no truncation" if v is None else f"truncation {v}" for v in values]
        charts.append(_trade("over the truncation", result, points, labels))
    return [chart for chart in charts if chart]


def _trade(
    over: str,
    result: Result,
    points: dict[RunFolder, list],
    labels: dict[RunFolder, list[str]],
) -> Chart | None:
    traces, words = [], {}
    for run in (run for run, pairs in points.items() if pairs):
        x, y = zip(*points[run])
        texts = [plain(label) for label in labels[run]]
        traces.append(line(run, x, y) | {"text": texts, "hoverinfo": "x+y+text+name"})
        words[run.index] = "; ".join(
            f"{label}: {a:.4g}, {b:.4g}" for label, (a, b) in zip(labels[run], points[run])
        )
    if not traces:
        return None
    axes = {"xaxis": axis(result.key), "yaxis": axis(result.against)}
    if result.logarithmic and wide(traces, "x"):
        axes["xaxis"]["type"] = "log"
    other = result.against.split(" ")[0]
    title = f"{other} against {result.title}, {over} {result.remark}".strip()
    return Chart(title, figure(traces, hovermode="closest", **axes), words)


def class_chart(
    title: str, classes: dict[str, dict[int, float]], runs: Sequence[RunFolder]
) -> Chart | None:
    """A result by class with a mark for each run, None if there are too many classes."""
    if len(classes) > CLASSES:
        return None
    traces = []
    for run in runs:
        found = {c: v[run.index] for c, v in classes.items() if run.index in v}
        finite = [(v, c) for c, v in found.items() if math.isfinite(v)]
        if finite:
            x, y = zip(*finite)
            points = line(run, x, [plain(c, 30) for c in y])
            traces.append({**points, "mode": "markers"})
    labels = [plain(c, 30) for c in classes]
    axes = {
        "xaxis": {**axis(f"{title} (%)"), "range": [-2, 102]},
        # Classes such as "1" and "2" would be taken for numbers without a type.
        "yaxis": {
            **axis(""),
            "type": "category",
            "categoryarray": labels[::-1],
            "automargin": True,
        },
    }
    axes["yaxis"]["categoryorder"] = "array"
    drawn = figure(traces, hovermode="closest", height=110 + 24 * len(classes), **axes)
    return Chart(f"{title} by class", drawn, {})


def confusion_matrix(run: RunFolder, found: Confusion) -> Chart | None:
    """A run's confusion matrix, a row for each class; None if there are too many classes."""
    if len(found.classes) > SQUARES:
        return None
    numbers = range(len(found.classes))
    # Numbers before names, as Plotly would take two classes of one name for the same.
    names = [f"{i} {plain(name, 24)}" for i, name in enumerate(found.classes)]
    counts = [[found.counts.get((label, answer), 0) for answer in numbers] for label in numbers]
    shares = [
        [round(100 * n / max(found.images[label], 1), 1) for n in counts[label]]
        for label in numbers
    ]
    trace = {
        "type": "heatmap",
        "meta": run.index,
        "x": names,
        "y": names,
        "z": shares,
        "zmin": 0,
        "zmax": 100,
        "customdata": counts,
        "hovertemplate": "is %{y}<br>answer %{x}<br>%{customdata} images, %{z} %<extra></extra>",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
    }
    side = {"type": "category", "automargin": True}
    axes = {
        "xaxis": {**axis("answer"), **side},
        "yaxis": {**axis("class"), **side, "autorange": "reversed"},
    }
    drawn = figure([trace], hovermode="closest", height=170 + 22 * len(names), **axes)
    right = sum(found.counts.get((i, i), 0) for i in numbers)
    words = {run.index: f"{right} of {sum(found.images.values())} images are right"}
    return Chart(f"{run.name}: answers to the images of each class (%)", drawn, words)


def _thin(points: list, most: int) -> list:
    """Every n-th point, and the last."""
    step = -(-len(points) // most)
    return points[::step] + ([points[-1]] if (len(points) - 1) % step else [])


def _column(rows: list[dict[str, Any]], key: str) -> dict[int, float]:
    values = {i: number(row.get(key)) for i, row in enumerate(rows)}
    return {i: v for i, v in values.items() if v is not None and math.isfinite(v)}


def _pairs(x: dict, y: dict) -> dict:
    return {key: (x[key], y[key]) for key in x if key in y}
