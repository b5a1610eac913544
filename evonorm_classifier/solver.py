"""Learning rates, optimizers and averaged weights of the paper's classifiers.

What section 5.1 of the paper does not name is that of tensorflow/tpu, models/official/{resnet,
mnasnet, efficientnet}.
"""

from __future__ import annotations

import math

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evonorm_runs.errors import UserError


def learning_rate(cfg: CfgNode, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, if an epoch has `steps` steps.

    It is scaled linearly to the images per step, and rises linearly in the first epochs. The stairs
    of "staircase" are counted from step 0 on, the cosine starts where the rise ends.
    """
    solver = cfg.SOLVER
    lr = solver.BASE_LR * solver.IMS_PER_WORKER * solver.WORKERS / solver.REFERENCE_BATCH
    epoch, warmup = step / steps, solver.WARMUP_EPOCHS
    if epoch < warmup:
        return lr * (step + 1) / max(warmup * steps, step + 1)
    if solver.SCHEDULE == "cosine":
        return lr * (1 + math.cos(math.pi * (epoch - warmup) / (solver.EPOCHS - warmup))) / 2
    if solver.SCHEDULE == "staircase":
        return lr * solver.STAIR_FACTOR ** (step // (solver.STAIR_EPOCHS * steps))
    return lr * 0.1 ** sum(epoch >= milestone for milestone in solver.MILESTONES)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or TensorFlow's RMSProp. Its learning rate is set before each step.

    Raises:
        UserError: timm, which has that RMSProp, is not installed.
    """
    solver = cfg.SOLVER
    decayed, others = _decayed(model, solver.DECAY_BIASES)
    groups = [
        {"params": decayed, "weight_decay": solver.WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    if solver.OPTIMIZER == "sgd":
        nesterov = solver.MOMENTUM > 0
        return torch.optim.SGD(
            groups, lr=0.0, momentum=solver.MOMENTUM, nesterov=nesterov, fused=True
        )
    try:
        from timm.optim import RMSpropTF  # slow to import
    except ImportError as error:
        raise UserError(
            f"SOLVER.OPTIMIZER is rmsprop, which timm has: pip install timm ({error})"
        ) from error
    options = {"alpha": solver.RMSPROP_RHO, "eps": solver.RMSPROP_EPS}
    return RMSpropTF(groups, lr=0.0, momentum=solver.MOMENTUM, **options)


def _decayed(model: nn.Module, biases: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that decay, and the others: kernels, with the biases of layers or without.

    The parameters of norm-acts never decay, as in the authors' code.
    """
    norms = {id(p) for m in model.modules() if hasattr(m, "norm_act") for p in m.parameters()}

    def decays(p: nn.Parameter) -> bool:
        return id(p) not in norms if biases else p.dim() > 1

    parameters = list(model.parameters())
    return [p for p in parameters if decays(p)], [p for p in parameters if not decays(p)]


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The average of the weights and running statistics, from the initial ones on.

    The n-th call of its `update_parameters`, from 1, keeps min(decay, n / (9 + n)) of the average,
    as TensorFlow's ExponentialMovingAverage does with the number of steps.
    """

    def update(averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        n = int(averaged.n_averaged)  # on the CPU: it waits for no GPU
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, n / (9 + n)))
        else:  # counters
            torch._foreach_copy_(averages, values)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    averaged.n_averaged.fill_(1)  # so that the initial weights count
    return averaged
