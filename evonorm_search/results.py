"""What the rows of a store say of a search: the data of figures 2, 4 and 10, and of its report.

A row is a candidate and its result, as :meth:`Store.candidates` yields them, in the order of
completion. All functions are pure. Candidates that share the result of an equal one count once.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

from .evolution import pareto_front
from .space import used
from .store import Candidate

Row = tuple[Candidate, dict[str, Any]]


def evaluated(rows: Iterable[Row]) -> list[Row]:
    """The candidates that were evaluated themselves."""
    return [row for row in rows if row[0].same_as is None]


def trained(rows: Iterable[Row]) -> list[Row]:
    """The candidates that passed both rejections and were trained to their end."""
    return [row for row in evaluated(rows) if row[1]["stage"] == "trained"]


def mean_score(result: dict[str, Any]) -> float:
    """The mean accuracy over the anchors, a fraction, of a candidate that was trained."""
    return fmean(result["scores"])


def ten_best_over_time(
    rows: Iterable[Row], window: int = 2500, top: int = 10
) -> list[tuple[int, float, float]]:
    """The data of figure 10, after each candidate that was trained.

    Args:
        window: how many of the newest trained candidates make up the population.
        top: how many are the best ones.

    Returns:
        how many candidates were evaluated by then, those that were rejected too, and the mean and
        the standard deviation of the `top` best mean accuracies in the population, fractions.
    """
    points = []
    newest: deque[float] = deque()
    order: list[float] = []  # of the same, ascending
    for count, (_, result) in enumerate(evaluated(rows), 1):
        if result["stage"] != "trained":
            continue
        newest.append(mean_score(result))
        insort(order, newest[-1])
        if len(newest) > window:
            order.remove(newest.popleft())
        points.append((count, fmean(order[-top:]), pstdev(order[-top:])))
    return points


def histogram(values: Iterable[float], bins: int = 40) -> list[int]:
    """How many of these accuracies, fractions, fall into each of `bins` equal parts of [0, 1].

    A part holds its lower end; the last one also holds 1.
    """
    counts = Counter(min(int(value * bins), bins - 1) for value in values)
    return [counts[i] for i in range(bins)]


def pareto_rows(rows: Iterable[Row]) -> list[Row]:
    """The trained candidates that no other one dominates, by falling mean accuracy."""
    found = trained(rows)
    front = pareto_front([result["scores"] for _, result in found])
    return sorted((found[i] for i in front), key=lambda row: -mean_score(row[1]))


def op_frequencies(
    rows: Iterable[Row], parts: int = 30
) -> tuple[list[int], dict[str, list[float]]]:
    """How often each op appears among the evaluated candidates as time goes by.

    Args:
        parts: into how many equal parts the time is divided, at most.

    Returns:
        how many candidates were evaluated at the end of each part, and by op, the most frequent one
        first, the fraction of each part's candidates whose output depends on such a node.
    """
    found = [{c.graph[place][0] for place in used(c.graph)} for c, _ in evaluated(rows)]
    count = len(found)
    parts = min(parts, count)
    ends = [count * (i + 1) // parts for i in range(parts)]
    total = Counter(op for ops in found for op in ops)
    slices = [found[start:end] for start, end in zip([0, *ends], ends)]
    return ends, {
        op: [sum(op in ops for ops in part) / len(part) for part in slices]
        for op, _ in total.most_common()
    }


def family_line(rows: Iterable[Row], key: int) -> list[Row]:
    """A candidate and its ancestors, from the random graph at the start of the line to itself."""
    by_key = {row[0].key: row for row in rows}
    line: list[Row] = []
    at: int | None = key
    while at in by_key and at not in {row[0].key for row in line}:
        line.append(by_key[at])
        at = by_key[at][0].parent
    return line[::-1]


def family(rows: Sequence[Row], keys: Iterable[int]) -> list[Row]:
    """These candidates and all their ancestors, each once, in the order of their draws."""
    found = {row[0].key: row for key in keys for row in family_line(rows, key)}
    return [found[key] for key in sorted(found)]
