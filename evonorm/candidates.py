"""The ten best B and ten best S candidates of the search, before reranking (appendix B).

A candidate that equals a layer of tables 2 or 3, or is marked a duplicate, shares its formula.
The arguments are those of :mod:`evonorm.functional`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import (
    evonorm_b0,
    evonorm_b1,
    evonorm_b2,
    evonorm_s0,
    evonorm_s1,
    evonorm_s2,
    group_rms,
    instance_rms,
    instance_std,
    layer_rms,
)


def max_x_plus_layer_rms(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), x + layer_rms(x, eps))


def negative_swish(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return -x * torch.sigmoid(x) / torch.sqrt(var + eps)


def max_x_times_instance_rms(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), x * instance_rms(x, eps))


def max_layer_rms_minus_x(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), layer_rms(x, eps) - x)


def max_x_plus_instance_std(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x / torch.maximum(torch.sqrt(var + eps), x + instance_std(x, eps))


def tanh_sigmoid(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    return x * torch.tanh(torch.sigmoid(x)) / group_rms(x, groups, eps)


def sigmoid_max(x: Tensor, v: Tensor, var: Tensor, groups: int, eps: float) -> Tensor:
    z = x / group_rms(x, groups, eps)
    return z * torch.sigmoid(torch.maximum(x, z))


# Name: formula, in the order of appendices B.1 and B.2.
CANDIDATES_B = {
    "EvoNormB/1": evonorm_b1,
    "EvoNormB/2": max_x_plus_layer_rms,
    "EvoNormB/3": negative_swish,
    "EvoNormB/4": max_x_times_instance_rms,
    "EvoNormB/5": max_layer_rms_minus_x,
    "EvoNormB/6": evonorm_b0,
    "EvoNormB/7": evonorm_b2,
    "EvoNormB/8": max_x_times_instance_rms,
    "EvoNormB/9": max_x_plus_instance_std,
    "EvoNormB/10": max_x_plus_instance_std,
}
CANDIDATES_S = {
    "EvoNormS/1": tanh_sigmoid,
    "EvoNormS/2": evonorm_s2,
    "EvoNormS/3": evonorm_s2,
    "EvoNormS/4": evonorm_s2,
    "EvoNormS/5": evonorm_s1,
    "EvoNormS/6": evonorm_s0,
    "EvoNormS/7": evonorm_s1,
    "EvoNormS/8": evonorm_s2,
    "EvoNormS/9": evonorm_s1,
    "EvoNormS/10": sigmoid_max,
}
