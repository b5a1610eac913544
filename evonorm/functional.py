"""The formulas of the paper's tables 2 and 3, as it writes them, without gamma and beta.

Every formula takes the same arguments, so that a layer is a formula and a few numbers:

    x       (N, C, H, W), float32 or float64
    v       (C, 1, 1), a learnt vector; ignored by most
    var     (C, 1, 1), the variance over (N, H, W) of the batch or its running estimate;
            the mean square instead for `relu_over_batch_rms`; ignored by the S series
    groups  over how many groups of channels a group statistic is taken; divides C
    eps     added under each square root

and returns a tensor shaped like x. All variances are biased. :func:`affine` applies gamma and beta.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def affine(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    """x * weight + bias; (C,) is per channel, (N, C) per sample and channel, None leaves it out."""
    if weight is not None:
        x = x * weight[..., None, None]
    if bias is not None:
        x = x + bias[..., None, None]
    return x


# Statistics: each keeps x's rank, so that it divides x by broadcasting.


def variance(x: Tensor, dims: list[int]) -> Tensor:
    # In two passes: Tensor.var is many times slower on a CPU, and warns of an empty batch.
    return (x - x.mean(dims, keepdim=True)).square().mean(dims, keepdim=True)


def instance_std(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(variance(x, [2, 3]) + eps)


def instance_rms(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.square().mean((2, 3), keepdim=True) + eps)


def layer_rms(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.square().mean((1, 2, 3), keepdim=True) + eps)


def group_std(x: Tensor, groups: int, eps: float) -> Tensor:
    return _per_channel(torch.sqrt(variance(_by_group(x, groups), [2, 3, 4]) + eps), x)


def group_rms(x: Tensor, groups: int, eps: float) -> Tensor:
    mean_square = _by_group(x, groups).square().mean((2, 3, 4), keepdim=True)
    return _per_channel(torch.sqrt(mean_square + eps), x)


def _by_group(x: Tensor, groups: int) -> Tensor:
    # Every size is spelled out: -1 cannot be inferred for an empty batch.
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, x.shape[2], x.shape[3])


def _per_channel(stat: Tensor, x: Tensor) -> Tensor:
    # expand, not repeat_interleave, which ONNX opset 11 lacks.
    n, groups = stat.shape[0], stat.shape[1]
    return stat.expand(n, groups, x.shape[1] // groups, 1, 1).reshape(n, x.shape[1], 1, 1)


# The B series: batch variance in training, its running estimate in evaluation.


def evonorm_b0(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), v * x + instance_std(x, eps))


def evonorm_b1(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), (x + 1) * instance_rms(x, eps))


def evonorm_b2(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), instance_rms(x, eps) - x)


def relu_over_batch_rms(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    """`RS + rej` of table 2; `var` is the batch's mean square."""
    return F.relu(x) / torch.sqrt(var + eps)


# The S series: statistics of single samples.


def evonorm_s0(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x * torch.sigmoid(v * x) / group_std(x, groups, eps)


def evonorm_s1(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x * torch.sigmoid(x) / group_std(x, groups, eps)


def evonorm_s2(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x * torch.sigmoid(x) / group_rms(x, groups, eps)


def tanh_max_tanh(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    """`Random + rej` of table 2."""
    return torch.tanh(torch.maximum(x, torch.tanh(x)))
