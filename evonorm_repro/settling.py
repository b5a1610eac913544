"""Whether a table's schedule is long enough: the order of its layers over the training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

from evonorm_runs.folder import read_metrics

History = dict[float, float]  # a metric by the share of the training after which it was measured
LAST_THIRD = 0.66  # which begins a little before two thirds, as steps are whole numbers


def evaluations(folder: Path, clock: str, key: str) -> History:
    """A finished run's metric `key` after each evaluation.

    Args:
        clock: the key in metrics.json that says how far the training was, such as "epoch".
    """
    lines = [line for line in read_metrics(folder)[0] if key in line and line.get(clock)]
    return {round(line[clock] / lines[-1][clock], 4): line[key] for line in lines}


def average(histories: Sequence[History]) -> History:
    """The mean of several runs wherever all of them have a value."""
    common = set.intersection(*map(set, histories)) if histories else set()
    return {share: mean(history[share] for history in histories) for share in sorted(common)}


def order(histories: dict[str, History], higher: bool) -> dict[float, list[str]]:
    """The layers, the best one first, wherever all of them have a value."""
    common = set.intersection(*map(set, histories.values())) if histories else set()
    sign = -1 if higher else 1
    return {
        share: sorted(histories, key=lambda layer: sign * histories[layer][share])
        for share in sorted(common)
    }


def changes(orders: dict[float, list[str]]) -> list[tuple[str, str]] | None:
    """Which two layers change places in the last third of the training, each pair once.

    None if there are fewer than two evaluations in it, so that nobody knows.
    """
    late = [layers for share, layers in orders.items() if share >= LAST_THIRD]
    if len(late) < 2:
        return None
    places = [{layer: place for place, layer in enumerate(layers)} for layers in late]
    return [
        pair
        for pair in combinations(late[-1], 2)
        if not all(place[pair[0]] < place[pair[1]] for place in places)
    ]
