"""Searches beside each other (figure 10): the ten best of each method as its search goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError

from .config import get_cfg
from .results import Row, evaluated, ten_best_over_time
from .store import Store


class Point(NamedTuple):
    """The ten best of a search, after a candidate was trained.

    Attributes:
        count: how many candidates were evaluated, those that were rejected too.
        seconds: of computing that these took, all processes together.
        mean, deviation: of the ten best mean accuracies in the population, fractions.
    """

    count: int
    seconds: float
    mean: float
    deviation: float


class Search(NamedTuple):
    """What is compared of one search.

    Attributes:
        count, seconds: of the whole search, as in :class:`Point`.
        points: one after each candidate that was trained; none if all were rejected.
    """

    folder: str
    method: str
    seed: int
    count: int
    seconds: float
    points: list[Point]


def read(store: Store) -> Search:
    """What is compared of a search.

    Raises:
        UserError: the store is damaged, or holds no candidate.
    """
    folder, cfg = store.path.parent, config_of(store)
    rows = evaluated(store.candidates())
    if not rows:
        raise UserError(f"{folder}: no candidate was evaluated yet")
    seconds = sum(result.get("seconds", 0.0) for _, result in rows)
    points = points_of(rows, cfg.EVOLUTION.WINDOW)
    return Search(str(folder), method(cfg), cfg.SEED, len(rows), seconds, points)


def config_of(store: Store) -> CfgNode:
    """The config of a search.

    Raises:
        UserError: the store's text is none.
    """
    return merge_saved(get_cfg(), store.get("config", "{}"), str(store.path))


def method(cfg: CfgNode) -> str:
    """The name of a search's method, by its config."""
    name = f"evolution, {cfg.EVOLUTION.WINNER}"
    if cfg.EVOLUTION.RANDOM_CHILDREN == 1:
        name = "random search"
    tests = {"quality": cfg.PROXY.QUALITY, "stability": cfg.PROXY.STABILITY_STEPS}
    left_out = [test for test, value in tests.items() if not value]
    space = "B" if cfg.SPACE.BATCH else "S"
    return f"{space}: {name}" + "".join(f", without {test} test" for test in left_out)


def points_of(rows: Iterable[Row], window: int = 2500) -> list[Point]:
    """Figure 10's line of one search."""
    rows = evaluated(rows)
    spent = [0.0]
    for _, result in rows:
        spent.append(spent[-1] + result.get("seconds", 0.0))
    return [
        Point(count, spent[count], mean, deviation)
        for count, mean, deviation in ten_best_over_time(rows, window)
    ]


def at(points: Sequence[Point], key: str, limit: float) -> Point | None:
    """The last point whose `key`, "count" or "seconds", is within the limit."""
    within = [point for point in points if getattr(point, key) <= limit]
    return within[-1] if within else None


def compare(searches: Sequence[Search], key: str, steps: int = 10) -> list[dict[str, Any]]:
    """The methods at equal numbers of candidates, or equal computing.

    Args:
        key: "count" or "seconds".
        steps: at how many equal distances, up to where the shortest search ends.

    Returns:
        for each method and limit: `method`, `limit`, `seeds` (how many searches), `mean` (of their
        ten best's means; None where a search had no trained candidate yet), `deviation` (between
        the searches).
    """
    end = min(getattr(search, key) for search in searches)
    methods = dict.fromkeys(search.method for search in searches)
    rows = []
    for name in methods:
        own = [search.points for search in searches if search.method == name]
        for step in range(1, steps + 1):
            limit = end * step / steps
            found = [at(points, key, limit) for points in own]
            means = [point.mean for point in found if point]
            whole = len(means) == len(own)
            rows.append(
                {
                    "method": name,
                    "limit": limit,
                    "seeds": len(own),
                    "mean": fmean(means) if whole else None,
                    "deviation": pstdev(means) if whole else None,
                }
            )
    return rows


def table(searches: Sequence[Search], key: str) -> str:
    """:func:`compare` as text."""
    rows = compare(searches, key, 5)
    limits = list(dict.fromkeys(row["limit"] for row in rows))
    words = {"count": "after candidates", "seconds": "after seconds of computing"}
    lines = [f"ten best, mean accuracy in %, {words[key]}"]
    lines.append("".join(f"{limit:>14.0f}" for limit in limits) + "   searches   method")
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = "".join(f"{_cell(row):>14}" for row in own)
        lines.append(f"{cells}   {own[0]['seeds']:>8}   {name}")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "-"
    return f"{100 * row['mean']:.2f} ± {100 * row['deviation']:.2f}"
