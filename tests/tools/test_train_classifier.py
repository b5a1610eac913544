"""tools/train_classifier.py, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evonorm_runs import distributed

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "classification" / "digits.yaml")
SETTINGS = (
    "DEVICE cpu SOLVER.IMS_PER_WORKER 64 SOLVER.WARMUP_EPOCHS 1.0 TEST.BATCH_SIZE 512".split()
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(folder, *overrides, flags=()):
    values = [*SETTINGS, "OUTPUT_DIR", str(folder), *map(str, overrides)]
    return [str(ROOT / "tools" / "train_classifier.py"), "--config-file", CONFIG, *flags, *values]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(call):
    """run(command): what the tool prints, in this process and one thread."""
    torch.set_num_threads(1)

    def run_it(arguments):
        status, out, err = call(*arguments[1:])
        assert status == 0, err
        return out

    return run_it


def lines(folder):
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_and_resumed_equals_one_never_stopped(tmp_path, run, equal):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = run(command(whole, "SOLVER.EPOCHS", 5))
    assert output.endswith(f" ({whole}/metrics.json)\n")
    arguments = [sys.executable, *command(killed, "SOLVER.EPOCHS", 5)]
    process = subprocess.Popen(arguments, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoint.pth").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = checkpoint(killed)["step"]  # is whole
    assert done and done % 22 == 0
    again = run(command(killed, "SOLVER.EPOCHS", 5, flags=["--resume"]))
    assert f"; goes on after step {done}\n" in again
    a, b = checkpoint(whole), checkpoint(killed)
    assert a.pop("config") != b.pop("config")  # they name their folders
    assert equal(a, b)
    assert lines(whole) == lines(killed)


@pytest.mark.slow
def test_two_processes_do_what_one_with_as_many_workers_does(tmp_path, run):
    # Few steps, before rounding has grown; EvoNormB0 has running statistics and v.
    settings = ("MODEL.NORM", "EvoNormB0", "SOLVER.WORKERS", 4, "SOLVER.EPOCHS", 1)
    settings += ("SOLVER.EMA", 0.9)
    one, two = tmp_path / "one", tmp_path / "two"
    assert "4 workers of 64 images, learning" in run(command(one, *settings))
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *command(two, *settings)],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 workers of 64 images in 2 processes") == 1
    a, b = checkpoint(one), checkpoint(two)
    torch.testing.assert_close(a["model"], b["model"])
    torch.testing.assert_close(a["averaged"], b["averaged"])
    torch.testing.assert_close(a["optimizer"]["state"], b["optimizer"]["state"])
    assert len(lines(one)) == len(lines(two)) == 2
    for x, y in zip(lines(one), lines(two)):
        assert x == pytest.approx(y, rel=1e-4)


def test_bad_input_is_one_line(call, tmp_path):
    def fails(*overrides):
        status, _, err = call(*command(tmp_path / "run", *overrides)[1:])
        assert status == 2 and err.count("\n") == 1 and "Traceback" not in err
        return err

    assert fails("MODEL.NAME", "vgg").startswith("train_classifier.py: MODEL.NAME is 'vgg'; known")
    missing = fails("DATA.NAME", "folder", "DATA.ROOT", tmp_path / "none")
    assert missing.startswith("train_classifier.py: DATA.ROOT: ") and "none/train" in missing
    assert "is more than the 1437 images" in fails("SOLVER.IMS_PER_WORKER", 1438)
    assert not list(tmp_path.glob("run/*"))


def test_workers_that_can_not_be_spread_evenly(call, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    status, _, err = call(*command(tmp_path / "run", "SOLVER.WORKERS", 4)[1:])
    expected = "train_classifier.py: SOLVER.WORKERS 4 can't be spread over 3 processes\n"
    assert (status, err) == (2, expected)
