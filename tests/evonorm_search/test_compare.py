"""Surveys and comparisons of searches, against numbers written down and numpy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from evonorm_runs.errors import UserError
from evonorm_search import search as search_module
from evonorm_search import survey as module
from evonorm_search.compare import Point, Search, at, compare, method, points_of, read, table
from evonorm_search.config import load_config
from evonorm_search.store import Candidate, Store
from evonorm_search.survey import statistics, survey

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/search/small_s.yaml")


def row(key, scores=(), stage="trained", same_as=None):
    result = {"stage": stage, "quality": [0.3], "worst": [], "scores": list(scores)}
    candidate = Candidate(key, (("tanh", (0,)),), f"{key} * x", b"", key, same_as=same_as)
    return candidate, {**result, "seconds": 10.0}


def test_points_have_the_computing_of_all_candidates():
    rows = [row(0, [0.2, 0.4]), row(1, stage="quality"), row(2, [0.9, 0.9], same_as=0)]
    rows += [row(3, [0.7, 0.7])]
    one, two = points_of(rows)
    assert one == Point(1, 10.0, pytest.approx(0.3), 0.0)
    assert two == Point(3, 30.0, pytest.approx(0.5), pytest.approx(0.2))
    assert at([one, two], "count", 2) is one and at([one, two], "seconds", 30.0) is two
    assert at([one, two], "seconds", 9.0) is None


def test_methods_are_compared_where_all_of_them_are():
    def made(name, seed, count, seconds, *points):
        points = [Point(*point, 0.0) for point in points]
        return Search(f"{name}{seed}", name, seed, count, seconds, points)

    searches = [
        made("a", 0, 20, 40.0, (1, 1.0, 0.1), (10, 10.0, 0.5), (20, 40.0, 0.9)),
        made("a", 1, 10, 19.0, (2, 9.0, 0.3), (9, 18.0, 0.7)),
        made("b", 0, 14, 22.0, (7, 3.0, 0.2), (12, 20.0, 0.4)),
    ]
    found = compare(searches, "count", 2)  # the shortest has 10 candidates
    assert [(r["method"], r["limit"], r["seeds"]) for r in found] == [
        *(("a", 5.0, 2), ("a", 10.0, 2)),
        *(("b", 5.0, 1), ("b", 10.0, 1)),
    ]
    means = [r["mean"] for r in found]
    assert means == [pytest.approx(0.2), pytest.approx(0.6), None, pytest.approx(0.2)]
    assert found[0]["deviation"] == pytest.approx(0.1)
    assert [r["limit"] for r in compare(searches, "seconds", 1)] == [19.0, 19.0]
    text = table(searches, "count").splitlines()
    assert text[-2].endswith("2   a") and "60.00 ± 10.00" in text[-2]
    assert text[-1].endswith("1   b")


def test_the_name_of_a_method():
    def named(*overrides):
        return method(load_config(CONFIG, ["DEVICE", "cpu", *map(str, overrides)]))

    assert named() == "S: evolution, pareto"
    assert named("EVOLUTION.WINNER", "average", "SPACE.BATCH", True) == "B: evolution, average"
    both = ("PROXY.QUALITY", 0.0, "PROXY.STABILITY_STEPS", 0)
    assert named("EVOLUTION.RANDOM_CHILDREN", 1.0, *both) == (
        "S: random search, without quality test, without stability test"
    )


def test_the_numbers_of_a_survey():
    scores = np.random.default_rng(0).uniform(0.2, 0.9, (30, 2))
    rows = [row(i, values) for i, values in enumerate(scores.tolist())]
    rows += [row(50, stage="quality"), row(51, [1.0, 1.0], same_as=1), row(52, stage="stability")]
    found = statistics(rows, ["one", "two"], [0.5, 0.95])
    assert found["stages"] == {"quality": 1, "stability": 1, "trained": 30}
    np.testing.assert_allclose(found["correlation"], np.corrcoef(scores.T))
    assert found["better"] == {"one": int((scores[:, 0] > 0.5).sum()), "two": 0}
    for i, name in enumerate(("one", "two")):
        counts = np.histogram(scores[:, i], bins=found["bins"], range=(0, 1))[0]
        assert found["histograms"][name] == counts.tolist()
    text = module.table(found)
    assert "30 trained" in text and "95.0" in text
    few = statistics(rows[:1], ["one", "two"], [0.5, 0.5])
    assert few["correlation"] == [[None, None], [None, None]]
    assert "trained" in module.table(statistics([], ["one", "two"], [0.5, 0.5]))


class Pretended:
    """Workers whose results are a function of the formula."""

    room = 1

    def submit(self, formula):
        values = hashlib.sha256(formula.encode()).digest()[:3]
        future = Future()
        future.set_result(row(0, [value / 256 for value in values])[1])
        return future

    def close(self):
        pass


def test_a_survey_is_a_search_of_random_layers(monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "_workers", lambda *_: Pretended())
    asked = []
    known = {"quality": [0.5] * 3, "scores": [0.6, 0.7, 0.8]}
    monkeypatch.setattr(module, "evaluate", lambda *a: asked.append(a) or known)
    cfg = load_config(CONFIG, ["DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    survey(cfg, 20)
    found = survey(cfg, 30)  # goes on
    assert len(asked) == 1 and list(found["known"].values()) == [0.6, 0.7, 0.8]
    assert found["stages"]["trained"] == 30
    assert json.loads((tmp_path / "survey.json").read_text()) == found
    store = Store(tmp_path, read_only=True)
    assert all(candidate.parent is None for candidate, _ in store.candidates())
    other = read(store)
    assert other.method == "S: random search" and other.points[-1].count == 30
    tool = [sys.executable, str(ROOT / "tools/search_layers.py")]
    file = tmp_path / "figure_10.json"
    command = [*tool, "compare", str(tmp_path), str(tmp_path), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("S: random search") == 2
    kept = json.loads(file.read_text())
    assert [len(search["points"]) for search in kept["searches"]] == [30, 30]
    key = next(candidate.key for candidate, _ in store.candidates())
    picture = tmp_path / "graph.svg"
    command = [*tool, "show", str(tmp_path), str(key), "-o", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MobileNetV2-small: 30.0 % early" in done.stdout
    assert picture.read_text().startswith("<svg")


def test_a_search_without_candidates_is_refused(tmp_path):
    store = Store(tmp_path, "space")
    store.set("config", load_config(CONFIG, ["DEVICE", "cpu"]).dump())
    with pytest.raises(UserError, match="no candidate was evaluated yet"):
        read(store)


def test_a_search_that_found_nothing_is_compared(tmp_path):
    store = Store(tmp_path, "space")
    store.set("config", load_config(CONFIG, ["DEVICE", "cpu"]).dump())
    store.add(*row(0, stage="quality"))
    search = read(store)
    assert (search.count, search.seconds, search.points) == (1, 10.0, [])
    assert table([search], "count").splitlines()[-1].split()[:5] == ["-"] * 5
