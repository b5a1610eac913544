"""The GPU kernels that add up what other launches left: moments, sums, and gradients of parameters.
The formulas are explained in reference.py, and what an underscore at the end of a name means in
triton_kernels.py.

`add_up` gives each group one part, where it has many; `combine` and `finish` add up what belongs to
channels.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _inverse, _load


@triton.jit
def _first(n, c, channels, plane, LAST: tl.constexpr):
    """Offset of a channel's first value."""
    if LAST:
        at = n * plane * channels + c
    else:
        at = (n * channels + c) * plane
    return at


@triton.jit
def _moments(count, means, squares):
    """Count, mean and sum of squares about the mean of what has these in parts, along axis 1."""
    total = tl.sum(count, 1)
    mean = tl.sum(count * means, 1) * _inverse(tl.maximum(total, 1.0))
    delta = means - mean[:, None]
    return total, mean, tl.sum(squares + count * delta * delta, 1)


@triton.jit
def add_up(
    parts, wholes, groups, number, MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write moments (3, groups) or, without MOMENTS, sums (groups,), from those of the groups'
    parts, (3, groups, number) or (groups, number). Groups of different samples count apart.
    """
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, BLOCK_I)[None, :]
    mask = (group < groups)[:, None] & (j < number)
    at = group[:, None] * number + j
    first = _load(parts, at, mask)
    if MOMENTS:
        size = tl.program_id(0).to(tl.int64) * 0 + groups
        means = _load(parts + size * number, at, mask)
        squares = _load(parts + 2 * size * number, at, mask)
        count, mean, square = _moments(first, means, squares)
        tl.store(wholes + group, count, mask=group < groups)
        tl.store(wholes + size + group, mean, mask=group < groups)
        tl.store(wholes + 2 * size + group, square, mask=group < groups)
    else:
        tl.store(wholes + group, tl.sum(first, 1), mask=group < groups)


@triton.jit
def combine(
    x_, parts, batch_stats, batch, channels, plane, number, LAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write mean and variance of the whole batch, (2, channels), from what `moments` left of the
    `number` parts of each plane: Chan, Golub and LeVeque (1983).
    """
    c = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    shift = _load(x_, _first(0, c, channels, plane, LAST), c < channels)
    count = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    mean = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    squares = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    for begin in range(0, batch * number, BLOCK_I):
        j = begin + tl.arange(0, BLOCK_I)[None, :]
        mask = (c < channels) & (j < batch * number)
        n = j // number
        at = (n * channels + c) * number + j % number
        size = at * 0 + batch * channels * number
        more = _load(parts, at, mask)
        own_shift = _load(x_, _first(n, c, channels, plane, LAST), mask)
        delta = _load(parts + size, at, mask) + (own_shift - shift) - mean
        share = more * _inverse(tl.maximum(count + more, 1.0))
        mean += delta * share
        squares += _load(parts + 2 * size, at, mask) + delta * delta * count * share
        count += more
    total = tl.sum(count, 1)
    mean_of_all = (tl.sum(count * mean, 1) / tl.maximum(total, 1.0))[:, None]
    delta = mean - mean_of_all
    var = tl.sum(squares + count * delta * delta, 1) / tl.maximum(total, 1.0)
    tl.store(batch_stats + c, mean_of_all + shift, mask=c < channels)
    tl.store(batch_stats + channels + c, var[:, None], mask=c < channels)


@triton.jit
def _finish(
    values, out_, batch, splits, channels, block, EACH: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    c = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, BLOCK_R)[:, None].to(tl.int64)
    if EACH:
        for begin in range(0, batch, BLOCK_R):
            n = begin + row
            mask = (n < batch) & (c < channels)
            total = tl.zeros((BLOCK_R, BLOCK), tl.float32)
            for split in range(0, splits):
                total += _load(values, (n * splits + split) * channels + c, mask)
            tl.store(out_ + n * channels + c, total, mask=mask)
    else:
        total = tl.zeros((BLOCK_R, BLOCK), tl.float32)
        for begin in range(0, batch * splits, BLOCK_R):
            mask = (begin + row < batch * splits) & (c < channels)
            total += _load(values, (begin + row) * channels + c, mask)
        of_channels = tl.sum(total, 0)[None, :]
        tl.store(out_ + c, of_channels, mask=c < channels)


@triton.jit
def finish(
    sums_, d_v_, d_var_, d_weight_, d_bias_, batch, splits, channels, EACH_WEIGHT: tl.constexpr,
    EACH_BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the parameters there are, in their dtype, from their parts, sums_ of
    shape (4, batch, splits, channels). Those of a parameter per sample are (batch, channels).
    """
    which = tl.program_id(0) % 4
    block = tl.program_id(0) // 4
    size = (which * 0).to(tl.int64) + batch * splits * channels
    values = sums_ + which * size
    if d_v_ is not None:
        if which == 0:
            _finish(values, d_v_, batch, splits, channels, block, False, BLOCK_R, BLOCK)
    if d_var_ is not None:
        if which == 1:
            _finish(values, d_var_, batch, splits, channels, block, False, BLOCK_R, BLOCK)
    if d_weight_ is not None:
        if which == 2:
            _finish(values, d_weight_, batch, splits, channels, block, EACH_WEIGHT, BLOCK_R,
                    BLOCK)  # fmt: skip
    if d_bias_ is not None:
        if which == 3:
            _finish(values, d_bias_, batch, splits, channels, block, EACH_BIAS, BLOCK_R,
                    BLOCK)  # fmt: skip
