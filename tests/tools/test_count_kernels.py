"""tools/count_kernels.py: on one shape; and its counting, on machine code that is written here."""

from __future__ import annotations

import json

import pytest
import torch

from evonorm_repro.benchmark import layers

counts = pytest.importorskip("evonorm_repro.benchmark.counts")
GIVEN = (torch.arange(32.0).view(1, 8, 2, 2), *4 * [None], 4, 1e-5, "S1")


def test_counts_and_writes(call, monkeypatch, tmp_path):
    monkeypatch.setattr(layers, "SHAPES", {"one": [(4, 64, 4, 4)]})
    monkeypatch.setattr("count_kernels.SHAPES", layers.SHAPES)
    file = tmp_path / "counts.json"
    arguments = ("--shapes", "one", "--kinds", "S0", "--sm", 90, "--json", file)
    status, out, _ = call(*arguments)
    assert status == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "backward"]
    size = 2 * 4 * 64 * 16  # bytes of a tensor: x, y; dy, x, dx
    assert [row["bytes"] for row in rows] == [2 * size, 3 * size]
    assert rows[0]["copy_us"] == pytest.approx(2 * size / 3e6)
    for row in rows:
        assert row["floor_us"] == sum(launch["floor_us"] for launch in row["launches"]) > 0
        assert all(0 < launch["registers"] < 256 for launch in row["launches"])
    assert len(out.splitlines()) == 3 and "4x64x4x4" in out
    assert call(*arguments)[0] == 2  # the file is there


def test_times_the_host(call, monkeypatch, tmp_path):
    monkeypatch.setattr("evonorm_repro.benchmark.host.REPEATS", 2)
    before = torch.ops.evonorm.forward(*GIVEN)[0]
    file = tmp_path / "host.json"
    status, out, _ = call("--host", "--sm", 90, "--json", file)
    assert status == 0 and "host µs" in out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["layer"], row["native"]) for row in rows] == [
        ("S0", "GN + ReLU"),
        ("B0", "BN + ReLU"),
    ]
    for row in rows:
        assert 5 < row["host_us"] and row["ratio"] == row["host_us"] / row["native_us"]
    assert torch.equal(torch.ops.evonorm.forward(*GIVEN)[0], before)  # the CPU's kernel is back


def test_refuses_unknown_shapes(call):
    status, _, err = call("--shapes", "vgg")
    assert status == 2 and "no vgg; there are" in err


# Ten instructions, of which 2 to 4 are a loop.
SASS = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0020*/                   LDG.E R2, [R2.64] ;
        /*0030*/                   MUFU.EX2 R3, R2 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/                   SHFL.BFLY PT, R4, R3, 0x1, 0x1f ;
        /*0060*/                   BAR.SYNC 0x0 ;
        /*0070*/              @P1  STG.E [R4.64], R3 ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
        /*00a0*/                   NOP;
"""


def test_runs_loops_as_often_as_the_arguments_say(monkeypatch):
    monkeypatch.setattr(
        counts.subprocess,
        "check_output",
        lambda command, **_: "REG:40 STACK:8" if "-res-usage" in command else SASS,
    )
    launch = counts.Launch("moments", b"made up", 64, 4, 1000, {"tiles": 5})
    found = counts.count(launch, counts.GPUS[90])
    assert (found["instructions"], found["executed"]) == (10, 7 + 3 * 5)
    assert (found["registers"], found["spilled_bytes"], found["barriers"]) == (40, 8, 1)
    # 4000 warps; special functions: 5 at one in two clocks; memory: 5 loads, a shuffle, a store.
    assert found["bound"] == "mufu"
    assert found["floor_us"] == pytest.approx(4000 * 5 / 0.5 / (132 * 1700))
