"""The parts that all charts are made of. A trace's "meta" is the index of its run.

The colours are page.js's, as they depend on the reader's theme. What Plotly shows as text may hold
its own kind of HTML, so all of it goes through :func:`plain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from .runs import RunFolder

COLOURS = 8  # the number of colours in style.css: --run-0 and so on
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
MARKERS = 12  # the number drawn on a curve with many points
SPREAD = 30  # an axis is logarithmic if its values, all above 0, differ by a larger factor


@dataclass
class Chart:
    """A figure, its title, and for each run a description of what the figure shows of it.

    Attributes:
        figure: Plotly's {"data": [...], "layout": {...}}.
        words: by run index.
        id: of its element in the page.
    """

    title: str
    figure: dict[str, Any]
    words: dict[int, str]
    id: str = ""


def plain(text: str, longest: int = 60) -> str:
    """The text with its tags and entities escaped, so that Plotly shows it as it is."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def style(index: int) -> tuple[int, str, str]:
    """A run's colour, dash and symbol: no two of the first 64 runs have the same three."""
    turn = index + index // COLOURS
    return index % COLOURS, DASHES[turn % len(DASHES)], SYMBOLS[turn % len(SYMBOLS)]


def line(run: RunFolder, x: Sequence, y: Sequence) -> dict[str, Any]:
    """A trace of a run's points, in its own style."""
    _, dash, symbol = style(run.index)
    marker = {"symbol": symbol, "size": 7}
    if len(x) > 2 * MARKERS:
        marker["maxdisplayed"] = MARKERS
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(run.name, 40),
        "meta": run.index,
        "x": [_short(v) for v in x],
        "y": [_short(v) for v in y],
        "line": {"dash": dash, "width": 2},
        "marker": marker,
    }


def figure(traces: list[dict[str, Any]], **layout: Any) -> dict[str, Any]:
    """A figure of traces, checked by Plotly."""
    layout = {"template": "none", "showlegend": False, "height": 300, **layout}
    layout["margin"] = {"l": 72, "r": 16, "t": 12, "b": 60}
    figure = go.Figure(traces, layout).to_plotly_json()
    figure["layout"].pop("template")  # page.js brings its own
    return figure


def axis(title: str) -> dict[str, Any]:
    """An axis with a title. What the title has in brackets gets its own line if it is long."""
    name, bracket, rest = title.partition(" (")
    lines = [name, f"({rest}"] if bracket and len(rest) > 8 else [title]
    return {"title": {"text": "<br>".join(plain(line) for line in lines)}}


def wide(traces: list[dict[str, Any]], axis: str) -> bool:
    """Whether the values along an axis are so far apart that it should be logarithmic."""
    values = [value for trace in traces for value in trace[axis]]
    return min(values) > 0 and max(values) / min(values) > SPREAD


def _short(value: float | str) -> float | str:
    """The value with six digits, which is enough to draw it."""
    return value if isinstance(value, str) else float(f"{value:.6g}")
