"""The operators on a GPU: how a tensor is divided among programs, and which kernels run."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
import triton
from torch import Tensor

from . import reference
from . import triton_kernels as kernels

ON_CHIP = 16384  # values of the largest tile: 32 for each of 512 threads
TILE = 4096  # values of a tile if there are many tiles; at least 128
PER_PROCESSOR = 4  # programs: some compute while others wait for the memory


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
    """See `reference.forward`, which takes over float64 and empty tensors."""
    parameters = (v, var, weight, bias)
    _check(x, parameters, groups, kind)
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.forward(x, *parameters, groups, eps, kind)
    x, layout, last = _dense(x)
    n, c, h, w = x.shape
    groups = c if kind[0] == "B" else groups
    own_var = kind[0] == "B" and var is None
    plan = _plan(x, c // groups, last, own_var, tensors=1)
    y = torch.empty_like(x, memory_format=layout)
    stats = x.new_empty((2, n, groups), dtype=torch.float32)
    batch_stats = x.new_empty((2, c if own_var else 0), dtype=torch.float32)
    parts = x.new_empty((0 if plan.once else 3, n, groups, plan.parts), dtype=torch.float32)
    (v, _), (var, _) = _rows(v), _rows(batch_stats[1] if own_var else var)
    (weight, weight_step), (bias, bias_step) = _rows(weight), _rows(bias)

    constants = _constants(plan, kind, last, c // groups, c if last else h * w)

    def launch(reduce: bool, write: bool) -> None:
        kernels.forward[(plan.programs,)](
            x, y, v, var, weight, bias, stats, parts, weight_step, bias_step, n, c, h * w,
            plan.blocks, plan.splits, plan.tiles, eps, REDUCE=reduce, WRITE=write, **constants,
        )  # fmt: skip

    def combine(into: Tensor, whole: bool) -> None:
        kernels.combine[(triton.cdiv(into[0].numel(), 4),)](
            x, parts, into, n, c, h * w, plan.parts, eps, WIDTH=c // groups,
            CENTRED=kind in reference.CENTRED, LAST=last, WHOLE=whole, BLOCK=4, BLOCK_I=128,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        launch(True, plan.once)
        if plan.parts > 1:
            combine(stats, whole=False)
        if own_var:
            combine(batch_stats, whole=True)
        if not plan.once:
            launch(False, True)
    return y, stats, batch_stats


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
    """See `reference.backward`, which takes over float64 and empty tensors."""
    parameters = (v, var, weight, bias)
    _check(x, parameters, groups, kind)
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.backward(dy, x, *parameters, stats, batch_stats, groups, eps, kind)
    x, layout, last = _dense(x)
    dy, stats = dy.to(x.dtype).contiguous(memory_format=layout), stats.contiguous()
    n, c, h, w = x.shape
    groups = c if kind[0] == "B" else groups
    own_var = kind[0] == "B" and var is None
    plan = _plan(x, c // groups, last, own_var, tensors=2)
    dx = torch.empty_like(x, memory_format=layout)
    sums = x.new_empty((4, n, plan.splits, c), dtype=torch.float32)  # for v, var, weight, bias
    d_s = x.new_empty((n, groups, plan.parts), dtype=torch.float32)
    batch_mean, var = batch_stats if own_var else (None, var)
    (v, _), (var, _), (batch_mean, _) = _rows(v), _rows(var), _rows(batch_mean)
    weight, weight_step = _rows(weight)
    constants = _constants(plan, kind, last, c // groups, c if last else h * w)

    def launch(reduce: bool, write: bool, d_s: Tensor, d_var: Optional[Tensor] = None) -> None:
        kernels.backward[(plan.programs,)](
            dy, x, dx, v, var, weight, stats, batch_mean, d_var, d_s, sums, weight_step, n, c,
            h * w, plan.blocks, plan.splits, plan.tiles, eps, REDUCE=reduce, WRITE=write,
            **constants,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        launch(True, plan.once, d_s)
        totals = sums.sum((1, 2))
        if not plan.once:
            launch(False, True, d_s.sum(2), totals[1] if own_var else None)
    gradients = (
        x.new_empty(0, dtype=torch.float32)  # as PyTorch has no optional outputs
        if p is None
        else (of_samples.sum(1) if p.dim() == 2 else total).to(p.dtype)
        for p, of_samples, total in zip(parameters, sums, totals)
    )
    return (dx, *gradients)


class _Plan(NamedTuple):
    """How a tensor is divided among programs."""

    once: bool  # whether one launch does all
    blocks: int  # the channels are divided into these
    splits: int  # a plane is divided into these
    tiles: int  # a split is divided into these
    parts: int  # a group is divided into these
    part: int  # channels of a group in a tile
    block_c: int
    block_p: int
    programs: int
    warps: int


def _plan(x: Tensor, width: int, last: bool, own_var: bool, tensors: int) -> _Plan:
    """Divide x, with groups of `width` channels. A tile holds values of `tensors` such tensors."""
    n, c, h, w = x.shape
    plane, groups, group = h * w, c // width, triton.next_power_of_2(width)
    row, column = triton.next_power_of_2(plane), triton.next_power_of_2(groups) * group
    wanted = _wanted(x.device)
    # A GPU reads 32 bytes at a time.
    block_c, block_p = max(group, min(32 // x.element_size(), column) if last else 1), row
    once = not own_var and block_c * row <= ON_CHIP // tensors
    if once:
        while 2 * block_c * row <= 1024 and n * groups * group >= 2 * block_c * wanted:
            block_c *= 2
    else:
        tile = TILE // tensors
        block_c = min(64, column) if last else min(tile // min(tile // 4, row), column)
        block_p = min(tile // block_c, row)
    part = min(group, block_c)
    blocks = triton.cdiv(groups, block_c // part) * triton.cdiv(width, part)
    tiles = triton.cdiv(plane, block_p)
    tiles = triton.cdiv(tiles, max(wanted // (n * blocks), 1))
    splits = triton.cdiv(triton.cdiv(plane, block_p), tiles)
    return _Plan(
        once=once,
        blocks=blocks,
        splits=splits,
        tiles=tiles,
        parts=splits * triton.cdiv(width, part),
        part=part,
        block_c=block_c,
        block_p=block_p,
        programs=n * blocks * splits,
        warps=min(max(block_c * block_p * tensors // 512, 1), 16),
    )


@lru_cache
def _wanted(device: torch.device) -> int:
    """Programs that occupy the device."""
    if device.type != "cuda":
        return 4  # Triton's interpreter
    return PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _constants(plan: _Plan, kind: str, last: bool, width: int, stride: int) -> dict[str, Any]:
    return {
        "KIND": kind,
        "CENTRED": kind in reference.CENTRED,
        "LAST": last,
        "ALIGN": math.gcd(stride, 16),
        "WIDTH": width,
        "PART": plan.part,
        "BLOCK_C": plan.block_c,
        "BLOCK_P": plan.block_p,
        "num_warps": plan.warps,
    }


def _dense(x: Tensor) -> tuple[Tensor, torch.memory_format, bool]:
    """x in a dense layout (copied if it has none), the layout, and whether channels are last."""
    layout = reference._memory_format(x)
    last = layout == torch.channels_last or x.shape[2] * x.shape[3] == 1
    return x.contiguous(memory_format=layout), layout, last


def _rows(parameter: Optional[Tensor]) -> tuple[Optional[Tensor], int]:
    """A parameter with consecutive channels, and the step from one sample's row to the next."""
    if parameter is not None and parameter.stride(-1) != 1:
        parameter = parameter.contiguous()
    return parameter, parameter.stride(0) if parameter is not None and parameter.dim() == 2 else 0


def _check(x: Tensor, parameters: tuple[Optional[Tensor], ...], groups: int, kind: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"x should be (N, C, H, W), not of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x should be floating-point, not {x.dtype}")
    if kind not in reference.KINDS:
        raise ValueError(f"kind should be one of {', '.join(reference.KINDS)}, not {kind}")
    n, c = x.shape[:2]
    if kind[0] == "S" and (groups < 1 or c % groups):
        raise ValueError(f"{groups} groups don't divide {c} channels")
    for name, p in zip(("v", "var", "weight", "bias"), parameters):
        if p is None:
            continue
        right = [(c,), (n, c)] if name in ("weight", "bias") else [(c,)]
        if tuple(p.shape) not in right:
            shapes = " or ".join(map(str, right))
            raise ValueError(f"{name} should have the shape {shapes}, not {tuple(p.shape)}")
        if p.device != x.device:
            raise ValueError(f"{name} should be on {x.device}, as x is, not on {p.device}")
