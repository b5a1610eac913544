"""A search of several workers is drawn again from its seed and the order of completion."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evonorm_runs.errors import UserError
from evonorm_search.config import load_config
from evonorm_search.replay import replay
from evonorm_search.search import Search, run
from evonorm_search.store import Store

ROOT = Path(__file__).parents[2]
SETTINGS = "DEVICE cpu CANDIDATES 50 EVOLUTION.START 5 EVOLUTION.TOURNAMENT 0.4 EVOLUTION.WINDOW 20"


class Workers:
    """Two workers whose results are a function of the formula; a seed says which take longer."""

    room = 2

    def __init__(self, seed):
        self.seed, self.pool = seed, ThreadPoolExecutor(2)

    def submit(self, norm_act):
        return self.pool.submit(self.work, norm_act)

    def work(self, norm_act):
        time.sleep(0.02 * random.Random(f"{self.seed} {norm_act}").choice([0, 1]))
        score = random.Random(norm_act).random()
        stage, scores = ("trained", [score, 1 - score]) if score > 0.2 else ("quality", [])
        return {"stage": stage, "quality": [], "worst": [], "scores": scores}

    def lost(self, error):
        return False

    def close(self):
        self.pool.shutdown()


@pytest.fixture
def search(tmp_path):
    """search(seed of the order) runs one, in two parts."""

    def go(order):
        folder = tmp_path / str(order)
        file = str(ROOT / "configs/search/small_s.yaml")
        for resume, more in ((False, ()), (True, ("CANDIDATES", "51"))):
            cfg = load_config(file, [*SETTINGS.split(), *more, "OUTPUT_DIR", str(folder)])
            run(cfg, resume, workers=Workers(order))
        return cfg, folder

    return go


def test_the_same_population(search):
    formulas = []
    for order in (1, 2):
        cfg, folder = search(order)
        store = Store(folder)
        line = replay(store)
        kept = list(Search(cfg, store).population)
        assert len(kept) == 20 and f"population of {len(kept)}" in line
        formulas.append([c.formula for c, _ in store.candidates()])
        parents = [c.parent for c, _ in store.candidates() if c.parent is not None]
        assert len(parents) > 3
    assert formulas[0] != formulas[1]  # the order matters


@pytest.mark.parametrize(
    "change, line",
    [
        ("graph = (SELECT graph FROM candidates WHERE key = {other})", "is .*, but its draw is "),
        ("formula = 'tanh(x)'", "has the formula tanh.x., but another graph"),
        ("parent = -1", "has the parent -1, but its draw another"),
        ("drawn_after = 0", "was drawn when 0 had ended, unlike the others"),
        ("finished = -finished - 9", "ended before it was drawn"),
    ],
)
def test_a_changed_store_is_noticed(search, change, line):
    _, folder = search(1)
    found = [c for c, _ in Store(folder).candidates()]
    one, other = max(c for c in found if c.parent is not None), found[0].key
    with sqlite3.connect(folder / "search.sqlite") as plain:
        text = change.format(other=other)
        plain.execute(f"UPDATE candidates SET {text} WHERE key = {one.key}")
    with pytest.raises(UserError, match=f"candidate {one.key} {line}") as error:
        replay(Store(folder))
    assert "\n" not in str(error.value)


def test_changed_scores_are_noticed(search):
    """Where all scores are turned round, tournaments have other winners."""
    _, folder = search(1)
    with sqlite3.connect(folder / "search.sqlite") as plain:
        worst = '{"stage": "trained", "quality": [], "worst": [], "scores": [0.0, 0.0]}'
        plain.execute("UPDATE candidates SET result = ? WHERE finished % 2 = 0", [worst])
    with pytest.raises(UserError, match="candidate .*; the file was changed"):
        replay(Store(folder))


def test_the_command(search):
    _, folder = search(1)
    command = [sys.executable, str(ROOT / "tools/search_layers.py"), "replay", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(list(Store(folder).candidates()))} candidates drawn again")
