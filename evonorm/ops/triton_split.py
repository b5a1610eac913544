"""The GPU kernels for groups that are divided among programs. The formulas are explained in
reference.py, and what an underscore at the end of a name means in triton_kernels.py.

A tile is some channels by some positions of one sample: groups, or a part of one. `moments` and
`sums` leave moments and sums of each program's tiles in a buffer; `forward` and `backward` add up
those of their groups and write. triton_sums.py has the launches that only add up.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _denominator, _gradients, _inverse, _limit, _load, _parameter, _sigmoid
from .triton_sums import _first, _moments


@triton.jit
def _place(
    channels, blocks, WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_C: tl.constexpr,
    AGAIN: tl.constexpr,
):  # fmt: skip
    """A program's sample, split of the planes, part of a group, groups, channels, and which exist.

    A tile has BLOCK_C / PART groups (of WIDTH channels, filled up to PART), or a part of one.
    """
    GROUPS: tl.constexpr = BLOCK_C // PART
    PARTS: tl.constexpr = (WIDTH + PART - 1) // PART
    pid = tl.program_id(0)
    split = tl.program_id(1)
    if AGAIN:  # backwards: the cache still holds what the first launch read last
        pid = tl.num_programs(0) - 1 - pid
        split = tl.num_programs(1) - 1 - split
    n = (pid // blocks).to(tl.int64)  # since offsets may exceed 2^31
    block = pid % blocks
    part = block % PARTS
    i = tl.arange(0, BLOCK_C)
    within = part * PART + i % PART
    group = block // PARTS * GROUPS + tl.arange(0, GROUPS)
    if WIDTH % PART == 0:  # the same, but the compiler sees that they are consecutive
        c = block * BLOCK_C + i
    else:
        c = (block // PARTS * GROUPS + i // PART) * WIDTH + within
    return n, split, part, group, c, (within < WIDTH) & (c < channels)


@triton.jit
def _tile(number, n, c, exists, channels, plane, BLOCK_P: tl.constexpr, LAST: tl.constexpr):
    """Offsets of a tile's values in the tensor, and which of the values exist."""
    p = number * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    if LAST:
        at = (n * plane + p) * channels + c[:, None]
    else:
        at = (n * channels + c[:, None]) * plane + p
    return at, exists[:, None] & (p < plane)


@triton.jit
def _of_groups(values, PART: tl.constexpr, LAST: tl.constexpr):
    """The sum of each group of a tile, first over what lies with one thread."""
    GROUPS: tl.constexpr = values.shape[0] // PART
    if LAST and values.shape[1] > 1:
        of_positions = tl.sum(tl.reshape(values, (GROUPS, PART, values.shape[1])), 1)
        sums = tl.sum(of_positions, 1)
    else:
        sums = tl.sum(tl.reshape(tl.sum(values, 1), (GROUPS, PART)), 1)
    return sums


@triton.jit
def _by_channel(of_groups, PART: tl.constexpr):
    """Repeat (groups,) for each channel: (BLOCK_C, 1)."""
    GROUPS: tl.constexpr = of_groups.shape[0]
    return tl.reshape(tl.broadcast_to(of_groups[:, None], (GROUPS, PART)), (GROUPS * PART, 1))


@triton.jit
def moments(
    x_, parts, batch, channels, plane, blocks, splits, tiles, LAST: tl.constexpr,
    ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write the parts' moments (3, batch, groups, parts): count, mean less the group's first value
    (as an offset would cost digits), sum of squares about the mean.
    """
    if LAST:  # the same, but the compiler sees that it is a multiple
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(channels, blocks, WIDTH, PART, BLOCK_C, False)
    begin = split * tiles
    end = tl.minimum(begin + tiles, tl.cdiv(plane, BLOCK_P))
    wide = tl.minimum(PART, WIDTH - part * PART)  # channels of a group in the tile
    # Subtract the mean of the first tile: the first value may be far from the others.
    at, mask = _tile(begin, n, c, exists, channels, plane, BLOCK_P, LAST)
    count = 1.0 * wide * tl.minimum(plane - begin * BLOCK_P, BLOCK_P)
    shift = _of_groups(_load(x_, at, mask), PART, LAST) * _inverse(count)
    of_channel = _by_channel(shift, PART)
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    squares = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in range(begin, end):
        at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
        difference = tl.where(mask, _load(x_, at, mask) - of_channel, 0.0)
        total += difference
        squares += difference * difference
    count = 1.0 * wide * tl.minimum(plane - begin * BLOCK_P, tiles * BLOCK_P)
    total_of_group = _of_groups(total, PART, LAST)
    mean = total_of_group / count
    about = _of_groups(squares, PART, LAST) - total_of_group * mean
    about = tl.maximum(about, 0.0, propagate_nan=tl.PropagateNan.ALL)
    number = splits * tl.cdiv(WIDTH, PART)
    to = parts + (n * groups + group) * number + part * splits + split
    size = n * 0 + batch * groups * number  # in 64 bits
    tl.store(to, tl.zeros(mean.shape, tl.float32) + count, mask=group < groups)
    first = _load(x_, _first(n, group * WIDTH, channels, plane, LAST), group < groups)
    tl.store(to + size, mean + (shift - first), mask=group < groups)
    tl.store(to + 2 * size, about, mask=group < groups)


@triton.jit
def forward(
    x_, y_, v_, var_, weight_, bias_, stats, batch_stats, parts, number, weight_step, bias_step,
    batch, channels, plane, blocks, splits, tiles, eps, KIND: tl.constexpr, GATED: tl.constexpr,
    CENTRED: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr,
    OWN_VAR: tl.constexpr,
):  # fmt: skip
    """Write y and stats (2, batch, groups), from what `moments` left, a group's `number` parts."""
    if LAST:
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(channels, blocks, WIDTH, PART, BLOCK_C, True)
    begin = split * tiles
    end = tl.minimum(begin + tiles, tl.cdiv(plane, BLOCK_P))

    j = tl.arange(0, BLOCK_I)[None, :]
    there = (group < groups)[:, None] & (j < number)
    part_at = (n * groups + group[:, None]) * number + j
    size = n * 0 + batch * groups * number
    count = _load(parts, part_at, there)
    means = _load(parts + size, part_at, there)
    count, mean, square = _moments(count, means, _load(parts + 2 * size, part_at, there))
    square *= _inverse(tl.maximum(count, 1.0))
    mean += _load(x_, _first(n, group * WIDTH, channels, plane, LAST), group < groups)
    if not CENTRED:
        square += mean * mean
    s = tl.sqrt(square + eps)
    first = (group < groups) & (split == 0) & (part == 0)
    tl.store(stats + n * groups + group, mean, mask=first)
    tl.store(stats + (batch + n) * groups + group, s, mask=first)

    v = _parameter(v_, 1.0, c, exists)[:, None]
    if OWN_VAR:
        var = _load(batch_stats, channels + c, exists)[:, None]
    else:
        var = _parameter(var_, 0.0, c, exists)[:, None]
    floor = tl.sqrt(var + eps)
    scale = _parameter(weight_, 1.0, n * weight_step + c, exists)[:, None]
    bias = _parameter(bias_, 0.0, n * bias_step + c, exists)[:, None]
    if GATED:
        scale = scale * _by_channel(_inverse(s), PART)
    s_of_channel = _by_channel(s, PART)
    for i in range(begin, end):
        # Backwards too. What is written will not be read soon, so it leaves the cache first.
        at, mask = _tile(begin + end - 1 - i, n, c, exists, channels, plane, BLOCK_P, LAST)
        x = _load(x_, at, mask)
        if GATED:
            y = x * _sigmoid(v, x) * scale + bias
        else:
            denominator = _denominator(x, v, s_of_channel, floor, KIND)[2]
            y = x * scale * _inverse(denominator) + bias
        tl.store(y_ + at, _limit(y, y_), mask=mask, eviction_policy="evict_first")


@triton.jit
def sums(
    dy_, x_, v_, var_, weight_, stats, batch_stats, d_s_, sums_, weight_step, batch, channels,
    plane, blocks, splits, tiles, eps, KIND: tl.constexpr, GATED: tl.constexpr,
    LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, OWN_VAR: tl.constexpr,
):  # fmt: skip
    """Write the gradients of v, var, weight, bias in parts (4, batch, splits, channels), and that
    of s in parts (batch, groups, parts).
    """
    if LAST:
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(channels, blocks, WIDTH, PART, BLOCK_C, False)
    begin = split * tiles
    end = tl.minimum(begin + tiles, tl.cdiv(plane, BLOCK_P))
    s = tl.load(stats + (batch + n) * groups + group, mask=group < groups, other=1.0)
    v = _parameter(v_, 1.0, c, exists)[:, None]
    if OWN_VAR:
        var = _load(batch_stats, channels + c, exists)[:, None]
    else:
        var = _parameter(var_, 0.0, c, exists)[:, None]
    floor = tl.sqrt(var + eps)
    scale = _parameter(weight_, 1.0, n * weight_step + c, exists)[:, None]
    s_of_channel = _by_channel(s, PART)
    by_bias = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    by_weight = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    by_v = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    by_line = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    by_floor = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in range(begin, end):
        at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
        x = _load(x_, at, mask)
        dy = _load(dy_, at, mask)
        _, of_weight, of_v, of_line, of_denominator = _gradients(
            x, dy, v, s_of_channel, floor, KIND, GATED
        )
        by_bias += dy
        by_weight += of_weight
        by_v += of_v
        if not GATED:
            by_line += of_line
            by_floor += of_denominator - of_line
    d_bias = tl.sum(by_bias, 1, keep_dims=True)
    d_weight = tl.sum(by_weight, 1, keep_dims=True)
    d_v = tl.sum(by_v, 1, keep_dims=True) * scale
    size = n * 0 + batch * splits * channels
    to = sums_ + (n * splits + split) * channels + c[:, None]
    if GATED:
        inverse = _inverse(s_of_channel)
        d_weight = d_weight * inverse
        d_v = d_v * inverse
        d_s = -scale * d_weight * inverse
    else:
        d_v = -d_v
        d_s = -tl.sum(by_line, 1, keep_dims=True) * scale
        if KIND == "B1":
            d_s += d_v
        d_floor = -tl.sum(by_floor, 1, keep_dims=True) * scale
        tl.store(to + size, d_floor * _inverse(2.0 * floor), mask=exists[:, None])
    tl.store(to, d_v, mask=exists[:, None])
    tl.store(to + 2 * size, d_weight, mask=exists[:, None])
    tl.store(to + 3 * size, d_bias, mask=exists[:, None])
    number = splits * tl.cdiv(WIDTH, PART)
    to = d_s_ + (n * groups + group) * number + part * splits + split
    tl.store(to, _of_groups(d_s, PART, LAST), mask=group < groups)


@triton.jit
def backward(
    dy_, x_, dx_, v_, var_, weight_, stats, batch_stats, d_var_, d_s_, number, weight_step, batch,
    channels, plane, blocks, splits, tiles, eps, KIND: tl.constexpr, GATED: tl.constexpr,
    CENTRED: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr,
    OWN_VAR: tl.constexpr,
):  # fmt: skip
    """Write dx, from what `sums` left, a group's `number` parts, and, with OWN_VAR, the gradient of
    the batch's variance.
    """
    if LAST:
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(channels, blocks, WIDTH, PART, BLOCK_C, True)
    begin = split * tiles
    end = tl.minimum(begin + tiles, tl.cdiv(plane, BLOCK_P))
    s = tl.load(stats + (batch + n) * groups + group, mask=group < groups, other=1.0)
    v = _parameter(v_, 1.0, c, exists)[:, None]
    scale = _parameter(weight_, 1.0, n * weight_step + c, exists)[:, None]
    if OWN_VAR:
        var = _load(batch_stats, channels + c, exists)[:, None]
        batch_mean = _load(batch_stats, c, exists)[:, None]
        slope_of_batch = _load(d_var_, c, exists)[:, None] * (2.0 / batch / plane)
    else:
        var = _parameter(var_, 0.0, c, exists)[:, None]
    floor = tl.sqrt(var + eps)
    j = tl.arange(0, BLOCK_I)[None, :]
    there = (group < groups)[:, None] & (j < number)
    d_s = tl.sum(_load(d_s_, (n * groups + group[:, None]) * number + j, there), 1)
    slope = _by_channel(d_s * _inverse(s * WIDTH * plane), PART)
    mean = 0.0
    if CENTRED:
        mean = _by_channel(_load(stats, n * groups + group, group < groups), PART)
    if OWN_VAR:  # slope * (x - mean) + slope_of_batch * (x - batch_mean), about one centre
        rest = slope * (batch_mean - mean)
        slope += slope_of_batch
    s_of_channel = _by_channel(s, PART)
    if GATED:
        scale = scale * _by_channel(_inverse(s), PART)
    for i in range(begin, end):
        at, mask = _tile(begin + end - 1 - i, n, c, exists, channels, plane, BLOCK_P, LAST)
        x = _load(x_, at, mask)
        dy = _load(dy_, at, mask)
        dx = _gradients(x, dy, v, s_of_channel, floor, KIND, GATED)[0] * scale
        if OWN_VAR:
            dx += slope * (x - batch_mean) + rest
        else:
            dx += slope * (x - mean if CENTRED else x)
        tl.store(dx_ + at, dx, mask=mask, eviction_policy="evict_first")
