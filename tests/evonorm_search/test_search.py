"""The search: its store, going on after a kill, lost processes, and the command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from evonorm import check_norm_act
from evonorm_runs.errors import UserError
from evonorm_runs.stop import Stopped
from evonorm_search import search as module
from evonorm_search.config import load_config
from evonorm_search.search import run
from evonorm_search.store import Candidate, Store, best

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/search/small_s.yaml")
# Trainings of two steps: what they find does not matter here.
SHORT = (
    "DEVICE cpu CANDIDATES 6 PROXY.STEPS 2 PROXY.QUALITY_STEPS 1 PROXY.QUALITY 0.0 "
    "PROXY.STABILITY_STEPS 1 EVOLUTION.START 2 EVOLUTION.TOURNAMENT 0.5 ANCHORS ('ResNet-small',)"
).split()


def config(folder, *overrides):
    return load_config(CONFIG, [*SHORT, "OUTPUT_DIR", str(folder), *map(str, overrides)])


def pretended(norm_act):
    """Scores that are a function of the formula; one in three is rejected."""
    digest = hashlib.sha256(norm_act.encode()).digest()
    if digest[0] % 3 == 0:
        return {"stage": "quality", "quality": [0.1], "worst": [], "scores": []}
    return {"stage": "trained", "quality": [0.5], "worst": [1.0], "scores": [digest[1] / 256]}


class Threads:
    """Workers that pretend, in threads."""

    def __init__(self, function, at_once):
        self.room, self.pool = at_once, ThreadPoolExecutor(at_once)

    def submit(self, norm_act):
        return self.pool.submit(pretended, norm_act)

    def lost(self, error):
        return isinstance(error, BrokenProcessPool)

    def close(self):
        self.pool.shutdown()


@pytest.fixture
def pretend(monkeypatch):
    """Evaluations that take no time."""
    monkeypatch.setattr(module, "Processes", Threads)


def rows(folder):
    """What is in the store, without seconds."""
    found = []
    for candidate, result in Store(folder).candidates():
        result.pop("seconds", None)
        found.append((candidate, result))
    return found


def test_a_search_is_a_function_of_its_seed(pretend, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config(tmp_path / name, "CANDIDATES", 60, "SEED", seed))
    a, b, c = (rows(tmp_path / name) for name in "abc")
    assert a == b != c
    assert sum(candidate.same_as is None for candidate, _ in a) == 60
    assert any(candidate.parent is not None for candidate, _ in a)
    by_key = {candidate.key: (candidate, result) for candidate, result in a}
    shared = [(one, result) for one, result in a if one.same_as is not None]
    assert shared
    for one, result in shared:
        assert result == by_key[one.same_as][1]
    for candidate, _ in a:
        check_norm_act(candidate.formula)
        assert "_b(" not in candidate.formula  # the S space


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_search_that_stops_anywhere_goes_on_alike(pretend, tmp_path, monkeypatch, after):
    run(config(tmp_path / "whole", "CANDIDATES", 30))
    add, count = Store.add, 0

    def dies(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        add(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path / "killed", "CANDIDATES", 30))
    assert len(rows(tmp_path / "killed")) == after
    run(config(tmp_path / "killed", "CANDIDATES", 30), resume=True)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    counts = (Store(tmp_path / name).get("counts") for name in ("whole", "killed"))
    assert next(counts) == next(counts)


def test_several_at_once(pretend, tmp_path):
    run(config(tmp_path, "CANDIDATES", 40), at_once=4)
    found = rows(tmp_path)
    assert sum(candidate.same_as is None for candidate, _ in found) == 40
    assert len({candidate.key for candidate, _ in found}) == len(found)
    run(config(tmp_path, "CANDIDATES", 45), resume=True, at_once=3)
    assert rows(tmp_path)[: len(found)] == found


class Loses(Threads):
    """Workers the first of which are lost."""

    first = 0

    def submit(self, norm_act):
        if Loses.first > 0:
            Loses.first -= 1
            future = Future()
            future.set_exception(BrokenProcessPool("killed"))
            return future
        return super().submit(norm_act)


@pytest.mark.parametrize("lost, ends", [(2, True), (3, False)])
def test_a_lost_process_is_tried_again(pretend, tmp_path, monkeypatch, lost, ends):
    monkeypatch.setattr(module, "Processes", Loses)
    monkeypatch.setattr(Loses, "first", lost)
    if ends:
        run(config(tmp_path))
        run(config(tmp_path / "whole"))
        assert rows(tmp_path) == rows(tmp_path / "whole")
    else:
        with pytest.raises(UserError, match="was lost 3 times"):
            run(config(tmp_path))


def test_refusals(pretend, tmp_path):
    run(config(tmp_path))
    before = rows(tmp_path)
    with pytest.raises(
        UserError, match=r"holds a run \(search.sqlite\): continue it with --resume"
    ):
        run(config(tmp_path))
    with pytest.raises(UserError, match="is of another space, .*batch=False.*batch=True"):
        run(config(tmp_path, "SPACE.BATCH", True), resume=True)
    with pytest.raises(UserError, match="is of a search with other settings"):
        run(config(tmp_path, "PROXY.LR", 0.5), resume=True)
    assert rows(tmp_path) == before
    with sqlite3.connect(tmp_path / "search.sqlite") as plain:
        plain.execute("UPDATE candidates SET graph = '[[\"relu\",[0]]]'")
    with pytest.raises(UserError, match="search.sqlite: candidate .*: a graph has 1 operation"):
        run(config(tmp_path), resume=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/search.sqlite").write_text("no database, but a text that is long enough" * 9)
    with pytest.raises(UserError, match="bad/search.sqlite: file is not a database"):
        run(config(tmp_path / "bad"), resume=True)


@pytest.mark.parametrize(
    "overrides, line",
    [
        (("SPACE.NODES", 0), "SPACE, EVOLUTION: a graph has 0 operation nodes"),
        (("EVOLUTION.WINNER", "best"), "winner is 'best'; known are pareto, average"),
        (("EVOLUTION.TOURNAMENT", 0.0), "tournament is 0.0"),
        (("PROXY.SCHEDULE", "linear"), "PROXY.SCHEDULE is 'linear'; known are constant, cosine"),
        (("PROXY.LR", 0.0), "PROXY.LR is 0.0, but should be more than 0"),
        (("ANCHORS", "('VGG',)"), "ANCHORS: no anchor is named 'VGG'; known are ResNet50-CIFAR"),
        (("ANCHORS", "()"), "ANCHORS is empty"),
        (("CANDIDATES", 0), "CANDIDATES is 0, but should be more than 0"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(tmp_path, overrides, line):
    with pytest.raises(UserError) as error:
        config(tmp_path, *overrides)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_the_store_writes_a_result_and_the_state_together(tmp_path):
    store = Store(tmp_path, "space")
    graph = (("tanh", (0,)),)
    one = Candidate(3, graph, "tanh(x)", b"1", 0)
    store.add(one, {"stage": "trained", "scores": [0.5, 0.7]}, next=4)
    with pytest.raises(UserError, match="search.sqlite: UNIQUE constraint failed"):
        store.add(one, {"stage": "trained", "scores": [0.9, 0.9]}, next=9)
    other = Candidate(1, graph, "abs(x)", b"2", 1, parent=3)
    store.add(other, {"stage": "trained", "scores": [0.6, 0.8]}, next=5)
    again = Store(tmp_path)
    assert again.get("next") == 5 and again.get("none", 7) == 7
    assert [candidate for candidate, _ in again.candidates()] == [one, other]
    assert [candidate for candidate, _ in best(again, 1)] == [other]
    with sqlite3.connect(tmp_path / "search.sqlite") as plain:
        assert plain.execute("SELECT formula FROM candidates ORDER BY key").fetchall() == [
            ("abs(x)",),
            ("tanh(x)",),
        ]


def test_a_full_disk_is_one_line_and_loses_nothing(pretend, tmp_path, monkeypatch):
    run(config(tmp_path / "whole", "CANDIDATES", 40))
    opened = Store.__init__

    def small(self, *args, **kwargs):
        opened(self, *args, **kwargs)
        self.db.execute("PRAGMA max_page_count = 8")  # as SQLite meets a full disk

    with monkeypatch.context() as patch:
        patch.setattr(Store, "__init__", small)
        with pytest.raises(UserError, match="search.sqlite: database or disk is full$"):
            run(config(tmp_path / "full", "CANDIDATES", 40))
    kept, whole = (rows(tmp_path / name) for name in ("full", "whole"))
    assert 0 < len(kept) < len(whole) and kept == whole[: len(kept)]
    run(config(tmp_path / "full", "CANDIDATES", 40), resume=True)
    assert rows(tmp_path / "full") == whole


class Endless(Threads):
    """Workers that never end until they are closed."""

    closed = False

    def submit(self, norm_act):
        return Future()

    def close(self):
        Endless.closed = True


def test_sigterm_does_not_wait_for_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Processes", Endless)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(module, "write_start", lambda *args: timer.start())  # once it is listening
    with pytest.raises(Stopped, match="stopped by SIGTERM; continue with --resume"):
        run(config(tmp_path))
    assert Endless.closed


@pytest.mark.slow
def test_a_search_killed_by_sigkill_goes_on_alike(tmp_path):
    """Real trainings, each in a process of its own."""
    tool = str(ROOT / "tools/search_layers.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name, *flags):
        options = ["--config-file", CONFIG, *flags, *SHORT, "OUTPUT_DIR", str(tmp_path / name)]
        return [sys.executable, tool, "run", *options]

    done = subprocess.run(command("whole"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "graphs drawn" in done.stdout
    process = subprocess.Popen(command("killed"), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    store = tmp_path / "killed/search.sqlite"
    while not store.exists() or len(rows(tmp_path / "killed")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(
        command("killed", "--resume"), env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_what_was_found_is_exported(pretend, tmp_path):
    run(config(tmp_path / "run"))
    command = [sys.executable, str(ROOT / "tools/search_layers.py")]
    out = tmp_path / "a.jsonl"
    for _ in range(2):
        done = subprocess.run(
            [*command, "export", str(tmp_path / "run"), str(out)], capture_output=True, text=True
        )
    assert done.returncode == 2 and "File exists" in done.stderr  # nothing is overwritten
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["formula"] for line in lines] == [c.formula for c, _ in rows(tmp_path / "run")]
    shown = subprocess.run(
        [*command, "best", str(tmp_path / "run"), "--top", "1"], capture_output=True, text=True
    )
    ((candidate, _),) = best(Store(tmp_path / "run"), 1)
    assert shown.returncode == 0 and shown.stdout.splitlines()[-1].endswith(candidate.formula)
    nothing = subprocess.run([*command, "best", str(tmp_path)], capture_output=True, text=True)
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1
