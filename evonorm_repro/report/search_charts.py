"""The charts of searches for layers: the paper's figures 2, 4 and 10, and what they found when."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from evonorm_search.results import (
    Row,
    evaluated,
    family,
    family_line,
    histogram,
    mean_score,
    op_frequencies,
    pareto_rows,
    ten_best_over_time,
    trained,
)

from .figures import Chart, axis, figure, line, plain, wide
from .runs import RunFolder

POINTS = 3000  # about, of all searches in a chart
BINS = 40  # of a histogram
TREE = 10  # of the best ones, whose families are drawn


def funnel(runs: Sequence[RunFolder], stages: dict[int, dict[str, int]]) -> Chart:
    """How many graphs are left after each stage of the cascade."""
    names = list(next(iter(stages.values())))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(run.name, 40),
            "meta": run.index,
            "x": [max(count, 0.5) for count in stages[run.index].values()],
            "y": names,
            "text": [f"{count:,}" for count in stages[run.index].values()],
            "textposition": "none",
            "hoverinfo": "y+text+name",
        }
        for run in runs
    ]
    words = {
        run.index: ", ".join(f"{n}: {count:,}" for n, count in stages[run.index].items())
        for run in runs
    }
    axes = {
        "xaxis": {**axis("graphs"), "type": "log"},
        "yaxis": {**axis(""), "autorange": "reversed", "automargin": True},
    }
    drawn = figure(traces, height=110 + 26 * len(names) + 60 * (len(runs) - 1), **axes)
    return Chart("Graphs that are left after each stage", drawn, words)


def progress(runs: Sequence[RunFolder]) -> Chart | None:
    """Figure 10: the mean of the ten best so far, with their standard deviation."""
    traces, words = [], {}
    for run in runs:
        points = ten_best_over_time(run.rows)
        if not points:
            continue
        step = -(-len(points) * len(runs) // POINTS)
        kept = [*points[:-1:step], points[-1]]
        x = [count for count, _, _ in kept]
        mean = [100 * value for _, value, _ in kept]
        deviation = [100 * value for _, _, value in kept]
        low = [m - d for m, d in zip(mean, deviation)]
        high = [m + d for m, d in zip(mean, deviation)]
        band = {"type": "scatter", "mode": "lines", "meta": run.index, "hoverinfo": "skip"}
        traces.append({**band, "x": x, "y": low, "line": {"width": 0}})
        traces.append({**band, "x": x, "y": high, "line": {"width": 0}, "fill": "tonexty"})
        traces.append(line(run, x, mean))
        words[run.index] = (
            f"{mean[0]:.1f} after {x[0]} candidates, {mean[-1]:.1f} ± {deviation[-1]:.1f} after "
            f"{x[-1]}"
        )
        if run.known:
            height = 100 * fmean(run.known.values())
            traces.append(_known(run, [x[0], x[-1]], [height, height]))
    if not traces:
        return None
    title = "Mean accuracy of the ten best, and its standard deviation (figure 10)"
    axes = {"xaxis": axis("candidates evaluated"), "yaxis": axis("accuracy (%)")}
    return Chart(title, figure(traces, hovermode="x unified", height=360, **axes), words)


def ops(run: RunFolder) -> Chart | None:
    """How often each op appears among the candidates over time."""
    ends, found = op_frequencies(run.rows)
    if not found:
        return None
    trace = {
        "type": "heatmap",
        "meta": run.index,
        "x": ends,
        "y": list(found),
        "z": [[round(100 * value, 1) for value in row] for row in found.values()],
        "zmin": 0,
        "hovertemplate": "%{y}: %{z} %<br>of those up to candidate %{x}<extra></extra>",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
    }
    axes = {
        "xaxis": axis("candidates evaluated"),
        "yaxis": {**axis(""), "type": "category", "autorange": "reversed", "automargin": True},
    }
    often = [f"{op} {100 * row[0]:.0f} to {100 * row[-1]:.0f} %" for op, row in found.items()]
    drawn = figure([trace], height=110 + 19 * len(found), **axes)
    words = {run.index: "from the first to the last part: " + ", ".join(often)}
    return Chart(f"{run.name}: candidates with each op (%)", drawn, words)


def accuracies(runs: Sequence[RunFolder], anchors: dict[int, list[str]]) -> list[Chart]:
    """Figure 2: a histogram for each network, of final accuracies or those at the rejection."""
    charts = []
    for name in _networks(anchors):
        traces, words = [], {}
        for run in (run for run in runs if name in anchors[run.index]):
            place = anchors[run.index].index(name)
            lists = [result["scores"] or result["quality"] for _, result in evaluated(run.rows)]
            values = [found[place] for found in lists if place < len(found)]
            if not values:
                continue
            counts = histogram(values, BINS)
            traces.append(
                {
                    "type": "bar",
                    "name": plain(run.name, 40),
                    "meta": run.index,
                    "x": [100 * (i + 0.5) / BINS for i in range(BINS)],
                    "y": counts,
                    "opacity": 0.6,
                }
            )
            words[run.index] = f"{len(values)} accuracies, the highest {100 * max(values):.1f} %"
            if name in run.known:
                at = 100 * run.known[name]
                traces.append(_known(run, [at, at], [0.5, max(counts)]))
                words[run.index] += f", BN-ReLU {at:.1f} %"
        if not traces:
            continue
        axes = {"xaxis": {**axis("accuracy (%)"), "range": [0, 100]}, "yaxis": axis("candidates")}
        counted = [{"y": [count for count in trace["y"] if count]} for trace in traces]
        if wide(counted, "y"):
            axes["yaxis"]["type"] = "log"
        drawn = figure(traces, barmode="overlay", bargap=0.05, **axes)
        charts.append(Chart(f"{name} (figure 2)", drawn, words))
    return charts


def against(runs: Sequence[RunFolder], anchors: dict[int, list[str]]) -> list[Chart]:
    """Figure 4: network against network, and the Pareto front over all of them."""
    charts = []
    for one, two in combinations(_networks(anchors), 2):
        traces, words = [], {}
        for run in (run for run in runs if {one, two} <= set(anchors[run.index])):
            places = [anchors[run.index].index(name) for name in (one, two)]
            rows = trained(run.rows)
            if not rows:
                continue
            front = pareto_rows(run.rows)
            kept = rows[:: -(-len(rows) * len(runs) // POINTS)]
            traces.append({**_points(run, kept, places), "opacity": 0.45})
            traces[-1]["marker"] = {"size": 5}
            best = _points(run, front, places)
            best["marker"] = {"symbol": "star", "size": 11}
            traces.append(best)
            words[run.index] = f"{len(rows)} layers, {len(front)} of them on the Pareto front"
        if traces:
            axes = {"xaxis": axis(f"{one} (%)"), "yaxis": axis(f"{two} (%)")}
            drawn = figure(traces, hovermode="closest", height=360, **axes)
            charts.append(Chart(f"{two} against {one} (figure 4)", drawn, words))
    return charts


def tree(runs: Sequence[RunFolder]) -> Chart | None:
    """The ten best and all their ancestors, each joined to its parent."""
    traces, words = [], {}
    for run in runs:
        order = sorted(trained(run.rows), key=lambda row: -mean_score(row[1]))
        rows = [
            row for row in family(run.rows, [c.key for c, _ in order[:TREE]]) if row[1]["scores"]
        ]
        if not rows:
            continue
        at = {c.key: (c.key, 100 * mean_score(result)) for c, result in rows}
        joins = [(at[c.parent], at[c.key]) for c, _ in rows if c.parent in at]
        x, y = ([v for one, two in joins for v in (one[i], two[i], None)] for i in range(2))
        lines = {"type": "scatter", "mode": "lines", "meta": run.index, "hoverinfo": "skip"}
        traces.append({**lines, "x": x, "y": y, "line": {"width": 1}})
        nodes = line(run, *zip(*at.values()))
        nodes["marker"].pop("maxdisplayed", None)
        texts = [plain(str(c.formula), 100) for c, _ in rows]
        traces.append({**nodes, "mode": "markers", "text": texts, "hoverinfo": "x+y+text+name"})
        words[run.index] = f"{len(rows)} layers, {len(joins)} of them children of another one"
    if not traces:
        return None
    axes = {"xaxis": axis("graph, in the order of their draws"), "yaxis": axis("accuracy (%)")}
    drawn = figure(traces, hovermode="closest", height=420, **axes)
    return Chart("The ten best and their ancestors", drawn, words)


def line_of_best(run: RunFolder) -> list[Row]:
    """The best candidate and its ancestors, from the random graph that they come from."""
    best = max(trained(run.rows), key=lambda row: mean_score(row[1]), default=None)
    return family_line(run.rows, best[0].key) if best else []


def _known(run: RunFolder, x: list[float], y: list[float]) -> dict:
    """A dashed line at BN-ReLU's accuracy."""
    dashed = {"mode": "lines", "name": "BN-ReLU", "line": {"dash": "dash", "width": 2}}
    return {"type": "scatter", "meta": run.index, "x": x, "y": y, **dashed}


def _networks(anchors: dict[int, list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in anchors.values() for name in names))


def _points(run: RunFolder, rows: Sequence[Row], places: Sequence[int]) -> dict:
    """A trace of rows at their accuracies on two networks."""
    x, y = ([100 * result["scores"][place] for _, result in rows] for place in places)
    texts = [plain(str(c.formula), 100) for c, _ in rows]
    return {**line(run, x, y), "mode": "markers", "text": texts, "hoverinfo": "x+y+text+name"}
