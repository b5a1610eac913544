"""What the rows of a store say, beside definitions written down again, moocore and numpy."""

from __future__ import annotations

import random
import sqlite3
from statistics import mean, pstdev

import moocore
import numpy as np
import pytest

from evonorm_runs.errors import UserError
from evonorm_search.results import (
    evaluated,
    family,
    family_line,
    histogram,
    op_frequencies,
    pareto_rows,
    ten_best_over_time,
    trained,
)
from evonorm_search.space import Space, formula
from evonorm_search.store import FILE, Candidate, Store


def made(count=120, anchors=3):
    """Rows as a search would write them: rejected ones, shared results, parents."""
    rng, space, rows = random.Random(3), Space(batch=False), []
    for key in range(0, 2 * count, 2):
        graph = space.random(rng)
        parent = rng.choice(rows)[0].key if rows and rng.random() < 0.6 else None
        same = rng.choice(rows)[0] if rows and rng.random() < 0.1 else None
        same_as = same and (same.key if same.same_as is None else same.same_as)
        stage = rng.choice(["quality", "stability", "trained", "trained"])
        scores = [rng.randrange(20) / 20 for _ in range(anchors)] if stage == "trained" else []
        result = {"stage": stage, "quality": [0.5], "worst": [], "scores": scores}
        if same is not None:
            result = next(found for c, found in rows if c.key == same_as)
        row = Candidate(key, graph, str(formula(graph)), b"", key // 2)
        rows.append((row._replace(parent=parent, same_as=same_as), result))
    return rows


ROWS = made()


def test_those_that_share_a_result_count_once():
    assert len(trained(ROWS)) < len(evaluated(ROWS)) < len(ROWS)
    assert all(c.same_as is None for c, _ in evaluated(ROWS))


@pytest.mark.parametrize("window", [5, 2500])
def test_the_ten_best_over_time(window):
    points = ten_best_over_time(ROWS, window)
    scores, expected = [], []
    for count, (_, result) in enumerate(evaluated(ROWS), 1):
        if result["stage"] == "trained":
            scores.append(mean(result["scores"]))
            best = sorted(scores[-window:])[-10:]
            expected.append((count, mean(best), pstdev(best)))
    assert len(points) == len(expected) > 30
    np.testing.assert_allclose(points, expected, atol=1e-12)


def test_a_histogram_is_numpys():
    values = [i / 32 for i in range(33)] + [0.1, 1.0]
    expected = np.histogram(values, bins=32, range=(0, 1))[0]
    assert histogram(values, 32) == expected.tolist()


def test_the_pareto_front_is_moocores():
    found = pareto_rows(ROWS)
    scores = np.array([result["scores"] for _, result in trained(ROWS)])
    right = scores[moocore.is_nondominated(scores, maximise=True, keep_weakly=True)]
    assert sorted(map(tuple, right)) == sorted(tuple(result["scores"]) for _, result in found)
    means = [mean(result["scores"]) for _, result in found]
    assert means == sorted(means, reverse=True)


def test_op_frequencies():
    graphs = [((op, (0,)), ("neg", (4,)), ("exp", (4,))) for op in ("abs", "abs", "tanh", "tanh")]
    rows = [(Candidate(i, g, "x", b"", i), {"stage": "quality"}) for i, g in enumerate(graphs)]
    ends, found = op_frequencies(rows, 2)
    # "neg" is a node that the output does not use.
    assert ends == [2, 4] and found == {"exp": [1, 1], "abs": [1, 0], "tanh": [0, 1]}
    assert op_frequencies([], 5) == ([], {})
    assert op_frequencies(rows, 99)[0] == [1, 2, 3, 4]


def test_families():
    by_key = {c.key: c for c, _ in ROWS}
    youngest = max(ROWS, key=lambda row: len(family_line(ROWS, row[0].key)))[0].key
    line = [c for c, _ in family_line(ROWS, youngest)]
    assert len(line) > 3 and line[0].parent is None and line[-1].key == youngest
    assert all(two.parent == one.key for one, two in zip(line, line[1:]))
    keys = [row[0].key for row in ROWS[-5:]]
    found = [c.key for c, _ in family(ROWS, keys)]
    expected = set(keys)
    while more := {by_key[k].parent for k in expected} - expected - {None}:
        expected |= more
    assert found == sorted(expected)
    loop = [(Candidate(1, (), "x", b"", 0, parent=1), {})]  # a damaged store
    assert len(family_line(loop, 1)) == 1


def test_who_only_reads_changes_nothing(tmp_path):
    with pytest.raises(UserError, match=FILE):
        Store(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())
    written = Store(tmp_path, "a space")
    for row in ROWS[:3]:
        written.add(*row, next=7)
    before = (tmp_path / FILE).read_bytes()
    read = Store(tmp_path, read_only=True)
    assert list(read.candidates()) == ROWS[:3] and read.get("next") == 7
    with pytest.raises(UserError, match="readonly"):
        read.set("next", 8)
    assert (tmp_path / FILE).read_bytes() == before
    written.add(*ROWS[3])  # which a reader does not keep from writing
    assert len(list(read.candidates())) == 4
    with pytest.raises(sqlite3.OperationalError):
        read.db.execute("DELETE FROM candidates")
