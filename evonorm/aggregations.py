"""Table 1's aggregations, and the functions that PyTorch does not have in the paper's form.

`mean_`, `std_` and `rms_` of x (N, C, H, W) over the pixels of a channel (i), a whole sample (c) or
a group of channels (g). Each keeps the rank of x, so that the result combines with x by
broadcasting. Variances are biased, and eps is under the root. The batch's aggregations (b) are in
:mod:`evonorm.statistics`, since evaluation takes their running estimates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_i(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def std_i(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(variance(x, [2, 3]) + eps)


def rms_i(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.square().mean((2, 3), keepdim=True) + eps)


def mean_c(x: Tensor) -> Tensor:
    return x.mean((1, 2, 3), keepdim=True)


def std_c(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(variance(x, [1, 2, 3]) + eps)


def rms_c(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.square().mean((1, 2, 3), keepdim=True) + eps)


def mean_g(x: Tensor, groups: int) -> Tensor:
    return _per_channel(_by_group(x, groups).mean((2, 3, 4), keepdim=True), x)


def std_g(x: Tensor, groups: int, eps: float) -> Tensor:
    return _per_channel(torch.sqrt(variance(_by_group(x, groups), [2, 3, 4]) + eps), x)


def rms_g(x: Tensor, groups: int, eps: float) -> Tensor:
    mean_square = _by_group(x, groups).square().mean((2, 3, 4), keepdim=True)
    return _per_channel(torch.sqrt(mean_square + eps), x)


def variance(x: Tensor, dims: list[int]) -> Tensor:
    """Biased; the dimensions are kept, with size 1."""
    # In two passes: Tensor.var is many times slower on a CPU, and warns of an empty batch.
    return (x - x.mean(dims, keepdim=True)).square().mean(dims, keepdim=True)


# Table 1's functions where an argument may be zero or below.


def guarded(x: Tensor, eps: float) -> Tensor:
    """A denominator that may be zero: x + eps sign(x)."""
    return x + eps * torch.sign(x)


def signed_log(x: Tensor, eps: float) -> Tensor:
    """sign(x) ln(|x| + eps); table 1's ln(x + eps) is undefined for x below zero."""
    return torch.sign(x) * torch.log(torch.abs(x) + eps)


def signed_sqrt(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.sqrt(torch.abs(x))


def constant(x: Tensor, value: float) -> Tensor:
    """A number as a tensor of x's rank, dtype and device."""
    return x.new_full([1, 1, 1, 1], value)


def _by_group(x: Tensor, groups: int) -> Tensor:
    # Every size is spelled out: -1 cannot be inferred for an empty batch.
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, x.shape[2], x.shape[3])


def _per_channel(stat: Tensor, x: Tensor) -> Tensor:
    # expand, not repeat_interleave, which ONNX opset 11 lacks.
    n, groups = stat.shape[0], stat.shape[1]
    return stat.expand(n, groups, x.shape[1] // groups, 1, 1).reshape(n, x.shape[1], 1, 1)
