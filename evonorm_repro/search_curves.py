"""A picture of the table of evaluated layers: the paper's figures 10, 2 and 4 in small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evonorm_runs.errors import UserError, user_errors
from evonorm_search.results import Row, ten_best_over_time
from evonorm_search.store import Candidate

from .curves import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 20  # of a histogram of accuracies


def draw_search(table: Sequence[dict[str, Any]]) -> Figure:
    """Three panels of the rows that :func:`evonorm_search.table.read_table` gives.

    The mean of the ten best as each search goes on, with their standard deviation (figure 10); how
    many layers of random graphs have which accuracy on the first network after the quality's steps
    (figure 2); the accuracies of all layers that were trained, network against network (figure 4).

    Raises:
        UserError: no layer of the table was trained, or a line is no row of a search.
    """
    with user_errors(KeyError, TypeError, prefix="the table: a line is no row of a search: "):
        return _draw(table)


def _draw(table: Sequence[dict[str, Any]]) -> Figure:
    own = [row for row in table if row["same_as"] is None]
    trained = [row for row in own if row["stage"] == "trained"]
    if not trained:
        raise UserError("the table has no layer that was trained")
    figure = blank(13.5, 4.2)
    best, random, networks = figure.subplots(1, 3)
    for i, (name, rows) in enumerate(_searches(own)):
        points = ten_best_over_time(rows)
        count = [x for x, _, _ in points]
        mean = [100 * y for _, y, _ in points]
        low = [100 * (y - d) for _, y, d in points]
        high = [100 * (y + d) for _, y, d in points]
        best.fill_between(count, low, high, color=f"C{i}", alpha=0.15, step="post", lw=0)
        best.plot(count, mean, color=f"C{i}", lw=1.3, label=name, drawstyle="steps-post")
    _label(best, "candidates evaluated", "accuracy of the ten best, %", "as figure 10 of the paper")
    best.legend(fontsize=8)
    found = [100 * row["quality"][0] for row in own if row["parent"] is None]
    random.hist(found, BINS, range=(0, 100), color="C7")
    random.set_yscale("log")
    random.set_ylim(0.7)
    first = own[0]["anchors"][0]
    _label(random, f"accuracy on {first} at the quality's test, %", "random layers", "as figure 2")
    for i, place in enumerate(range(1, len(own[0]["anchors"]))):
        x, y = ([100 * row["scores"][at] for row in trained] for at in (0, place))
        networks.plot(x, y, "o^sv"[i % 4], color=f"C{i}", ms=4, label=own[0]["anchors"][place])
    _label(networks, f"accuracy on {first}, %", "accuracy on another network, %", "as figure 4")
    networks.legend(fontsize=8)
    return figure


def _searches(own: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[Row]]]:
    """The searches of a table, those with a trained layer."""
    for name in dict.fromkeys(row["search"] for row in own):
        rows = [row for row in own if row["search"] == name]
        if any(row["scores"] for row in rows):
            yield name, [(Candidate(*(row[key] for key in Candidate._fields)), row) for row in rows]


def _label(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
