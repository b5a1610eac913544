"""Refuse values of a config on which Detectron2 would fail later, and name their key."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.solver import build_lr_scheduler
from PIL import Image

from evonorm_runs.config import check_fraction, check_more_than_zero, check_not_negative, value
from evonorm_runs.errors import UserError, one_line, user_errors
from evonorm_runs.wandb_run import check_wandb

_CHOICES = {
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
}


def check_settings(cfg: CfgNode, training: bool, processes: int = 1) -> None:
    """Raise UserError for a value that would keep a run from starting, or end it in a traceback.

    Args:
        training: whether it trains, or evaluates only.
        processes: how many share a batch.
    """
    _check_device(cfg.MODEL.DEVICE)
    check_not_negative(cfg, "DATALOADER.NUM_WORKERS")
    with user_errors(ValueError, prefix=f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: "):
        convert_PIL_to_numpy(Image.new("RGB", (1, 1)), cfg.INPUT.FORMAT)
    keypoints, sigmas = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, cfg.TEST.KEYPOINT_OKS_SIGMAS
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST and keypoints != (len(sigmas) or 17):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {sigmas}, but COCO's evaluation needs a number for each "
            f"of the {keypoints} keypoints (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS); [] is COCO's 17"
        )
    if cfg.TEST.AUG.ENABLED and (_kind(cfg) is not GeneralizedRCNN or cfg.MODEL.KEYPOINT_ON):
        raise UserError(
            "TEST.AUG.ENABLED is True, but Detectron2's test-time augmentation takes a "
            "MODEL.META_ARCHITECTURE GeneralizedRCNN without keypoints only"
        )
    if training:
        _check_training(cfg, processes)


def _kind(cfg: CfgNode) -> type | None:
    name = cfg.MODEL.META_ARCHITECTURE
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None


def _check_device(device: str) -> None:
    try:
        named = torch.device(device)
        if named.type != "cuda":  # which each process starts for itself
            torch.ones(1, device=named).item()
    except RuntimeError as error:
        reason = one_line(error).partition(". ")[0]
        raise UserError(f"MODEL.DEVICE is {device}, but should be cuda or cpu: {reason}") from error
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE is {device}, but PyTorch sees {torch.cuda.device_count()} GPUs"
        )


def _check_training(cfg: CfgNode, processes: int) -> None:
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name a data set to train on")
    check_more_than_zero(cfg, "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD")
    if cfg.SOLVER.REFERENCE_WORLD_SIZE == 0 and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but should be a multiple of the "
            f"{processes} processes (--num-gpus times --num-machines)"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith(("cuda", "cpu")):
        raise UserError(
            f"SOLVER.AMP.ENABLED is True, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: AMP needs a "
            "GPU or a CPU; set SOLVER.AMP.ENABLED False"
        )
    check_fraction(cfg, "SOLVER.EMA_DECAY")
    check_wandb(cfg)
    _check_parts(cfg, processes)
    if cfg.TEST.BEST_METRIC and not cfg.DATASETS.TEST:
        raise UserError(f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC}, but DATASETS.TEST is empty")
    check_not_negative(cfg, "TEST.PATIENCE")
    if cfg.TEST.PATIENCE and not (cfg.TEST.BEST_METRIC and cfg.TEST.EVAL_PERIOD > 0):
        raise UserError(
            f"TEST.PATIENCE is {cfg.TEST.PATIENCE}, so TEST.BEST_METRIC should name a figure, and "
            "TEST.EVAL_PERIOD be more than 0"
        )
    for key, choices in _CHOICES.items():
        if value(cfg, key) not in choices:
            raise UserError(f"{key} is {value(cfg, key)}, but should be {' or '.join(choices)}")
    if cfg.INPUT.MIN_SIZE_TRAIN == ():
        raise UserError("INPUT.MIN_SIZE_TRAIN is empty: name one size or more")
    for key in ("INPUT.MIN_SIZE_TRAIN", "SOLVER.STEPS"):
        numbers = value(cfg, key)
        if not all(isinstance(x, (int, float)) for x in _as_tuple(numbers)):
            raise UserError(f"{key} is {numbers}, but should hold numbers only")
    check_not_negative(cfg, "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.SOLVER.BASE_LR)
    keys = "SOLVER.LR_SCHEDULER_NAME, STEPS, MAX_ITER, WARMUP_METHOD or WARMUP_ITERS: "
    with user_errors(AssertionError, TypeError, ValueError, prefix=keys):
        build_lr_scheduler(cfg, optimizer)


def _check_parts(cfg: CfgNode, processes: int) -> None:
    check_more_than_zero(cfg, "SOLVER.ACCUMULATE")
    images = cfg.SOLVER.IMS_PER_BATCH // (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes)
    if images % cfg.SOLVER.ACCUMULATE:
        raise UserError(
            f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}, but each process has {images} images "
            "of SOLVER.IMS_PER_BATCH, which should be a multiple of it"
        )


def _as_tuple(values: object) -> tuple | list:
    return values if isinstance(values, (tuple, list)) else (values,)
