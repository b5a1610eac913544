"""The demo, cut down to five steps on a few small scenes."""

from __future__ import annotations

import functools
import json

import demo
import pytest

from evonorm_search.results import evaluated
from evonorm_search.store import Store


@pytest.mark.slow
def test_demo_ends_with_figures_and_a_sheet(call, tmp_path, digits_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(demo, "write_digits", functools.partial(demo.write_digits, train=8, val=2))
    job, tool = demo.Job, demo.tool
    short = ("SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "(3,)")
    few = ("CANDIDATES", "3", "PROXY.STEPS", "2", "PROXY.QUALITY", "0.0")
    gan = ("SOLVER.MAX_ITER", "3", "TEST.NUM_SAMPLES", "100", "TEST.CACHE_DIR", str(digits_cache))
    shorter = {"tools/train_net.py": short, "tools/search_layers.py": few}
    monkeypatch.setattr(demo, "Job", lambda *a: job(*a[:3], (*a[3], *shorter.get(a[1], ()))))
    monkeypatch.setattr(demo, "OWN", gan)
    calls = []

    def recorded(name, *a):
        calls.append((name, *map(str, a)))
        tool(name, *a)

    monkeypatch.setattr(demo, "tool", recorded)
    status, printed, _ = call()
    assert status == 0
    result = json.loads((tmp_path / "output/demo/result.json").read_text())
    for norm in ("EvoNormS0", "BN"):
        row = result["norms"][norm]
        assert row["iteration"] == 4 and 0 <= row["segm/AP"] <= 100
        assert f"{norm:<24}{row['bbox/AP']:>10.1f}" in printed
    rows = result["gan"]
    key = "FID-digits (not comparable with Inception)"
    assert set(rows) == {"real validation scans", "untrained", "after 3 steps"}
    assert rows["real validation scans"][key] < 1 < rows["untrained"][key]
    assert f"{rows['untrained'][key]:>12.2f}" in printed and "not comparable" in printed
    for picture in ("EvoNormS0/predictions.png", "biggan_EvoNormS0/grid.png"):
        assert (tmp_path / "output/demo" / picture).stat().st_size > 1000
    for name in ("search_0", "search_1"):
        found = evaluated(Store(tmp_path / "output/demo" / name).candidates())
        assert len(found) == 3 and found[0][0].formula == "max((x - mean_g(x)) / std_g(x), 0)"
        assert ("search_layers.py", "best", f"output/demo/{name}", "--top", "1") in calls
    report = (tmp_path / "output/demo/report.html").read_text()
    assert all(name in report for name in ("EvoNormS0", "BN", "biggan_EvoNormS0", "FID-digits"))
    assert "Layer search" in report and "<math" in report


def test_a_failing_tool_ends_the_demo(call, tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/broken.py").write_text("import sys; sys.exit(3)")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "demonstrate", lambda: demo.tool("broken.py"))
    assert call() == (3, "", "")


def test_a_failing_run_ends_the_demo(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "write_digits", lambda folder: None)
    monkeypatch.setattr(demo, "run_jobs", lambda jobs, at_once: None)
    monkeypatch.setattr(demo, "failure", lambda job: f"train_net.py: no {job.folder.name}")
    status, _, err = call()
    assert (status, err) == (2, f"demo.py: {demo.GAN}: train_net.py: no {demo.GAN.name}\n")


@pytest.mark.parametrize("argument, status", [("--help", 0), ("--helq", 2), ("digits", 2)])
def test_arguments_do_not_start_the_demo(call, argument, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(argument)[0] == status and not list(tmp_path.iterdir())
