"""What the operators compute, in plain PyTorch, to be read and for devices without a kernel.

Every EvoNorm is y = num / den * weight + bias. With one statistic s of each sample and group of
channels, its standard deviation (S0, S1, B0) or root mean square (S2, B1, B2) with eps inside,

    S0          num = x sigmoid(v x)      den = s
    S1, S2      num = x sigmoid(x)        den = s
    B0, B1, B2  num = x                   den = max(sqrt(var + eps), slope * x + rise)

where a group is one channel in the B series, and (slope, rise) is (v, s), (s, s) or (-1, s). So the
part of x's gradient that passes through a statistic has the form p * x + q, with a p and q for each
sample and channel. One pass over x and dy takes their sums, and a second one writes dx.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ..aggregations import variance as variance_over
from ..base import affine
from ..formula import read_formula
from ..formulas import FORMULAS
from ..statistics import widen

KINDS = ("B0", "B1", "B2", "S0", "S1", "S2")
CENTRED = ("B0", "S0", "S1")


def forward(
    x: Tensor,
    v: Optional[Tensor],
    var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    groups: int,
    eps: float,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """An EvoNorm and the statistics that its backward pass needs.

    Args:
        x: (N, C, H, W).
        v: (C,), the parameter of B0 and S0; None for ones.
        var: (C,), of the B series; None to take and return the variance of the batch.
        weight, bias: (C,), or (N, C) for one per sample; None for ones and zeros.
        groups: the number of groups of channels, for the S series.
        eps: added to variances and mean squares.
        kind: one of `KINDS`.

    Returns:
        y, like x;
        stats (2, N, G): mean and s of each group (G = C in the B series);
        batch_stats (2, C): mean and variance of the batch, (2, 0) if they were not taken.
        Statistics are float32, float64 for float64 x.
    """
    x_, whole = widen(x), kind[0] == "B" and var is None
    mean, mean_square, variance = _moments(_by_group(x_, groups, kind), (2, 3, 4))
    s = torch.sqrt((variance if kind in CENTRED else mean_square) + eps)
    batch_stats = x_.new_empty(2, 0)
    if whole:
        batch_mean, _, var = _moments(x_, (0, 2, 3))
        batch_stats = torch.stack([batch_mean, var])
    num, den, _ = _fraction(x_, v, var, s, eps, kind)
    y = affine(num / den, _wide(weight), _wide(bias))
    if x.dtype == torch.float16:  # a large constant over sqrt(eps) would be infinite
        y = y.clamp(-65504, 65504)
    y = y.to(x.dtype).contiguous(memory_format=_memory_format(x))
    return y, torch.stack([mean, s]), batch_stats


def backward(
    dy: Tensor,
    x: Tensor,
    v: Optional[Tensor],
    var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    stats: Tensor,
    batch_stats: Tensor,
    groups: int,
    eps: float,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, v, var, weight and bias, each with its tensor's shape; (0,) in place of None.

    If the forward pass took the variance itself, the gradient of x includes the part that passes
    through it. The bound of a float16 output is ignored.
    """
    x_, dy_ = widen(x), widen(dy)
    n, c, h, w = x.shape
    mean, s = stats
    batch_mean, batch_var = batch_stats if batch_stats.numel() else (None, var)
    num, den, s_ = _fraction(x_, v, batch_var, s, eps, kind)
    du = affine(dy_, _wide(weight), None) / den
    if kind[0] == "S":
        v_ = 1 if v is None else _wide(v)[:, None, None]
        gate = torch.sigmoid(v_ * x_)
        dx = du * gate * (1 + v_ * x_ * (1 - gate))
        dv, dvar = (du * num * (1 - gate) * x_).sum((2, 3)), None
        ds = -(du * num / s_).sum((2, 3))
    else:
        floor = torch.sqrt(_wide(batch_var) + eps)
        slope, rise = _line(v, s, kind)
        line, dden = slope * x_ + rise, -du * num / den
        # Written so that a NaN reaches both, as in torch.maximum's gradient.
        dline = torch.where(line <= floor[:, None, None], 0, dden)
        dfloor = torch.where(line > floor[:, None, None], 0, dden)
        dx = du + dline * slope
        d_rise, d_slope = dline.sum((2, 3)), (dline * x_).sum((2, 3))
        dv, ds = d_slope, d_rise + d_slope if kind == "B1" else d_rise
        dvar = dfloor.sum((2, 3)) / (2 * floor)
    ds = ds.reshape(n, s.shape[1], c // s.shape[1]).sum(2)
    p = _per_channel(ds / (s * (c // s.shape[1] * h * w)), c)
    dx = dx + p * (x_ - _per_channel(mean, c) if kind in CENTRED else x_)
    if batch_mean is not None:
        count = max(n * h * w, 1)
        dx = dx + (2 / count * dvar.sum(0))[:, None, None] * (x_ - batch_mean[:, None, None])
    of_samples = (dv, dvar, (dy_ * num / den).sum((2, 3)), dy_.sum((2, 3)))
    parameters = (v, var, weight, bias)
    return (
        dx.to(x.dtype).contiguous(memory_format=_memory_format(x)),
        *(
            # As PyTorch has no optional outputs.
            x.new_empty(0, dtype=torch.float32) if p is None else _gradient(p, d)
            for p, d in zip(parameters, of_samples)
        ),
    )


def formula(
    x: Tensor,
    v: Optional[Tensor],
    var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    groups: int,
    eps: float,
    kind: str,
) -> Tensor:
    """y as :func:`forward` has it, by operations with derivatives of any order."""
    x_ = widen(x)
    v_ = x_.new_ones(()) if v is None else _wide(v)[:, None, None]
    if var is None and kind[0] == "B":
        var = variance_over(x_, [0, 2, 3]).flatten()
    batch = [] if var is None else [_wide(var)[..., None, None]]
    function = read_formula(FORMULAS[f"EvoNorm{kind}"]).function
    y = function(x_, x_, v_, batch, groups, eps)
    return affine(y, weight, bias).to(x.dtype)


def _fraction(
    x: Tensor, v: Optional[Tensor], var: Optional[Tensor], s: Tensor, eps: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """num, den and s. The shape of s is (N, C, 1, 1)."""
    s_ = _per_channel(s, x.shape[1])
    if kind[0] == "S":
        return x * torch.sigmoid(x if v is None else _wide(v)[:, None, None] * x), s_, s_
    slope, rise = _line(v, s, kind)
    floor = torch.sqrt(_wide(var) + eps)[:, None, None]
    return x, torch.maximum(floor, slope * x + rise), s_


def _line(v: Optional[Tensor], s: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    rise = s[..., None, None]
    if kind == "B0":
        return torch.ones_like(rise) if v is None else _wide(v)[:, None, None], rise
    return rise if kind == "B1" else -torch.ones_like(rise), rise


def _moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, mean square and variance. Without values they are 0."""
    count = max(x.numel() // max(x.sum(dims).numel(), 1), 1)
    mean = x.sum(dims, keepdim=True) / count
    centred = x - mean
    rest = centred.sum(dims) / count  # the mean's rounding error, large if x has an offset
    variance = centred.square().sum(dims) / count - rest.square()
    mean = mean.reshape(variance.shape) + rest
    return mean, variance + mean.square(), variance


def _by_group(x: Tensor, groups: int, kind: str) -> Tensor:
    n, c, h, w = x.shape
    groups = c if kind[0] == "B" else groups
    return x.reshape(n, groups, c // groups, h, w)


def _per_channel(stat: Tensor, c: int) -> Tensor:
    """Repeat a statistic (N, G) for each channel: (N, C, 1, 1)."""
    n, groups = stat.shape
    return stat[:, :, None].expand(n, groups, c // groups).reshape(n, c, 1, 1)


def _wide(parameter: Optional[Tensor]) -> Optional[Tensor]:
    return None if parameter is None else widen(parameter)


def _gradient(parameter: Tensor, of_samples: Tensor) -> Tensor:
    """Turn a gradient (N, C) into the gradient of a parameter (C,) or (N, C)."""
    return (of_samples if parameter.dim() == 2 else of_samples.sum(0)).to(parameter.dtype)


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format of a result: x's own or, for a part of a larger tensor, the larger tensor's."""
    n, c, h, w = x.shape
    if x.is_contiguous() or c == 1 or h * w == 1:  # both at once
        return torch.contiguous_format
    return suggest_memory_format(x)
