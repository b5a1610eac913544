"""tools/reproduce.py from the command line to the table."""

from __future__ import annotations

import json
import sys

import pytest
import reproduce

from evonorm_repro.tables import TABLES


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Each test runs in an empty folder, on a machine without GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.slow
def test_table_3_from_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(TABLES["table3"], "in_small", (128, 64))
    layers = ("--norms", "BN-ReLU", "EvoNormS0", "--seeds", "1", "--lrs", "1")
    arguments = ("table3", *layers, "--at-once", "2")
    short = ("SOLVER.EPOCHS", "2", "SOLVER.WARMUP_EPOCHS", "1.0")
    status, printed, _ = call(*arguments, *short)
    assert status == 0
    out = tmp_path / "output/reproduce/table3_small"
    results = json.loads((out / "results.json").read_text())
    rows = {(row["layer"], row["ims_per_worker"]): row for row in results["rows"]}
    assert set(rows) == {(norm, n) for norm in ("BN-ReLU", "EvoNormS0") for n in (128, 64)}
    for (norm, images), row in rows.items():
        lines = (out / f"runs/{norm}_lr1_{images}_seed0/metrics.json").read_text().splitlines()
        assert row["accuracy"]["values"] == [json.loads(lines[-1])["accuracy"]]
        assert 0 < row["accuracy"]["mean"] <= 100
        assert f"{row['accuracy']['mean']:.1f}" in printed
    assert results["command"] == f"tools/reproduce.py {' '.join(arguments + short)}"
    assert [share for share, _ in rows["BN-ReLU", 64]["history"]] == [0.5, 1.0]  # two epochs
    assert rows["BN-ReLU", 64]["history"][-1][1] == rows["BN-ReLU", 64]["accuracy"]["mean"]
    assert "At" not in printed and "so nobody knows whether the order is settled" in printed
    assert rows["BN-ReLU", 64]["paper"] == {"accuracy": "76.2"} and "76.2" in printed

    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    assert call(*arguments, *short)[0] == 0  # all is done
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == written
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]
    status, _, err = call(*arguments, "--out", out, "SOLVER.EPOCHS", "3", *short[2:])
    assert status == 2
    assert "settings (has SOLVER.EPOCHS 2, not SOLVER.EPOCHS 3): name another --out" in err


def test_a_dry_run_prints_commands_and_costs_and_makes_nothing(call, tmp_path):
    arguments = ("table2", "--scale", "paper", "--model", "mnasnet_b1", "--norms", "EvoNormB0")
    status, out, _ = call(*arguments, "--seeds", 1, "--dry-run", "--images-per-second", 500)
    assert status == 0 and not list(tmp_path.iterdir())
    commands, summary, others = out.strip().split("\n\n")
    assert "/imagenet_mnasnet_b1.yaml --resume MODEL.NORM EvoNormB0 SOLVER.BASE_LR 0.1" in commands
    images = 350 * (1_281_167 // 4096) * 4096
    resnets = 112_590 * 1024  # 90 epochs of 1024 images a step
    assert f"Table 2: preact_resnet101 on ImageNet: 1 runs, {resnets:,} images" in others
    assert others.count("\n") == 5 and "mnasnet" not in others
    assert f"{images:,} images" in summary and f"{images / 1.8e6:,.0f} GPU hours" in summary


def test_gpus_go_to_the_runs(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    for line, gpus in (
        ("table4", 1),
        ("table4 --at-once 4", 1),
        ("table4 --scale paper", 8),
        ("table4 --scale paper --at-once 2", 4),
        ("table4 --gpus 0", 0),
    ):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *line.split()])
        args = reproduce.parse()
        reproduce.check_gpus(args)
        assert args.gpus == gpus


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("table4", "--model", "R-18"), "--model R-18: table4 has R-50, R-101"),
        (
            ("table2", "--model", "vgg"),
            "--model vgg: table2 has preact_resnet, preact_resnet101, mobilenet_v2, mnasnet_b1, ",
        ),
        (("table3", "--model", "mnasnet_b1"), "--model mnasnet_b1: table3 has preact_resnet, mob"),
        (("table2", "--dry-run", "--images-per-second", "0"), "--images-per-second must be"),
        (("table2", "--images-per-second", "9"), "--images-per-second is for --dry-run"),
        (("table5", "--norms", "IN"), "--norms: unknown norm-act 'IN': "),
        (("table5", "--norms", "GN-ReLU+WS"), "--norms: unknown norm-act 'GN-ReLU+WS': "),
        (("table2", "--seeds", "0"), "--seeds must be at least 1"),
        (("table2", "--at-once", "-1"), "--at-once must be at least 1"),
        (("table2", "--lrs", "1", "-1"), "--lrs must be positive"),
        (("table2", "--lrs", "nan"), "--lrs must be positive"),
        (("table2", "--gpus", "-1"), "--gpus -1 times --at-once 1: PyTorch sees 0 GPUs here"),
        (("table2", "--gpus", "3"), "--gpus 3 times --at-once 1: PyTorch sees 0 GPUs here"),
        (("table2", "DATA.ROOT"), "KEY VALUE on the command line: DATA.ROOT has no value"),
        (("table2", "--ray", "auto", "--at-once", "2"), "--at-once is for one machine"),
        (("table2", "--ray", "auto", "--scale", "paper"), "--ray at the paper's size: say how"),
        (("table2", "--out", __file__), "--out: "),
        (("table2", "--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: "),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, arguments, line):
    status, _, error = call(*arguments)
    assert status == 2
    assert error.startswith(f"reproduce.py: {line}") and error.count("\n") == 1
    assert not list(tmp_path.glob("output/reproduce/*/*/*"))
