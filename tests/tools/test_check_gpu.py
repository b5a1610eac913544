"""tools/check_gpu.py without a GPU: two parts, the summary, a machine without packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evonorm_gan.config import load_config
from evonorm_repro.benchmark import bare, gpu_parts, part, ranks
from evonorm_repro.benchmark.gpu_summary import summarize

ROOT = Path(__file__).parents[2]


def test_two_parts(call, tmp_path):
    out = tmp_path / "out"
    parts = ("--part", "machine", "--part", "growth")
    status, printed, _ = call(out, "--device", "cpu", "--tiny", *parts)
    assert status == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "growth.json",
        "machine.json",
        "summary.md",
    ]
    for name in ("machine", "growth"):
        record = json.loads((out / f"{name}.json").read_text())
        assert record["ended"] == part.COMPLETE and record["tiny"]
        assert record["versions"]["torch"] == torch.__version__
        assert all(r["best_ms"] > 0 for r in record["results"])
    page = (out / "summary.md").read_text()
    assert printed.endswith(page + "\n") and "no figure in it means anything" in page
    assert page.count("growth (2, 64, 4, 4)") >= 4  # two layers, two passes
    assert "| tests | has not run |" in page


def layer(name, ms, host, least_bytes=None, shape=(2, 64, 200, 336), which="forward"):
    result = {"model": "mask-rcnn-2", "shape": shape, "pass": which, "layer": name}
    result |= {"median_ms": ms, "median_host_us": host}
    return result if least_bytes is None else {**result, "least_bytes": least_bytes}


def record(**more):
    about = {"device": "X", "cores": 1, "processor": "Y", "versions": {"torch": "0"}}
    return {**about, "left_out": [], "ended": "complete", **more}


def test_the_verdicts(tmp_path):
    results = []
    # 17 MB a map, and 0.02 MB. Ours reads once more than a copy in the first: (3/2) 1.0 / 1.9.
    for which in ("forward", "forward + backward"):
        for shape, more in (((2, 64, 200, 336), 1.5), ((2, 64, 9, 9), 1.0)):
            row = {"shape": shape, "which": which}
            results += [
                layer("copy", 1.0, 5, 1000, **row),
                layer("S0 triton", 1.9, 120, 1000 * more, **row),
                layer("S0 reference", 9.0, 300, 1000 * more, **row),
                layer("GN + ReLU", 2.0, 100, **row),
                layer("S0 timm", 8.0, 200, **row),
                layer("B0 triton", 2.2, 140, 1000 * more, **row),
                layer("BN + ReLU", 2.0, 100, **row),
                layer("B0 timm", 4.4, 200, **row),
                layer("B0 timm, compiled", 3.3, 200, **row),
            ]
    made = {"layers-bf16": record(results=results, dtype="bfloat16")}
    norms = [{"norm": norm, "median_s": 0.1} for norm in ("GN", "EvoNormS0")]
    ratios = {"EvoNormS0 / GN": {"median": 1.02, "quartiles": [1.0, 1.04]}}
    gan = {"model": "biggan-64", "overrides": [], "results": norms, "ratios": ratios}
    made["biggan-64"] = record(results=[gan])
    failed = {"passed": 3, "failed": 1, "skipped": 0, "failures": {"test_x": "wrong"}}
    made["tests"] = record(results=[failed], left_out=["a line"], ended="stopped after 1 s")
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in summarize(tmp_path).splitlines()
        if line.startswith("|")
    ]
    overview = {line[0].partition(",")[0]: line[1:3] for line in lines if " of " in line[2]}
    assert list(overview.values()) == [
        ["miss", "2 of 4"],  # 0.79 and 0.68 of a copy, on the large maps only
        ["miss", "4 of 8"],
        ["miss", "4 of 8"],
        ["miss", "4 of 8"],
        ["miss", "0 of 1"],
    ]
    compiled = {line[0]: line[6] for line in lines if len(line) > 9}
    assert compiled["S0 triton"] == "" and compiled["B0 triton"] == "1.50"
    verdicts = {(line[0], line[1], line[2][-8:]): line[-1] for line in lines}
    assert verdicts["S0 triton", "forward", "00, 336)"] == "pass"
    assert verdicts["B0 triton", "forward", "00, 336)"] == "miss: native, copy, timm, host"
    assert verdicts["B0 triton", "forward + backward", "4, 9, 9)"] == "miss: native, timm, host"
    assert verdicts["biggan-64", "GN 100.0, EvoNormS0 100.0", "GN 1.020"] == "miss: GN"
    tests = next(line for line in lines if line[0] == "tests")
    assert tests[1:] == [
        "stopped after 1 s",
        "a line; 3 passed, 1 failed, 0 skipped; failed: test_x",
    ]


def test_a_part_that_fails_or_takes_too_long_says_so(tmp_path, monkeypatch):
    ended = part.run(json.loads, "x", tmp_path, "cpu", True)
    assert ended.startswith("TypeError: the JSON object must be str")
    assert part.read(tmp_path, "x")["ended"] == ended
    monkeypatch.setattr(part, "SECONDS", 0.01)
    assert part.run(json.loads, "y", tmp_path, "cpu", True) == "stopped after 0.01 s"
    assert part.read(tmp_path, "y")["results"] == []


def test_pytests_report(tmp_path):
    file = tmp_path / "report.xml"
    file.write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><skipped/></testcase>"
        "<testcase name='c'><failure message='no'>long</failure></testcase></testsuite>"
        "</testsuites>"
    )
    found = gpu_parts.read_tests(file)
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "failures": {"c": "no"}}


@pytest.mark.parametrize("file", ["digits.yaml", "imagenet128_small_batch.yaml"])
def test_the_stand_in_reads_configs_as_fvcore_does(file, monkeypatch):
    """Also one with a _BASE_."""
    path = str(ROOT / "configs" / "gan" / file)
    changes = "MODEL.G_CH 8 SOLVER.AMP bf16 SOLVER.BETAS (0.0,0.9) DEVICE cpu".split()
    expected = load_config(path, changes)
    monkeypatch.setattr("evonorm_gan.config.CfgNode", bare.CfgNode)
    found = load_config(path, changes)
    assert type(found.MODEL) is bare.CfgNode
    assert found == expected


BARE = """
import sys
missing = ["fvcore", "torch_fidelity", "yacs", "iopath", "detectron2", "pycocotools", "scipy"]
sys.modules |= dict.fromkeys(missing)
import check_gpu
from evonorm_repro.benchmark.bare import stand_in
assert stand_in()
import evonorm_gan.steps
"""


def test_a_machine_without_our_packages():
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        cwd=ROOT / "tools",
        env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ranks.LAYERS)
def test_the_error_of_a_layer_on_one_rank(name, monkeypatch):
    options = (name, (2, 32, 5, 5), torch.device("cpu"))
    assert ranks.layer_error(*options) < ranks.LARGEST_ERROR
    monkeypatch.setattr(ranks.distributed, "wrap", lambda layer: lambda x: 1.01 * layer(x))
    assert ranks.layer_error(*options) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--part", "nothing"), "'nothing' is not known; known are machine, tests, layers-bf16"),
        (("--part", "tests", "--device", "cuda"), "PyTorch sees no GPU; `--device cpu --tiny`"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = call(tmp_path / "out", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("check_gpu.py: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
