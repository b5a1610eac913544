"""Values of a config with which a run could not start: one line each, that names the key."""

from __future__ import annotations

import pytest
import torch

from evonorm_d2.check_run import check_run
from evonorm_d2.data import register_digits
from evonorm_d2.evaluators import build_evaluator
from evonorm_d2.run_config import load_config
from evonorm_d2.settings import check_settings
from evonorm_d2.train import train
from evonorm_runs.errors import UserError


@pytest.fixture
def config(tiny_run, digits_root, tmp_path):
    register_digits(digits_root)

    def make(*overrides):
        return load_config(*tiny_run("EvoNormB0", "OUTPUT_DIR", tmp_path / "run", *overrides))

    return make


@pytest.mark.parametrize(
    "key, value, why",
    [
        ("MODEL.DEVICE", "foo", "MODEL.DEVICE is foo, but should be cuda or cpu: "),
        ("MODEL.DEVICE", "meta", "MODEL.DEVICE is meta, but should be cuda or cpu: "),
        ("SOLVER.IMS_PER_BATCH", 0, "should be more than 0"),
        ("SOLVER.IMS_PER_BATCH", -2, "should be more than 0"),
        ("SOLVER.MAX_ITER", 0, "should be more than 0"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "should be more than 0"),
        ("SOLVER.BASE_LR", -1.0, "should not be negative"),
        ("SOLVER.MOMENTUM", -1.0, "should not be negative"),
        ("SOLVER.WEIGHT_DECAY", -1.0, "should not be negative"),
        ("SOLVER.STEPS", "('a',)", "should hold numbers only"),
        ("SOLVER.LR_SCHEDULER_NAME", "Foo", "Unknown LR scheduler: Foo"),
        ("SOLVER.WARMUP_METHOD", "foo", "Unknown warmup method: foo"),
        ("DATALOADER.NUM_WORKERS", -1, "should not be negative"),
        ("DATASETS.TRAIN", "()", "is empty"),
        ("INPUT.MASK_FORMAT", "foo", "polygon or bitmask"),
        ("INPUT.FORMAT", "XYZ", "image has wrong mode"),
        ("INPUT.RANDOM_FLIP", "both", "none or horizontal or vertical"),
        ("INPUT.MIN_SIZE_TRAIN", "('a',)", "should hold numbers only"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "is empty"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "foo", "choice or range"),
        ("MODEL.KEYPOINT_ON", True, "set MODEL.KEYPOINT_ON False"),
    ],
)
def test_refused_before_anything_is_written(key, value, why, config, tmp_path):
    cfg = config(key, value)
    with pytest.raises(UserError) as error:
        check_run(cfg, resume=False, eval_only=False)
    line = str(error.value)
    section, _, name = key.rpartition(".")
    assert section in line and name in line and why in line and "\n" not in line
    assert not (tmp_path / "run").exists()


def test_a_batch_is_divided_among_processes(config):
    cfg = config("SOLVER.IMS_PER_BATCH", 6)
    check_settings(cfg, True, 3)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH is 6, .* multiple of the 4"):
        check_settings(cfg, True, 4)
    check_settings(cfg, False, 4)
    check_settings(config("SOLVER.IMS_PER_BATCH", 6, "SOLVER.REFERENCE_WORLD_SIZE", 2), True, 4)


def test_a_sigma_for_each_keypoint(config):
    keys = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2)
    with pytest.raises(UserError, match="TEST.KEYPOINT_OKS_SIGMAS is .* 2 keypoints"):
        check_settings(config(*keys), False)
    cfg = config(*keys, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.2]")
    check_settings(cfg, False)
    (evaluator,) = build_evaluator(cfg, "digits_val")._evaluators
    assert list(evaluator._kpt_oks_sigmas) == [0.1, 0.2]
    check_settings(config("MODEL.KEYPOINT_ON", True), False)


def test_a_gpu_that_is_not_there(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_settings(config("MODEL.DEVICE", "cuda:1"), True)
    with pytest.raises(UserError, match="MODEL.DEVICE is cuda:2, but PyTorch sees 2 GPUs"):
        check_settings(config("MODEL.DEVICE", "cuda:2"), True)


@pytest.mark.parametrize("weights", ["http://localhost:1/x.pth", "detectron2://none/x.pkl"])
def test_weights_that_cannot_be_fetched(weights, config, monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://localhost:1")
    with pytest.raises(UserError, match=f"^MODEL.WEIGHTS {weights}: .*urlopen error"):
        train(config("MODEL.WEIGHTS", weights))
