"""A data set, a detector and a training tool small enough for a test."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from evonorm_runs.grid import Job

CONFIGS = Path(__file__).parents[1] / "configs" / "detection" / "digits"

# After torch.export the first backward pass would start threads for devices that are not there, and
# later tests could not fork. So the first one is here.
torch.ones(1, requires_grad=True).sum().backward()

# Counts its calls; SCORE comes out as it went in; FAIL_UNTIL n fails, or is killed, n times.
TOOL = """
import json, os, signal, sys
args = sys.argv[sys.argv.index("--resume") + 1:]
cfg = dict(zip(args[::2], args[1::2]))
os.makedirs(cfg["OUTPUT_DIR"], exist_ok=True)
with open(cfg["OUTPUT_DIR"] + "/calls", "a") as file:
    print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
calls = len(open(cfg["OUTPUT_DIR"] + "/calls").readlines())
if calls <= int(cfg.get("FAIL_UNTIL", 0)):
    print("Traceback, and then", file=sys.stderr)
    if "KILL" in cfg:
        os.kill(os.getpid(), signal.SIGKILL)
    print("tool.py: the loss is nan", file=sys.stderr)
    sys.exit(2)
score = eval(cfg.get("SCORE", "0"), cfg)
json.dump({"score": score}, open(cfg["OUTPUT_DIR"] + "/metrics.json", "w"))
"""


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """A folder with the digits in it: 6 training and 3 validation images of 64x64 pixels."""
    from evonorm_d2.data import write_digits

    root = tmp_path_factory.mktemp("datasets")
    write_digits(root / "digits", train=6, val=3, size=64)
    return root


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory):
    """A TEST.CACHE_DIR for all tests that need the trained classifier, in all processes."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits_cache"


@pytest.fixture(scope="session")
def tiny_run():
    """tiny_run(norm): what load_config takes for a run of seconds on the digits."""

    def arguments(norm, *overrides):
        settings = {
            "MODEL.DEVICE": "cpu",
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.FPN.OUT_CHANNELS": 16,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 20,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 20,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
            "INPUT.MIN_SIZE_TRAIN": "(64,)",
            "INPUT.MAX_SIZE_TRAIN": 64,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 64,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.STEPS": "(3,)",
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "TEST.DETECTIONS_PER_IMAGE": 5,
        }
        values = [str(x) for pair in settings.items() for x in pair]
        file = CONFIGS / f"mask_rcnn_digits_{norm}.yaml"
        return str(file), [*values, *map(str, overrides)]

    return arguments


@pytest.fixture(scope="session")
def equal():
    """equal(a, b): whether two nested states are equal bit for bit."""

    def compare(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(compare(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(compare, a, b))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return compare


@pytest.fixture(scope="session")
def tool(tmp_path_factory):
    """The tool's path."""
    path = tmp_path_factory.mktemp("tool") / "tool.py"
    path.write_text(TOOL)
    return str(path)


@pytest.fixture
def job(tool, tmp_path):
    """job(name, KEY=value, ...): a run of the tool."""

    def make(name, **settings):
        pairs = [str(x) for pair in settings.items() for x in pair]
        return Job(tmp_path / name, tool, "none.yaml", tuple(pairs))

    return make


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module `wandb` in place of the package; returns what is asked of it, in order."""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, dict(values)))

        def finish(self):
            calls.append(("finish",))

    def init(**arguments):
        calls.append(("init", arguments))
        return Run()

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init, module.Error = init, type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls
