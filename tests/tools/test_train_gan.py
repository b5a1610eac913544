"""tools/train_gan.py, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import train_gan as tool

from evonorm_runs import distributed

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "gan" / "digits.yaml")
SETTINGS = (
    "DEVICE cpu MODEL.DIM_Z 8 MODEL.G_CH 8 MODEL.D_CH 8 SOLVER.BATCH_SIZE 4 SOLVER.MAX_ITER 2 "
    "SOLVER.LOG_PERIOD 1 SOLVER.CHECKPOINT_PERIOD 1 SOLVER.SAMPLE_PERIOD 0 TEST.EVAL_PERIOD -1"
).split()


def command(folder, *overrides, flags=()):
    values = [*SETTINGS, "OUTPUT_DIR", str(folder), *map(str, overrides)]
    return [str(ROOT / "tools" / "train_gan.py"), "--config-file", CONFIG, *flags, *values]


def run(arguments, *launcher):
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(folder):
    timed = ("time", "images_per_second")
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timed} for line in found]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_under_torchrun(tmp_path, digits_cache):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    overrides = ("TEST.EVAL_PERIOD", 0, "TEST.NUM_SAMPLES", 100)
    cache = ("TEST.CACHE_DIR", digits_cache, "MODEL.NORM", "BN-ReLU")
    out = run(command(tmp_path / "run", *overrides, *cache), *launcher)
    assert "2 processes" in out and out.count("step 1:") == 1
    first, second, results = lines(tmp_path / "run")
    assert first.keys() == second.keys()
    fid = results["FID-digits (not comparable with Inception)"]
    assert fid > 0 and f"FID-digits {fid:.4g}" in out.splitlines()[-1]
    assert out.splitlines()[-1].count("not comparable with Inception") == 1
    assert {"best_fid.pth", "best_is.pth"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--config-file", "absent.yaml"], "absent.yaml: "),
        (
            ["--config-file", CONFIG, "MODEL.NORM", "EvoNormS9"],
            "MODEL.NORM: unknown norm-act 'EvoNormS9': did you mean 'EvoNorm",
        ),
        (["--config-file", CONFIG, "MODEL.NUM_CLASSES", 7], "7"),
        (["--config-file", CONFIG, "DATA.NAME", "", "DATA.ROOT", "absent"], "absent"),
        (["--config-file", CONFIG, "SOLVER.ACCUMULATE", 3], "SOLVER.ACCUMULATE 3"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(call, tmp_path, arguments, line):
    status, _, err = call(*arguments, "OUTPUT_DIR", tmp_path / "run", "DEVICE", "cpu")
    err = err.splitlines()
    assert status == 2
    assert len(err) == 1 and err[0].startswith("train_gan.py: ") and line in err[0]


def test_a_folder_with_checkpoints_is_not_written_to(call, tmp_path):
    (tmp_path / "best_fid.pth").write_text("a month of training")
    status, _, err = call(*command(tmp_path)[1:])
    assert status == 2 and "best_fid.pth): continue it with --resume" in err
    assert [path.name for path in tmp_path.iterdir()] == ["best_fid.pth"]


def test_control_c(call, monkeypatch):
    def interrupted(cfg, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "train", interrupted)
    status, _, err = call("--config-file", CONFIG, "DEVICE", "cpu", "--resume")
    assert status == 130 and "continue with --resume" in err


def test_other_faults_keep_their_traceback(call, monkeypatch):
    def fail(cfg, resume):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(tool, "train", fail)
    with pytest.raises(RuntimeError):
        call("--config-file", CONFIG, "DEVICE", "cpu")


def test_one_process_of_several_prints_a_mistake(call, monkeypatch):
    waited = []
    monkeypatch.setattr("evonorm_runs.command_line.time.sleep", waited.append)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    status, _, err = call("--config-file", "absent.yaml")
    assert status == 2 and waited and "absent.yaml" in err  # torchrun stops it before that
