"""Weight decay of norm-acts. Detectron2 knows norms by a fixed list of classes without ours."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build as stock
from torch import nn

from .norm import norm_acts


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

    Call it before the learning-rate scheduler is built. It also serves a LazyConfig's optimizer.

    Args:
        with_bias: whether `bias` is included.
    """
    ours = {
        id(parameter)
        for layer in norm_acts(model)
        for name, parameter in layer.named_parameters()
        if with_bias or name != "bias"
    }
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in ours]
        kept = [p for p in group["params"] if id(p) not in ours]
        if moved and kept:
            group["params"] = kept
            optimizer.add_param_group({**group, "params": moved, "weight_decay": weight_decay})
        elif moved:
            group["weight_decay"] = weight_decay
