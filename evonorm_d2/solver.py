"""Weight decay of norm-acts, and the learning rate for the images of a step.

Detectron2 has a fixed list of norms for weight decay, which lacks our classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver import build as stock
from detectron2.solver.build import get_default_optimizer_params as get_stock_params
from torch import nn

from .norm import norm_acts


def scale_to_images(cfg: CfgNode) -> CfgNode:
    """Scale learning rate and schedule from SOLVER.REFERENCE_IMS_PER_BATCH to IMS_PER_BATCH.

    By the linear rule (Goyal et al. 2017, arXiv:1706.02677), as Detectron2 does it for processes
    with REFERENCE_WORLD_SIZE: BASE_LR grows with the images of a step; MAX_ITER, STEPS,
    WARMUP_ITERS and the periods shrink. REFERENCE_IMS_PER_BATCH then becomes IMS_PER_BATCH, so a
    run's config.yaml is not scaled again.

    Returns:
        cfg itself, changed in place.
    """
    reference, images = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference > 0 and images > 0 and reference != images:
        one = cfg.clone()  # of processes with an image each
        one.SOLVER.REFERENCE_WORLD_SIZE = one.SOLVER.IMS_PER_BATCH = reference
        scaled = DefaultTrainer.auto_scale_workers(one, images)
        for key in ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            cfg.SOLVER[key] = scaled.SOLVER[key]
        cfg.SOLVER.CHECKPOINT_PERIOD = max(1, cfg.SOLVER.CHECKPOINT_PERIOD)
        cfg.TEST.EVAL_PERIOD = scaled.TEST.EVAL_PERIOD
        cfg.SOLVER.REFERENCE_IMS_PER_BATCH = images
    return cfg


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, with `SOLVER.WEIGHT_DECAY_NORM` (0 by default) for norm-acts as well.

    The authors apply weight decay to kernels only. `SOLVER.WEIGHT_DECAY_BIAS`, if it is set, holds
    for the biases of norm-acts as for those of Detectron2's own norms.
    """
    optimizer = stock.build_optimizer(cfg, model)
    weight_decay = cfg.SOLVER.WEIGHT_DECAY_NORM
    if weight_decay is not None:  # None stands for SOLVER.WEIGHT_DECAY
        with_bias = cfg.SOLVER.WEIGHT_DECAY_BIAS is None
        set_norm_act_weight_decay(optimizer, model, weight_decay, with_bias)
    return optimizer


def set_norm_act_weight_decay(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    weight_decay: float = 0.0,
    with_bias: bool = True,
) -> None:
    """Move the norm-acts' parameters to groups of their own with this weight decay, in place.

    Call it before the learning-rate scheduler is built.

    Args:
        with_bias: whether `bias` is included.
    """
    ours = _norm_act_parameters(model, () if with_bias else ("bias",))
    for group in list(optimizer.param_groups):
        kept, moved = _split(group["params"], ours)
        if moved and kept:
            group["params"] = kept
            optimizer.add_param_group({**group, "params": moved, "weight_decay": weight_decay})
        elif moved:
            group["weight_decay"] = weight_decay


def get_default_optimizer_params(
    model: nn.Module, *args: Any, **kwargs: Any
) -> list[dict[str, Any]]:
    """Detectron2's function of this name, with `weight_decay_norm` for norm-acts as well.

    It is for LazyConfigs: `optimizer.params._target_ = get_default_optimizer_params`.

    Args:
        model: the model.
        args, kwargs: those of Detectron2's function, which differ between its versions.

    Returns:
        the groups of parameters that a PyTorch optimizer takes.
    """
    call = inspect.signature(get_stock_params).bind(model, *args, **kwargs)
    call.apply_defaults()
    overrides = dict(call.arguments["overrides"] or {})
    call.arguments["overrides"] = overrides  # Detectron2 writes into it
    weight_decay_norm = call.arguments["weight_decay_norm"]
    groups = get_stock_params(*call.args, **call.kwargs)
    if weight_decay_norm is None:
        return groups
    named = [name for name, override in overrides.items() if "weight_decay" in override]
    ours = _norm_act_parameters(model, named)
    result = []
    for group in groups:
        kept, moved = _split(group["params"], ours)
        result += [{**group, "params": kept}] if kept else []
        result += [{**group, "params": moved, "weight_decay": weight_decay_norm}] if moved else []
    return result


def _norm_act_parameters(model: nn.Module, without: Container[str]) -> set[int]:
    """The ids of the norm-acts' parameters, without those of these names."""
    return {
        id(parameter)
        for layer in norm_acts(model)
        for name, parameter in layer.named_parameters()
        if name not in without
    }


def _split(
    parameters: list[nn.Parameter], ours: set[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that are not among ours, and those that are."""
    return [p for p in parameters if id(p) not in ours], [p for p in parameters if id(p) in ours]
