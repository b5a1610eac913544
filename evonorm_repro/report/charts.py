"""The charts of a report: learning curves, IS against FID, AP by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .figures import Chart, axis, figure, line, plain, wide
from .results import find_metric, find_metrics
from .runs import RunFolder, number

POINTS = 1000  # of a curve, at most
ALL_POINTS = 30_000  # of all curves of the page, about
CLASSES = 100  # more are only in the table


def learning_curves(runs: Sequence[RunFolder], total: int) -> tuple[list[Chart], list[Chart]]:
    """What runs of one kind learned: the main curves, and the others.

    Args:
        total: the number of runs in the report.
    """
    kind = runs[0].kind
    keys = dict.fromkeys(key for run in runs for key in run.series)
    main = {key: title for key, title in kind.curves.items() if key in keys}
    results = find_metrics(runs)
    titles = {m.key: " ".join([m.label, m.remark]).strip() for m in results}
    shown = {m.key: titles[m.key] for m in results if m.first}
    rest = {key: title for key, title in titles.items() if key not in shown}
    rest |= {key: key.replace("_", " ") for key in keys if key.startswith(kind.more_curves)}
    # The results first, then the losses and rates.
    groups = ({**shown, **main}, rest)
    charts = [[_curve(runs, key, title, total) for key, title in g.items()] for g in groups]
    return tuple([chart for chart in group if chart] for group in charts)


def _curve(runs: Sequence[RunFolder], key: str, title: str, total: int) -> Chart | None:
    most = max(50, min(POINTS, ALL_POINTS // total))
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
        return None  # nothing was learned between them
    axes = {"xaxis": axis(runs[0].unit), "yaxis": axis(title)}
    if key.startswith("lr"):
        axes["yaxis"]["rangemode"] = "tozero"
    if key.startswith("FID") and wide(traces, "y"):
        axes["yaxis"]["type"] = "log"
    return Chart(title, figure(traces, hovermode="x unified", hoverdistance=-1, **axes), words)


def trade_off(runs: Sequence[RunFolder]) -> list[Chart]:
    """IS against FID over the training, a chart for each extractor."""
    charts = []
    for fid in (m for m in find_metrics(runs) if m.key.startswith("FID")):
        score = "IS" + fid.key[len("FID") :]
        paths = {run: _pairs(run.finite(fid.key), run.finite(score)) for run in runs}
        labels = {run: [f"{run.unit} {step:g}" for step in path] for run, path in paths.items()}
        points = {run: list(path.values()) for run, path in paths.items()}
        charts.append(_trade("over the training", fid.key, score, points, labels))
    return [chart for chart in charts if chart]


def truncation(curves: dict[RunFolder, list[dict[str, Any]]]) -> list[Chart]:
    """IS against FID over the truncation, a chart for each extractor."""
    charts = []
    keys = dict.fromkeys(key for rows in curves.values() for row in rows for key in row)
    for fid in (key for key in keys if key.startswith("FID") and find_metric(key)):
        score = "IS" + fid[len("FID") :]
        points, labels = {}, {}
        for run, rows in curves.items():
            x, y = (_column(rows, key) for key in (fid, score))
            path = _pairs(x, y)
            points[run] = list(path.values())
            values = (rows[i]["truncation"] for i in path)
            labels[run] = ["no truncation" if v is None else f"truncation {v}" for v in values]
        charts.append(_trade("over the truncation", fid, score, points, labels))
    return [chart for chart in charts if chart]


def _trade(
    over: str,
    fid: str,
    score: str,
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
    axes = {"xaxis": axis(fid), "yaxis": axis(score)}
    if wide(traces, "x"):
        axes["xaxis"]["type"] = "log"
    name, _, remark = fid.partition(" ")
    title = f"{score.split(' ')[0]} against {name}, {over} {remark}".strip()
    return Chart(title, figure(traces, hovermode="closest", **axes), words)


def class_chart(
    title: str, classes: dict[str, dict[int, float]], runs: Sequence[RunFolder]
) -> Chart | None:
    """AP by class, a mark for each run; None for too many classes."""
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
        # Else "1" and "2" would be numbers.
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


def _thin(points: list, most: int) -> list:
    """Every n-th point, and the last."""
    step = -(-len(points) // most)
    return points[::step] + ([points[-1]] if (len(points) - 1) % step else [])


def _column(rows: list[dict[str, Any]], key: str) -> dict[int, float]:
    values = {i: number(row.get(key)) for i, row in enumerate(rows)}
    return {i: v for i, v in values.items() if v is not None and math.isfinite(v)}


def _pairs(x: dict, y: dict) -> dict:
    return {key: (x[key], y[key]) for key in x if key in y}
