"""The operators on a GPU: forward and backward passes by the launches that cuda_plan.py plans."""

from __future__ import annotations

from typing import Optional

import torch
import triton
from torch import Tensor

from . import reference
from . import triton_kernels as kernels
from .cuda_plan import are_aligned, call_for

VERSION = triton.__version__


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
    call = call_for(x, parameters, groups, kind, 1)
    if call.by_reference:
        return reference.forward(x, *parameters, groups, eps, kind)
    x, (v, var, weight, bias) = call.dense(x, parameters)
    y = torch.empty_like(x, memory_format=call.layout)
    stats = x.new_empty((2, call.n, call.groups), dtype=torch.float32)
    batch_stats = x.new_empty((2, call.c if call.own_var else 0), dtype=torch.float32)
    aligned = are_aligned(x, v, var, weight, bias)
    n, c, plane, steps = call.n, call.c, call.plane, call.steps
    with torch.cuda.device_of(x):
        if call.at_once:
            call.write(aligned, x, y, v, weight, bias, stats, batch_stats, *steps, n, c, plane, eps)
            return y, stats, batch_stats
        if call.whole:
            call.write(
                aligned, x, y, v, var, weight, bias, stats, batch_stats, *steps, n, c, plane,
                call.samples, eps,
            )  # fmt: skip
            return y, stats, batch_stats
        parts = x.new_empty((3, n, call.groups, call.parts), dtype=torch.float32)
        call.reduce(aligned, x, parts, n, c, plane, *call.division)
        parts = call.added_up(parts)
        if call.own_var:
            call.combine(aligned, x, parts, batch_stats, n, c, plane, call.number)
        call.write(
            aligned, x, y, v, var, weight, bias, stats, batch_stats, parts, call.number, *steps, n,
            c, plane, *call.division, eps,
        )  # fmt: skip
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
    call = call_for(x, parameters, groups, kind, 2)
    if call.by_reference:
        return reference.backward(dy, x, *parameters, stats, batch_stats, groups, eps, kind)
    x, (v, var, weight, _) = call.dense(x, parameters)
    if dy.dtype != x.dtype:
        dy = dy.to(x.dtype)
    dy, stats = dy.contiguous(memory_format=call.layout), stats.contiguous()
    dx = torch.empty_like(x, memory_format=call.layout)
    sums = x.new_empty((4, call.rows, call.c), dtype=torch.float32)  # for v, var, weight, bias
    # Not parts of one tensor: what PyTorch compiles takes it that gradients are aligned.
    gradients = [
        x.new_empty(0, dtype=torch.float32) if p is None else p.new_empty(p.shape)
        for p in parameters
    ]
    outputs = [None if p is None else d for p, d in zip(parameters, gradients)]
    aligned = are_aligned(x, dy, v, var, weight, stats, batch_stats)
    n, c, plane, step = call.n, call.c, call.plane, call.steps[0]
    with torch.cuda.device_of(x):
        if call.at_once:
            call.write(
                aligned, dy, x, dx, v, weight, stats, batch_stats, sums, step, n, c, plane, eps
            )
        elif call.whole:
            call.write(
                aligned, dy, x, dx, v, var, weight, stats, batch_stats, sums, step, n, c, plane,
                call.samples, eps,
            )  # fmt: skip
        if call.at_once or call.whole:
            if call.finishes:
                call.finish(True, sums, *outputs, *call.finished)
            return (dx, *gradients)
        d_s = x.new_empty((n, call.groups, call.parts), dtype=torch.float32)
        call.reduce(
            aligned, dy, x, v, var, weight, stats, batch_stats, d_s, sums, step, n, c, plane,
            *call.division, eps,
        )  # fmt: skip
        if call.own_var:
            outputs[1] = x.new_empty(c, dtype=torch.float32)
        if call.finishes or call.own_var:
            call.finish(True, sums, *outputs, *call.finished)
        d_s = call.added_up(d_s)
        call.write(
            aligned, dy, x, dx, v, var, weight, stats, batch_stats, outputs[1], d_s, call.number,
            step, n, c, plane, *call.division, eps,
        )  # fmt: skip
    return (dx, *gradients)


def probe() -> None:
    """Compile and launch a kernel, to see whether that works."""
    kernels.probe[(1, 1, 1)](torch.empty(1, device="cuda"))
