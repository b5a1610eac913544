"""Reranking and the final test: which trainings, their means, what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evonorm_runs.errors import UserError
from evonorm_search import rerank as module
from evonorm_search.config import load_config
from evonorm_search.rerank import Job, jobs, read, run_jobs, summary, table, winners
from evonorm_search.rerank import test_jobs as final_jobs
from evonorm_search.store import Candidate, Store

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/search/rerank_small.yaml")
NETWORKS = ("ResNet-medium", "EfficientNet-medium")


def config(*overrides):
    return load_config(CONFIG, ["DEVICE", "cpu", "ANCHORS", str(NETWORKS), *overrides])


def pretended(job, *_):
    digest = hashlib.sha256(repr(job[:3]).encode()).digest()
    return {"accuracy": digest[0] / 256, "curve": [], "seconds": 0.0}


@pytest.fixture
def pretend(monkeypatch):
    """Trainings that take no time, in a thread; the list of those that were done."""
    done = []

    def work(job, *rest):
        done.append(job)
        return pretended(job, *rest)

    monkeypatch.setattr(module, "work", work)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    return done


def test_means_and_deviations():
    values = {
        Job("a", "one", 1, "val"): 0.5,
        Job("a", "one", 2, "val"): 0.6,
        Job("a", "two", 1, "val"): 0.9,
        Job("a", "two", 2, "val"): 0.8,
        Job("b", "one", 1, "val"): 0.75,
        Job("b", "one", 1, "val", 2): 0.25,
    }
    b, a, small = summary(values)
    assert (b.norm_act, b.images, b.mean, b.networks) == ("b", 0, 75.0, {"one": (75.0, 0.0)})
    assert (small.norm_act, small.images, small.mean) == ("b", 2, 25.0)
    assert a.mean == pytest.approx(70.0)
    for network, mean in (("one", 55.0), ("two", 85.0)):  # of two, half their distance by sqrt(2)
        assert a.networks[network] == pytest.approx((mean, 10 / 2**0.5))
    turned = b._replace(networks={"two": (60.0, 1.0), "one": (75.0, 0.0)})
    head, _, first, second = table([a, turned]).splitlines()
    assert head == "| layer | images per worker | mean | one | two |"
    assert first == "| `a` | all | 70.00 | 55.0 ± 7.1 | 85.0 ± 7.1 |"
    assert second == "| `b` | all | 75.00 | 75.0 ± 0.0 | 60.0 ± 1.0 |"


def test_which_trainings_there_are():
    found = jobs(["a", "b"], NETWORKS, 3, "val")
    assert len(set(found)) == 12 and [job.seed for job in found] == [1] * 4 + [2] * 4 + [3] * 4
    final = final_jobs(["EvoNormS0", "BN-ReLU", "EvoNormS0", "x / std_b(x)"], NETWORKS, 3, 2)
    assert len(final) == len(set(final)) == 3 * 2 * 3 + 2 * 2 * 3
    small = {job.norm_act for job in final if job.images == 2}
    assert small == {"BN-ReLU", "x / std_b(x)"}  # all others do not depend on the batch
    assert not {job.seed for job in final} & {job.seed for job in found}
    assert {job.part for job in final} == {"test"}


def jobs_in(folder):
    return [Job(*(line[key] for key in Job._fields)) for line in read(folder)]


def test_what_is_done_is_not_done_again(pretend, tmp_path):
    layers = ["tanh(x)", "x / rms_g(x)", "EvoNormS0", "EvoNormS1"]
    cfg, wanted = config(), jobs(layers, NETWORKS, 2, "val")
    with pytest.raises(UserError, match="not reranked with these settings"):
        winners(cfg, tmp_path)
    run_jobs(cfg, tmp_path, wanted[:5])
    *kept, lost = jobs_in(tmp_path)  # trainings that have ended are written in any order
    assert sorted([*kept, lost]) == sorted(wanted[:5])
    file = tmp_path / "rerank.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # as a kill leaves it
    rows = run_jobs(cfg, tmp_path, wanted, at_once=2)
    assert sorted(pretend) == sorted([*wanted, lost])
    assert jobs_in(tmp_path)[:4] == kept
    right = {job: pretended(job)["accuracy"] for job in wanted}
    assert rows == summary(right) == run_jobs(cfg, tmp_path, wanted)
    assert len(pretend) == len(wanted) + 1
    assert winners(cfg, tmp_path) == [row.norm_act for row in rows][:3]
    run_jobs(cfg, tmp_path, jobs(["x / std_g(x)"], NETWORKS, 1, "val"))  # not all seeds yet
    assert winners(cfg, tmp_path) == [row.norm_act for row in rows][:3]
    other = config("PROXY.STEPS", "7")  # another task has results of its own
    run_jobs(other, tmp_path, wanted[:1])
    assert len(pretend) == len(wanted) + 4
    assert {line["task"]["steps"] for line in read(tmp_path)} == {cfg.PROXY.STEPS, 7}


@pytest.mark.slow
def test_the_commands(tmp_path):
    store = Store(tmp_path, "space")
    for key, (text, score) in enumerate([("x / rms_g(x)", 0.5), ("tanh(x)", 0.7), ("x", 0.2)]):
        graph = (("tanh", (0,)),)
        result = {"stage": "trained", "scores": [score]}
        store.add(Candidate(key, graph, text, bytes([key]), key), result)

    def call(*arguments):
        command = [sys.executable, str(ROOT / "tools/search_layers.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    options = ["--config-file", CONFIG, "--seeds", "1", str(tmp_path)]
    short = ["DEVICE", "cpu", "PROXY.STEPS", "2", "ANCHORS", "('MobileNetV2-small',)"]
    early = call("test", *options, *short)
    assert early.returncode == 2 and "not reranked" in early.stderr
    done = call("rerank", "--top", "2", *options, *short)
    assert done.returncode == 0, done.stderr
    assert [line["norm_act"] for line in read(tmp_path)] == ["tanh(x)", "x / rms_g(x)"]
    done = call("test", *options, *short)
    assert done.returncode == 0, done.stderr
    lines = [line for line in read(tmp_path) if line["part"] == "test"]
    names = {"tanh(x)", "x / rms_g(x)", *module.KNOWN}
    assert {line["norm_act"] for line in lines} == names
    assert {line["norm_act"] for line in lines if line["images"]} == {
        "BN-ReLU",
        "BN-Swish",
        "EvoNormB0",
    }
    assert len(done.stdout.splitlines()) >= len(lines)
    json.loads((tmp_path / "rerank.jsonl").read_text().splitlines()[0])
    for wrong in (["--top", "0"], ["--seeds", "0"]):
        refused = call("rerank", "--config-file", CONFIG, *wrong, str(tmp_path))
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
