"""tools/benchmark_search.py, on few graphs."""

from __future__ import annotations

import json

import pytest
import torch

from evonorm_repro.benchmark import search as benchmark
from evonorm_search.config import get_cfg
from evonorm_search.data import Source, load_data
from evonorm_search.space import Space
from evonorm_search.store import Candidate, Store


@pytest.fixture(autouse=True)
def denormals():
    """As they were before, for other tests."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def search(tmp_path):
    """A store with three candidates; the third shares the result of the first."""
    folder = tmp_path / "search"
    folder.mkdir()
    store = Store(folder, repr(Space(batch=False)))
    counts = dict.fromkeys(benchmark.STAGES, 0) | {"new": 2, "values seen before": 1}
    for key, seconds, same_as in ((0, 10.0, None), (1, 30.0, None), (2, 10.0, 0)):
        stage = "trained" if same_as is None else "quality"
        candidate = Candidate(key, (("neg", (0,)),), "-x", b"", 0, None, same_as)
        store.add(candidate, {"stage": stage, "seconds": seconds}, counts=counts)
    store.db.close()
    return folder


def test_each_part_writes_its_file(call, search, tmp_path):
    out = tmp_path / "out"
    few = ("--graphs", 60, "--formulas", 2, "--repeats", 1, "--candidates", 1000, "--cores", 2)
    status, printed, _ = call("--store", search, "-o", out, *few)
    assert status == 0
    found = {}
    for part in ("sift", "step", "driver", "rate"):
        record = json.loads((out / f"speed_{part}.json").read_text())
        assert record["command"].startswith("python tools/benchmark_search.py --store")
        found[part] = record["results"]
    for result in found["sift"].values():
        assert result["per_second"] > 0
        assert sum(result["counts"].values()) == 61  # one that makes the fixed inputs
    assert set(found["step"]) == set(get_cfg().ANCHORS)
    for result in found["step"].values():
        assert len(result["ratios"]) == 2
        low, high = sorted(result["ratios"].values())
        assert low <= result["median_ratio"] <= high
    assert [row["candidates"] for row in found["driver"]] == [1000]
    # Two candidates of 20 s each on the mean; a third that would have taken 10 s.
    rate = found["rate"]
    assert (rate["evaluated"], rate["per_hour"], rate["shared_seconds"]) == (2, 360, 10)
    assert rate["shared_of_all_seconds"] == pytest.approx(10 / 50)
    assert rate["duplicates_of_new_and_seen"] == pytest.approx(1 / 3)
    assert "360 candidates an hour on 2 cores; sharing results saved 20 %" in printed


def test_a_step_on_a_gpu_is_counted():
    cfg = get_cfg()
    cfg.ANCHORS = ("MobileNetV2-small",)
    row = benchmark.on_a_gpu(cfg, load_data(Source()), ["tanh(x)"])["anchors"]["MobileNetV2-small"]
    # The first convolution and its gradient by the weight, at 64 images of 16x16 and 16 channels.
    assert row["flops"] > 2 * (2 * 64 * 256 * 27 * 16)
    assert row["kernels"] > 2 * 11  # a convolution or linear layer each, forward and backward
    assert row["alone_ms"] >= row["shared_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speed",), "'speed' is no part of a search; known are sift, step, driver, rate"),
        (("rate",), "rate takes a search: name its OUTPUT_DIR with --store"),
        (("rate", "--store", "nowhere"), "--store nowhere holds no search"),
        (("sift", "--graphs", 0), "--graphs is 0, but should be 1 at least"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("benchmark_search.py: ")
    assert message in err
    assert err.count("\n") == 1


def test_nothing_is_overwritten(call, tmp_path):
    file = tmp_path / "speed_sift.json"
    file.write_text("kept")
    status, _, err = call("sift", "-o", tmp_path)
    assert status == 2
    assert f"{file} exists" in err
    assert file.read_text() == "kept"
