"""The reranking at the paper's size: its split, its runs, its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_classifier.config import load_config
from evonorm_runs.errors import UserError
from evonorm_search.paper_size import NETWORKS, results, runs, split
from evonorm_search.store import Candidate, Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path):
    for name, count in (("cat", 20), ("dog", 35)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "train" / name / f"{i}.jpeg").write_text(f"{name} {i}")
    return tmp_path / "train"


def test_the_split(images, tmp_path):
    for out in ("a", "b", "a"):
        split(images, tmp_path / out)
    for name, counts in (("cat", (18, 2)), ("dog", (32, 3))):
        parts = [sorted((tmp_path / "a" / part / name).iterdir()) for part in ("train", "val")]
        assert tuple(map(len, parts)) == counts
        texts = [path.read_text() for part in parts for path in part]
        assert sorted(texts) == sorted(f"{name} {i}" for i in range(sum(counts)))  # each once
        again = sorted((tmp_path / "b" / "val" / name).iterdir())
        assert [path.name for path in again] == [path.name for path in parts[1]]
    with pytest.raises(UserError, match="it holds no folder of a class"):
        split(images / "cat", tmp_path / "c")


def test_runs_and_rows(tmp_path):
    layers = ["x / rms_g(x)", "EvoNormS0"]
    found = runs(layers, 2, tmp_path, ["SOLVER.AMP", "True"])
    assert len(found) == len({run.folder for run in found.values()}) == 2 * 2 * 3
    for job, run in found.items():
        overrides = [*run.settings, "DEVICE", "cpu"]
        cfg = load_config(str(ROOT / run.config), overrides)
        assert cfg.MODEL.NORM == job.norm_act and cfg.SEED == job.seed and cfg.SOLVER.AMP
        assert cfg.DATA.ROOT == str(tmp_path / "data")
    with pytest.raises(UserError, match="none was started"):
        results(found)
    for job, run in list(found.items())[:6]:  # the first seed
        run.folder.mkdir(parents=True)
        record = {"settings": [run.tool, run.config, *run.settings], "seconds": 1.0}
        (run.folder / "job.json").write_text(json.dumps(record))
        value = 75.0 if job.norm_act == "EvoNormS0" else 70.0
        lines = [{"step": 1, "accuracy": 5.0}, {"step": 2, "accuracy": value}]
        (run.folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    best, other = results(found)
    assert best.norm_act == "EvoNormS0" and best.mean == pytest.approx(75.0)
    assert other.mean == pytest.approx(70.0) and list(best.networks) == list(NETWORKS)


def test_the_command_prints_what_it_would_run(images, tmp_path):
    (tmp_path / "search").mkdir()
    store = Store(tmp_path / "search", "space")
    result = {"stage": "trained", "scores": [0.5]}
    store.add(Candidate(0, (("tanh", (0,)),), "tanh(x)", b"", 0), result)
    tool = [sys.executable, str(ROOT / "tools/search_layers.py")]
    folders = [str(tmp_path / "search"), str(images), str(tmp_path / "out")]
    done = subprocess.run([*tool, "paper", "--dry-run", *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("MODEL.NORM 'tanh(x)'" in line for line in lines)
    assert not (tmp_path / "out").exists()
