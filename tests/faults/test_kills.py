"""Trainings that are killed, or asked to stop, where they change their folder; then they go on.

What comes out equals, bit for bit, a run that nobody killed: weights, optimizers, random states,
metrics. :mod:`kill` says what is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill.py")


@pytest.fixture
def places(tmp_path, tiny_run, digits_root):
    """places(kind, signal, first, every): [place, what went wrong] for each place."""
    _, settings = tiny_run("EvoNormB0", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DETECTRON2_DATASETS": str(digits_root),
        "SMALL_DETECTOR": "|".join([*settings, "DATALOADER.NUM_WORKERS", "0"]),
    }

    def run(kind, name, first, every):
        command = [sys.executable, SCRIPT, kind, tmp_path, name, str(first), str(every)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, name, first, every, at_least",
    [
        ("gan", "SIGKILL", 0, 11, 2),
        ("gan", "SIGTERM", 12, 99, 1),
        ("classifier", "SIGKILL", 0, 9, 2),
        ("classifier", "SIGTERM", 8, 99, 1),
        ("detection", "SIGKILL", 4, 4, 4),
        ("detection", "SIGTERM", 9, 99, 1),
    ],
)
def test_a_run_that_goes_on_equals_one_never_stopped(places, kind, name, first, every, at_least):
    found = places(kind, name, first, every)
    assert len(found) >= at_least
    assert [[place, wrong] for place, wrong in found if wrong] == []
