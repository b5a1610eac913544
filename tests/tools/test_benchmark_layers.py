"""tools/benchmark_layers.py and tools/plot_benchmark.py, on shapes of milliseconds."""

from __future__ import annotations

import json
import math
from argparse import Namespace

import plot_benchmark
import pytest
import torch

from evonorm import ops
from evonorm_repro.benchmark import layers as tool

TINY = (2, 64, 4, 4)
LAYERS = {"copy", "S0 reference", "B0 reference", "GN + ReLU", "BN + ReLU"}
PASSES = {"forward", "forward + backward"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(tool, "SHAPES", {"mask-rcnn-1": [TINY], "biggan-32": [TINY]})
    monkeypatch.setattr(tool, "GROWTH", [TINY, (4, *TINY[1:])])


def check_times(record):
    for r in record["results"]:
        low, high = r["quartiles_ms"]
        assert 0 < r["best_ms"] <= r["median_ms"] < math.inf
        assert 0 < low <= r["median_ms"] <= high < math.inf
        assert r["pass"] in PASSES
    for key in ("command", "device", "processor", "cores", "threads", "backends", "dtype"):
        assert record[key]
    assert record["versions"]["torch"] == torch.__version__


def test_measures_writes_and_draws(call, tiny, tmp_path):
    file, plot = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ("--shapes", "mask-rcnn-1", "biggan-32", "--repeats", 2, "--device", "cpu")
    status, out, _ = call(*arguments, "--dtype", "bfloat16", "--json", file, "--plot", plot)
    assert status == 0
    record = json.loads(file.read_text())
    check_times(record)
    layers = {
        model: {r["layer"] for r in record["results"] if r["model"] == model}
        for model in ("mask-rcnn-1", "biggan-32")
    }
    native = {f"{kind} native" for kind in ("S0", "B0") if "native" in ops.backends()["cpu"]}
    more = {"GN + SiLU", "BN + SiLU", "S0 timm", "B0 timm"}
    assert layers == {"mask-rcnn-1": LAYERS | native | more, "biggan-32": LAYERS | native}
    assert len(record["results"]) == 2 * sum(map(len, layers.values()))
    for norm in ("S0/GN", "B0/BN"):
        heads = [line for line in out.splitlines() if norm in line]
        assert len(heads) == 4  # two passes, conditional or not
        assert all(line.split()[0] in ("forward", "forward,") for line in heads)
    assert out.count("conditional") == 4
    assert plot.read_bytes().startswith(b"\x89PNG")


class Clock:
    """In place of a GPU, which is busy for `clocks` and takes 7 ms for a call, the host 5 ms."""

    def __init__(self, monkeypatch):
        self.now = self.free_at = 0.0  # of the host, and when the GPU has done what it was given
        monkeypatch.setattr(tool.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(tool, "_gibibyte", lambda device: torch.zeros(1))
        monkeypatch.setattr(torch.cuda, "_sleep", self.work)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))

    def work(self, clocks):
        self.free_at = max(self.now, self.free_at) + clocks / 1.7e9

    def call(self, x):
        self.now += 5e-3
        self.work(7e-3 * 1.7e9)


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = max(self.clock.now, self.clock.free_at)

    def query(self):
        return self.clock.now >= self.at

    def synchronize(self):
        self.clock.now = max(self.clock.now, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def test_a_gpus_time_has_none_of_the_hosts(monkeypatch):
    """The GPU is first kept busy for 2.5 ms, which is too short for the host, so once more."""
    clock = Clock(monkeypatch)
    x = Namespace(is_cuda=True, device="cuda")
    assert tool.seconds(clock.call, x) == (pytest.approx(7e-3), pytest.approx(5e-3))
    assert clock.free_at == pytest.approx(5e-3 + 7e-3 + 4 * tool.BUSY / 1.7e9 + 7e-3)


def test_growth(call, tiny, tmp_path):
    file, plot, again = (tmp_path / name for name in ("r.json", "a.svg", "b.svg"))
    arguments = ("--growth", "--repeats", 2, "--device", "cpu")
    status, out, _ = call(*arguments, "--json", file, "--plot", plot)
    assert status == 0
    record = json.loads(file.read_text())
    check_times(record)
    assert {r["model"] for r in record["results"]} == {"growth"}
    assert {r["layer"][:2] for r in record["results"]} == {"co", "S0", "B0", "GN", "BN"}
    first = record["results"][0]
    row = next(line for line in out.splitlines() if str(TINY) in line)
    head = next(line for line in out.splitlines() if "per element" in line)
    assert "forward + backward" in head
    elements, *ns = row.removeprefix(str(TINY)).split()
    assert float(elements) == pytest.approx(2048, rel=0.05)
    of_copy = next(
        r
        for r in record["results"]
        if (r["layer"], r["pass"], r["shape"]) == ("copy", "forward + backward", first["shape"])
    )
    assert float(ns[0]) == pytest.approx(of_copy["median_ms"] * 1e6 / 2048, abs=1e-3)
    assert call(file, "-o", again, tool=plot_benchmark)[0] == 0
    assert "<svg" in plot.read_text()
    assert "<svg" in again.read_text()


def test_growth_spans_1e5_to_1e8_elements():
    elements = [math.prod(shape) for shape in tool.GROWTH]
    assert elements == sorted(elements)
    assert elements[0] == pytest.approx(1e5, rel=0.01)
    assert elements[-1] == pytest.approx(1e8, rel=0.01)


@pytest.mark.parametrize("model, ch", [("biggan-32", 32), ("biggan-64", 32), ("biggan-128", 128)])
def test_shapes_are_those_of_the_generator(model, ch):
    from evonorm_gan.models.architecture import stage_channels

    seen = set()
    resolution = 4
    channels = stage_channels("G", int(model.removeprefix("biggan-")), ch)
    for wide, _ in zip(channels, channels[1:]):
        # Two blocks; in the second the size doubles after the second norm (Brock et al. 2019).
        seen |= {(wide, resolution), (wide // 4, resolution), (wide // 4, 2 * resolution)}
        resolution *= 2
    for _, c, h, w in tool.SHAPES[model]:
        assert h == w
        assert (c, h) in seen


def test_saved_bytes_of_known_layers():
    x = torch.randn(2, 32, 8, 8, requires_grad=True)
    assert tool.saved_bytes(tool.Copy(), x) == 0
    # The input, and mean and 1 / deviation of two samples' 4 groups; then the ReLU's output.
    norm = torch.nn.GroupNorm(4, 32)
    assert tool.saved_bytes(norm, x) == x.nbytes + 2 * 2 * 4 * 4
    both = torch.nn.Sequential(norm, torch.nn.ReLU())
    assert tool.saved_bytes(both, x) == 2 * x.nbytes + 2 * 2 * 4 * 4


def test_least_bytes():
    small, large = (2, 64, 8, 8), (2, 64, 512, 512)
    for shape in (small, large):
        once = 4 * math.prod(shape)
        assert tool.least_bytes("copy", shape, 4, "forward") == 2 * once
        assert tool.least_bytes("copy", shape, 4, "both") == 4 * once
    for kind in ("S0", "B0"):
        once = 4 * math.prod(small)
        assert tool.least_bytes(f"{kind} native", small, 4, "forward") == 2 * once
        assert tool.least_bytes(f"{kind} native", small, 4, "both") == 5 * once
        once = 4 * math.prod(large)  # x again for y; dy and x again for dx
        assert tool.least_bytes(f"{kind} native", large, 4, "forward") == 3 * once
        assert tool.least_bytes(f"{kind} native", large, 4, "both") == 8 * once


def test_conditional_layers_differ_by_sample():
    args = Namespace(device="cpu", compile=False, norms=None)
    layers = tool.contestants("biggan-32", (2, 32, 4, 4), torch.float32, args)
    x = torch.randn(1, 32, 4, 4).expand(2, -1, -1, -1)
    for name in layers.keys() - {"copy"}:
        layer = layers[name]
        assert {p.shape for p in layer.parameters()} >= {(2, 32)}
        with torch.no_grad():
            layer.weight[1] = 2.0
            first, second = layer(x)
        torch.testing.assert_close(second, 2 * first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "mask-rcnn-3"), "'mask-rcnn-3' is not known; known are biggan-128, "),
        (("--device", "tpu"), "--device is 'tpu'; known are cpu, cuda"),
        (("--repeats", 1), "--repeats is 1"),
        (("--threads", 0), "--threads is 0"),
        (("--json", "nowhere/r.json"), "there is no folder nowhere"),
        (("--norms", "EvoNormS9"), "unknown norm-act 'EvoNormS9': did you mean"),
        (("--norms", "x * y"), "'y'"),
        (("--norms", "FRN", "--growth"), "--norms goes without --growth"),
        (("--plot", "r.gif"), "r.gif: a plot's name should end in .png, .svg, .pdf"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("benchmark_layers.py: ")
    assert message in err
    assert err.count("\n") == 1


def test_nothing_is_overwritten(call, tmp_path):
    file = tmp_path / "kept.png"
    file.write_text("kept")
    for option in ("--json", "--plot"):
        status, _, err = call(option, file)
        assert (status, err) == (
            2,
            f"benchmark_layers.py: {file} exists: name another file, or remove it first\n",
        )
    assert file.read_text() == "kept"


def test_names_and_formulas_of_ones_own(call, tiny, tmp_path):
    file, formula = tmp_path / "r.json", "x * tanh(v1 * x) / std_g(x)"
    arguments = ("--shapes", "mask-rcnn-1", "biggan-32", "--repeats", 2, "--device", "cpu")
    status, out, _ = call(*arguments, "--norms", "FRN", formula, "--json", file)
    record = json.loads(file.read_text())
    check_times(record)
    assert status == 0
    assert {r["layer"] for r in record["results"]} == {"copy", "GN-ReLU", "BN-ReLU", "FRN", formula}
    own = [r for r in record["results"] if r["layer"] == formula]
    assert {(r["model"], r["pass"]) for r in own} == {
        (model, which) for model in ("mask-rcnn-1", "biggan-32") for which in PASSES
    }
    assert {r["saved_bytes"] for r in own} == {4 * math.prod(TINY)}  # the input only
    row = next(line for line in out.splitlines() if line.startswith(formula))
    of = {r["layer"]: r["median_ms"] for r in record["results"][: len(record["results"]) // 4]}
    assert row.split()[-4:-1] == [
        f"{of[formula]:.3f}",
        *(f"{of[formula] / of[n]:.2f}" for n in ("GN-ReLU", "BN-ReLU")),
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"results": [{"norm": "BN"}]}', None])
def test_only_results_are_drawn(call, tmp_path, text):
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    status, _, err = call(file, "-o", tmp_path / "x.png", tool=plot_benchmark)
    assert status == 2
    assert str(file) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
