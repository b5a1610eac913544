"""Tournament selection with aging, after section 4.3; pure Python.

    population = deque(maxlen=settings.window)  # its oldest member leaves a full one
    while True:
        graph, parent = child(population, space, settings, rng)
        population.append(Member(graph, scores_of(graph)))

Scores are accuracies, one per anchor; more is better.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .space import Graph, Space


@dataclass(frozen=True)
class Member:
    """A candidate that was trained to its end.

    Attributes:
        scores: of it, one per anchor, in a fixed order.
        key: of the candidate, for whoever stores more about it.
    """

    graph: Graph
    scores: tuple[float, ...]
    key: int = -1


@dataclass(frozen=True)
class Settings:
    """Of an evolution; the defaults are the paper's (section 5.1).

    Attributes:
        window: how many of the newest members make up the population.
        tournament: the fraction of the population that takes part in a tournament.
        mutations: of a child.
        random_children: the probability that a child is a new random graph; 1 is random search.
        winner: "pareto" (one of the Pareto front) or "average" (the best mean).
        start: how many random graphs come before the first tournament. The paper gives no number.
    """

    window: int = 2500
    tournament: float = 0.05
    mutations: int = 2
    random_children: float = 0.5
    winner: str = "pareto"
    start: int = 100

    def __post_init__(self) -> None:
        if self.window < 1 or self.mutations < 1 or self.start < 0:
            raise ValueError("window and mutations are at least 1, start is at least 0")
        if not 0 < self.tournament <= 1:
            raise ValueError(f"tournament is {self.tournament}, but is a fraction in (0, 1]")
        if not 0 <= self.random_children <= 1:
            raise ValueError(f"random_children is {self.random_children}, but is a probability")
        if self.winner not in WINNERS:
            known = ", ".join(WINNERS)
            raise ValueError(f"winner is {self.winner!r}; known are {known}")


def child(
    population: Sequence[Member], space: Space, settings: Settings, rng: Random
) -> tuple[Graph, Member | None]:
    """The next graph to evaluate, and its parent; None if it is a new random graph."""
    if len(population) < max(1, settings.start) or rng.random() < settings.random_children:
        return space.random(rng), None
    size = max(1, round(settings.tournament * len(population)))
    parent = WINNERS[settings.winner](rng.sample(population, size), rng)
    return space.mutate(parent.graph, rng, settings.mutations), parent


def pareto_winner(members: Sequence[Member], rng: Random) -> Member:
    """One of the Pareto front, each with the same probability."""
    front = pareto_front([member.scores for member in members])
    return members[rng.choice(front)]


def average_winner(members: Sequence[Member], rng: Random) -> Member:
    """The one with the highest mean score; the earliest of several."""
    return max(members, key=lambda member: sum(member.scores))


WINNERS = {"pareto": pareto_winner, "average": average_winner}


def pareto_front(scores: Sequence[Sequence[float]]) -> list[int]:
    """The indices of scores that no other ones dominate, in order.

    Scores dominate others that they equal or exceed on every anchor and exceed on one. Equal
    scores do not dominate each other, so all of them are in the front.
    """
    front: list[int] = []
    # Who dominates comes first in this order, and the front itself holds someone who dominates.
    for i in sorted(range(len(scores)), key=lambda i: tuple(scores[i]), reverse=True):
        if not any(dominates(scores[j], scores[i]) for j in front):
            front.append(i)
    return sorted(front)


def dominates(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether one is at least as good as two on every anchor, and better on one."""
    return all(map(operator.ge, one, two)) and any(map(operator.gt, one, two))
