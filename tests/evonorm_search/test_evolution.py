"""Evolution: the Pareto front against a library, tournaments, aging, and what it finds."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import numpy as np
import pytest

from evonorm_search.evolution import (
    Member,
    Settings,
    average_winner,
    child,
    pareto_front,
    pareto_winner,
)
from evonorm_search.space import Space, used


@pytest.mark.parametrize("anchors", [1, 2, 3, 5])
def test_the_pareto_front_is_moocores(anchors):
    moocore = pytest.importorskip("moocore")
    generator = np.random.default_rng(anchors)
    for n in (1, 2, 7, 60):
        for values in (generator.random((n, anchors)), generator.integers(0, 4, (n, anchors))):
            scores = values.astype(float)
            right = moocore.is_nondominated(scores, maximise=True, keep_weakly=True)
            assert pareto_front(scores.tolist()) == np.flatnonzero(right).tolist()


def member(*scores):
    return Member((), tuple(map(float, scores)))


def test_winners_of_figure_6():
    a, b, c, worse = member(1, 8), member(6, 7), member(8, 2), member(5, 1)
    rng = Random(0)
    assert average_winner([a, worse, b, c], rng) is b
    wins = Counter(pareto_winner([a, worse, b, c], rng) for _ in range(3000))
    assert wins.keys() == {a, b, c}
    assert all(900 < n < 1100 for n in wins.values())


def test_children():
    space, rng = Space(), Random(1)
    settings = Settings(start=3, random_children=0.25, mutations=2, tournament=1.0)
    population = deque(maxlen=10)
    assert child(population, space, settings, rng)[1] is None
    for score in range(2):
        population.append(Member(space.random(rng), (float(score),)))
    assert child(population, space, settings, rng)[1] is None  # the start is not over
    population.append(Member(space.random(rng), (9.0,)))
    found = [child(population, space, settings, rng) for _ in range(2000)]
    parents = Counter(parent for _, parent in found)
    assert parents.keys() == {None, population[-1]}  # a tournament of all has one winner
    assert 420 < parents[None] < 580
    for graph, parent in found:
        space.check(graph)
        if parent:
            assert sum(a != b for a, b in zip(graph, parent.graph)) <= 2


def test_a_tournament_takes_the_named_fraction():
    """With one of 100 in it, every member wins; with all, the best one only."""
    space, rng = Space(), Random(2)
    population = deque(Member(space.random(rng), (float(i),)) for i in range(100))
    for fraction, count in ((0.01, 60), (1.0, 1)):
        settings = Settings(start=0, random_children=0.0, tournament=fraction)
        winners = {child(population, space, settings, rng)[1] for _ in range(400)}
        assert len(winners) >= count if fraction < 1 else winners == {population[-1]}


def evolve(settings, seed, steps=600):
    """The best score found, where the score counts distinct ops that the output depends on."""
    space, rng = Space(), Random(seed)
    population, best = deque(maxlen=settings.window), 0.0
    for _ in range(steps):
        graph, _ = child(population, space, settings, rng)
        score = float(len({graph[place][0] for place in used(graph)}))
        best = max(best, score)
        population.append(Member(graph, (score,)))
    return best


def test_evolution_beats_random_search_where_children_resemble_their_parents():
    evolution = [evolve(Settings(window=100, start=20), seed) for seed in range(8)]
    random = [evolve(Settings(random_children=1.0), seed) for seed in range(8)]
    assert sum(evolution) >= sum(random) + 4  # half a point on average


def test_the_oldest_members_leave():
    """Regularized evolution: a member dies of age, however good it is."""
    settings = Settings(window=3)
    population = deque(maxlen=settings.window)
    for score in (9, 1, 2, 3):
        population.append(member(score))
    assert [m.scores for m in population] == [(1.0,), (2.0,), (3.0,)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"winner": "best"},
        {"tournament": 0.0},
        {"random_children": 1.5},
        {"window": 0},
        {"mutations": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError) as error:
        Settings(**wrong)
    assert "\n" not in str(error.value)
