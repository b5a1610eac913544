"""The GPU kernels for groups that fit on a multiprocessor. The formulas are explained in
reference.py, and what an underscore at the end of a name means in triton_kernels.py.

A tile is (COLUMNS, ROWS, RUN): a row is a plane, or a channel where channels are last, and position
p of a row is at p // RUN and p % RUN. The values of a row lie with few threads, so its sums take
few exchanges between threads. A program walks through samples with one group, or as many groups as
there are rows. It adds up its samples' sums for the gradients of parameters.

With OWN_VAR, a row is a sample of one channel, and the program has all samples of the channel: it
goes through them once for the variance, and again for the rest.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import (
    _denominator,
    _gradients,
    _inverse,
    _limit,
    _load,
    _parameter,
    _sigmoid,
)


@triton.jit
def _channels(
    block, channels, WIDTH: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr,
    OWN_VAR: tl.constexpr,
):  # fmt: skip
    """The groups of a tile (a number where there is one), each row's channel, whether it exists."""
    row = tl.arange(0, ROWS)
    if OWN_VAR:
        group = block
        c = block + 0 * row
        exists = row >= 0
    else:
        if PART == ROWS:
            group = block
        else:
            group = block * (ROWS // PART) + tl.arange(0, ROWS // PART)
        if WIDTH == PART:
            c = block * ROWS + row
        else:
            c = (block * (ROWS // PART) + row // PART) * WIDTH + row % PART
        exists = (row % PART < WIDTH) & (c < channels)
    return group, c, exists


@triton.jit
def _tile(
    n, c, exists, channels, plane, COLUMNS: tl.constexpr, RUN: tl.constexpr, LAST: tl.constexpr
):
    """Offsets of a tile's values in the tensor, and which of the values exist."""
    p = tl.arange(0, COLUMNS)[:, None, None] * RUN + tl.arange(0, RUN)[None, None, :]
    if LAST:
        at = (n * plane + p) * channels + c[None, :, None]
    else:
        at = (n * channels + c)[None, :, None] * plane + p
    return at, exists[None, :, None] & (p < plane)


@triton.jit
def _of_rows(values):
    """The sum of each row. One sum, not one along each side, takes fewer exchanges of threads."""
    ROWS: tl.constexpr = values.shape[1]
    SIZE: tl.constexpr = values.shape[0] * values.shape[2]
    return tl.sum(tl.reshape(tl.permute(values, (1, 0, 2)), (ROWS, SIZE)), 1)


@triton.jit
def _of_groups(values, PART: tl.constexpr, ROWS: tl.constexpr):
    """The sum of each group, a number if the tile is one."""
    if PART == ROWS:
        sums = tl.sum(values)
    elif PART == 1:
        sums = _of_rows(values)
    else:  # the channels of a group are with one thread if channels are last
        COLUMNS: tl.constexpr = values.shape[0]
        RUN: tl.constexpr = values.shape[2]
        by_group = tl.reshape(values, (COLUMNS, ROWS // PART, PART * RUN))
        sums = tl.sum(tl.sum(by_group, 2), 0)
    return sums


@triton.jit
def _to_rows(of_groups, PART: tl.constexpr, ROWS: tl.constexpr):
    """Repeat what each group has for its rows."""
    if PART == ROWS:
        values = of_groups
    elif PART == 1:
        values = of_groups[None, :, None]
    else:
        GROUPS: tl.constexpr = ROWS // PART
        repeated = tl.broadcast_to(of_groups[:, None], (GROUPS, PART))
        values = tl.reshape(repeated, (1, ROWS, 1))
    return values


@triton.jit
def forward(
    x_, y_, v_, var_, weight_, bias_, stats, batch_stats, weight_step, bias_step, batch, channels,
    plane, samples, eps, KIND: tl.constexpr, GATED: tl.constexpr, CENTRED: tl.constexpr,
    LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr, OWN_VAR: tl.constexpr,
):  # fmt: skip
    """Write y and stats (2, batch, groups) and, with OWN_VAR, batch_stats (2, channels)."""
    if LAST:  # the same, but the compiler sees that it is a multiple
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    block = tl.program_id(0)
    first = tl.program_id(1).to(tl.int64) * samples  # since offsets may exceed 2^31
    end = tl.minimum(first + samples, batch)
    groups = channels // WIDTH
    group, c, exists = _channels(block, channels, WIDTH, PART, ROWS, OWN_VAR)
    v = _parameter(v_, 1.0, c, exists)[None, :, None]
    weight = _parameter(weight_, 1.0, first * weight_step + c, exists)[None, :, None]
    bias = _parameter(bias_, 0.0, first * bias_step + c, exists)[None, :, None]
    var = _parameter(var_, 0.0, c, exists)[None, :, None]

    if OWN_VAR:
        of_row = first + tl.arange(0, ROWS)
        at, mask = _tile(of_row, c, of_row < end, channels, plane, COLUMNS, RUN, LAST)
        # An offset would cost digits: subtract the mean of a tile.
        shift = tl.sum(_load(x_, at, mask)) / tl.sum(mask.to(tl.float32))
        total = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)
        squares = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)
        for n in range(first, end, ROWS):
            of_row = n + tl.arange(0, ROWS)
            at, mask = _tile(of_row, c, of_row < end, channels, plane, COLUMNS, RUN, LAST)
            difference = tl.where(mask, _load(x_, at, mask) - shift, 0.0)
            total += difference
            squares += difference * difference
        count = 1.0 * batch * plane
        mean_of_batch = tl.sum(total) / count
        var_of_batch = tl.sum(squares) / count - mean_of_batch * mean_of_batch
        var = tl.maximum(var_of_batch, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(batch_stats + block, mean_of_batch + shift)
        tl.store(batch_stats + channels + block, var)
    floor = tl.sqrt(var + eps)

    STEP: tl.constexpr = ROWS if OWN_VAR else 1
    for n in range(first, end, STEP):
        if OWN_VAR:
            of_row = n + tl.arange(0, ROWS)
            of_group = of_row
            stored = of_row < end
            at, mask = _tile(of_row, c, stored, channels, plane, COLUMNS, RUN, LAST)
        else:
            of_group = n
            stored = group < groups
            at, mask = _tile(n, c, exists, channels, plane, COLUMNS, RUN, LAST)
        x = _load(x_, at, mask)
        per_value = 1.0 / (plane * WIDTH)
        mean = _of_groups(x, PART, ROWS) * per_value
        if CENTRED:
            centred = tl.where(mask, x - _to_rows(mean, PART, ROWS), 0.0)
            rest = _of_groups(centred, PART, ROWS) * per_value  # the mean's rounding error
            square = _of_groups(centred * centred, PART, ROWS) * per_value - rest * rest
            mean += rest
        else:
            square = _of_groups(x * x, PART, ROWS) * per_value
        s = tl.sqrt(square + eps)
        tl.store(stats + of_group * groups + group, mean, mask=stored)
        tl.store(stats + (batch + of_group) * groups + group, s, mask=stored)
        if GATED:
            y = x * _sigmoid(v, x) * (weight * _to_rows(_inverse(s), PART, ROWS)) + bias
        else:
            denominator = _denominator(x, v, _to_rows(s, PART, ROWS), floor, KIND)[2]
            y = x * weight * _inverse(denominator) + bias
        tl.store(y_ + at, _limit(y, y_), mask=mask)


@triton.jit
def backward(
    dy_, x_, dx_, v_, var_, weight_, stats, batch_stats, sums, weight_step, batch, channels, plane,
    samples, eps, KIND: tl.constexpr, GATED: tl.constexpr, CENTRED: tl.constexpr,
    LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RUN: tl.constexpr, OWN_VAR: tl.constexpr,
):  # fmt: skip
    """Write dx, and the gradients of v, var, weight, bias in parts (4, programs, channels)."""
    if LAST:
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    block = tl.program_id(0)
    chunk = tl.program_id(1).to(tl.int64)
    first = chunk * samples
    end = tl.minimum(first + samples, batch)
    groups = channels // WIDTH
    group, c, exists = _channels(block, channels, WIDTH, PART, ROWS, OWN_VAR)
    v = _parameter(v_, 1.0, c, exists)[None, :, None]
    weight = _parameter(weight_, 1.0, first * weight_step + c, exists)[None, :, None]
    if OWN_VAR:
        batch_mean = tl.load(batch_stats + block)
        var = tl.load(batch_stats + channels + block)
    else:
        var = _parameter(var_, 0.0, c, exists)[None, :, None]
    floor = tl.sqrt(var + eps)
    by_bias = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)
    by_weight = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)
    by_v = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)
    by_floor = tl.zeros((COLUMNS, ROWS, RUN), tl.float32)

    if OWN_VAR:
        for n in range(first, end, ROWS):
            of_row = n + tl.arange(0, ROWS)
            stored = of_row < end
            at, mask = _tile(of_row, c, stored, channels, plane, COLUMNS, RUN, LAST)
            x = _load(x_, at, mask)
            dy = _load(dy_, at, mask)
            s = tl.load(stats + (batch + of_row) * groups + group, mask=stored, other=1.0)
            _, of_weight, of_v, of_line, of_denominator = _gradients(
                x, dy, v, s[None, :, None], floor, KIND, GATED
            )
            by_bias += dy
            by_weight += of_weight
            by_v += of_v
            by_floor += of_denominator - of_line
        scale = tl.sum(weight) / ROWS
        d_var = -tl.sum(by_floor) * scale * _inverse(2.0 * floor)
        slope_of_batch = d_var * (2.0 / batch / plane)

    STEP: tl.constexpr = ROWS if OWN_VAR else 1
    for n in range(first, end, STEP):
        if OWN_VAR:
            of_row = n + tl.arange(0, ROWS)
            of_group = of_row
            stored = of_row < end
            at, mask = _tile(of_row, c, stored, channels, plane, COLUMNS, RUN, LAST)
        else:
            of_group = n
            stored = group < groups
            at, mask = _tile(n, c, exists, channels, plane, COLUMNS, RUN, LAST)
        x = _load(x_, at, mask)
        dy = _load(dy_, at, mask)
        s = tl.load(stats + (batch + of_group) * groups + group, mask=stored, other=1.0)
        scaled = dy
        if GATED:
            scaled = dy * _to_rows(_inverse(s), PART, ROWS)
        direct, of_weight, of_v, of_line, of_denominator = _gradients(
            x, scaled, v, _to_rows(s, PART, ROWS), floor, KIND, GATED
        )
        if GATED:
            d_s = -_of_groups(weight * of_weight, PART, ROWS) * _inverse(s)
        elif KIND == "B1":
            d_s = -_of_groups(weight * (of_line + of_v), PART, ROWS)
        else:
            d_s = -_of_groups(weight * of_line, PART, ROWS)
        slope = d_s * _inverse(s * (plane * WIDTH))
        mean = 0.0
        if CENTRED:
            mean = tl.load(stats + of_group * groups + group, mask=stored, other=0.0)
        dx = direct * weight
        if OWN_VAR:  # slope * (x - mean) + slope_of_batch * (x - batch_mean), about one centre
            rest = (slope * (batch_mean - mean))[None, :, None]
            dx += (slope + slope_of_batch)[None, :, None] * (x - batch_mean) + rest
        else:
            centred = x
            if CENTRED:
                centred = x - _to_rows(mean, PART, ROWS)
            dx += _to_rows(slope, PART, ROWS) * centred
            by_bias += dy
            by_weight += of_weight
            by_v += of_v
            if not GATED:
                by_floor += of_denominator - of_line
        tl.store(dx_ + at, dx, mask=mask)

    size = tl.num_programs(1) * channels
    if OWN_VAR:
        to = sums + block
        tl.store(to, -tl.sum(by_v) * scale)
        tl.store(to + size, d_var)
        tl.store(to + 2 * size, tl.sum(by_weight))
        tl.store(to + 3 * size, tl.sum(by_bias))
    else:
        to = sums + chunk * channels + c
        w = _parameter(weight_, 1.0, first * weight_step + c, exists)
        if GATED:
            tl.store(to, _of_rows(by_v) * w, mask=exists)
        else:
            d_floor = -_of_rows(by_floor) * w
            floor = tl.sqrt(_parameter(var_, 0.0, c, exists) + eps)
            tl.store(to, -_of_rows(by_v) * w, mask=exists)
            tl.store(to + size, d_floor * _inverse(2.0 * floor), mask=exists)
        to += 2 * size.to(tl.int64)
        tl.store(to, _of_rows(by_weight), mask=exists)
        tl.store(to + size, _of_rows(by_bias), mask=exists)
