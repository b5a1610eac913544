"""A search's folder from an exported table: the same search, which can be gone on with."""

from __future__ import annotations

import json
import random
from concurrent.futures import Future
from pathlib import Path

import pytest

from evonorm_runs.errors import UserError
from evonorm_search.config import load_config
from evonorm_search.rebuild import rebuild
from evonorm_search.search import run
from evonorm_search.store import Store
from evonorm_search.table import read_table, rows, write_table

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/results/search.jsonl.gz"
SETTINGS = "SEED 3 SPACE.BATCH True EVOLUTION.WINNER average".split()
UNTOLD = ["EVOLUTION.TOURNAMENT", "0.4", "DEVICE", "cpu"]  # what the table does not tell


class Made:
    """One worker whose result is a function of the formula."""

    room = 1

    def submit(self, norm_act):
        score = random.Random(norm_act).random()
        found = {"quality": [score], "worst": [], "scores": [], "curves": [[2.3]], "seconds": 1.0}
        if score > 0.2:
            found |= {"worst": [1.0] * 3, "scores": [score, 1 - score, 0.5], "curves": [[1.0]] * 3}
        future = Future()
        future.set_result({"stage": "trained" if score > 0.2 else "quality", **found})
        return future

    def lost(self, error):
        return False

    def close(self):
        pass


def search(folder, count, resume=False):
    settings = [*SETTINGS, *UNTOLD, "CANDIDATES", str(count), "OUTPUT_DIR", str(folder)]
    return run(load_config(None, settings), resume, workers=Made())


def all_of(store):
    return list(store.candidates()), store.get("counts"), store.get("next")


def test_the_rebuilt_search_is_the_same_and_goes_on_the_same(tmp_path):
    first = search(tmp_path / "first", 30)
    assert sum(candidate.parent is not None for candidate, _ in first.candidates()) > 5
    write_table([tmp_path / "first"], tmp_path / "table.jsonl")
    again = rebuild(tmp_path / "table.jsonl", "first", tmp_path / "again", UNTOLD)
    assert all_of(again) == all_of(first)
    gone_on = [all_of(search(tmp_path / name, 34, resume=True)) for name in ("first", "again")]
    assert gone_on[0] == gone_on[1]


@pytest.mark.slow
def test_the_published_search_is_drawn_again_as_it_was(tmp_path):
    """The draws of this version are those of the version that searched."""
    rebuild(PUBLISHED, "evolution_b", tmp_path / "evolution_b", ["DEVICE", "cpu"])
    published = [row for row in read_table(PUBLISHED) if row["search"] == "evolution_b"]
    found = json.loads(json.dumps(list(rows([tmp_path / "evolution_b"]))))
    # What shares a result and was drawn after the last evaluation is drawn again when it goes on.
    assert found == published[: len(found)]
    assert all(row["same_as"] is not None for row in published[len(found) :])


def test_a_search_that_trains_equal_layers_again_has_all_of_them(tmp_path):
    """As the paper's procedure does, with no sieve for them."""
    more = ["SIEVE.DUPLICATES", "False", "SPACE.NODES", "2"]
    settings = [
        *SETTINGS,
        *more,
        *UNTOLD,
        "CANDIDATES",
        "30",
        "OUTPUT_DIR",
        str(tmp_path / "first"),
    ]
    first = run(load_config(None, settings), workers=Made())
    formulas = [candidate.formula for candidate, _ in first.candidates()]
    assert len(set(formulas)) < len(formulas)
    write_table([tmp_path / "first"], tmp_path / "table.jsonl")
    again = rebuild(tmp_path / "table.jsonl", "first", tmp_path / "again", [*UNTOLD, *more[:2]])
    assert all_of(again) == all_of(first)


def test_bad_input_is_one_line(tmp_path):
    search(tmp_path / "first", 20)
    table = tmp_path / "table.jsonl"
    write_table([tmp_path / "first"], table)
    with pytest.raises(UserError, match="no search that is named 'last'; it has first"):
        rebuild(table, "last", tmp_path / "new")
    with pytest.raises(UserError, match="table.jsonl: first draws .* again, which the table"):
        rebuild(table, "first", tmp_path / "other", ["SEED", "4"])
    (tmp_path / "cut.jsonl").write_bytes(table.read_bytes()[:-20])
    with pytest.raises(UserError, match="cut.jsonl: "):
        rebuild(tmp_path / "cut.jsonl", "first", tmp_path / "new")
    (tmp_path / "other.jsonl").write_text('{"search": "first", "accuracy": 0.5}\n')
    with pytest.raises(UserError, match="other.jsonl: a line is no row of a search: same_as"):
        rebuild(tmp_path / "other.jsonl", "first", tmp_path / "new")
    with pytest.raises(UserError, match="first"):
        rebuild(table, "first", tmp_path / "first")
    assert len(list(Store(tmp_path / "first").candidates())) >= 20
    assert not (tmp_path / "new").exists()
