"""The config of a run. Loading its file runs no code, so the file need not be trusted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from evonorm_runs.config import merge
from evonorm_runs.errors import UserError, user_errors

from .config import add_evonorm_config, resolve
from .data.own import use_own_data
from .solver import scale_to_images


def load_config(file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, the plugin's keys, a yaml file with its _BASE_s, then the overrides.

    Data sets of DATASETS.COCO are registered, and fill in the number and names of their classes.
    With SOLVER.REFERENCE_IMS_PER_BATCH, learning rate and schedule are scaled to the batch.
    MODEL.DEVICE becomes cpu if it is not set and PyTorch sees no GPU.

    Args:
        overrides: KEY VALUE KEY VALUE ...

    Returns:
        the resolved config, frozen.

    Raises:
        UserError: a wrong key, value, file or norm, or anything that could run code.
    """
    if not file:
        raise UserError("no config: name one with --config-file")
    if file.endswith(".py"):
        raise UserError(
            f"{file}: loading a LazyConfig runs its code, so only yaml is taken here; "
            "Detectron2's tools/lazyconfig_train_net.py takes it"
        )
    cfg = add_evonorm_config(get_cfg())
    cfg.MODEL.DEVICE = ""
    merge(cfg, file, overrides)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS: proposal files are pickles, loading one may run code; "
            "set it to False"
        )
    cfg.MODEL.DEVICE = _device(cfg.MODEL.DEVICE)
    scale_to_images(cfg)
    use_own_data(cfg)
    with user_errors(ValueError):
        resolve(cfg)
    cfg.freeze()
    return cfg


def _device(device: str) -> str:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE is {device}, but PyTorch sees no GPU: set MODEL.DEVICE cpu")
    if device:
        return device
    if torch.cuda.is_available():
        return "cuda"
    logging.getLogger(__name__).warning("PyTorch sees no GPU: running on the CPU")
    return "cpu"
