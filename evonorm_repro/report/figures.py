"""What all charts are made of. A trace's "meta" is the index of its run.

The colours are page.js's, as they depend on the reader's theme. What Plotly shows as text may hold
its own kind of HTML, so all of it goes through :func:`plain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from .runs import RunFolder

COLOURS = 8  # as many as style.css has, --run-0 and so on
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
MARKERS = 12  # of a curve with many points
SPREAD = 30  # of values above 0, from which on an axis is logarithmic


@dataclass
class Chart:
    """A figure with a title, and in words what each run's part of it shows.

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
    """Text that Plotly shows as it is: no tag or entity in it means anything."""
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
    figure["layout"].pop("template")  # page.js's
    return figure


def axis(title: str) -> dict[str, Any]:
    """An axis; what its title says in brackets has a line of its own if it is long."""
    name, bracket, rest = title.partition(" (")
    lines = [name, f"({rest}"] if bracket and len(rest) > 8 else [title]
    return {"title": {"text": "<br>".join(plain(line) for line in lines)}}


def wide(traces: list[dict[str, Any]], axis: str) -> bool:
    """Whether the values along an axis ask for a logarithmic one."""
    values = [value for trace in traces for value in trace[axis]]
    return min(values) > 0 and max(values) / min(values) > SPREAD


def _short(value: float | str) -> float | str:
    """With six digits, enough to draw."""
    return value if isinstance(value, str) else float(f"{value:.6g}")
