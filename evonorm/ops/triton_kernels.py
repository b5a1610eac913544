"""The loops over a tensor's values on a GPU, in Triton. The formulas are explained in reference.py.

A program works on tiles: some channels by some positions of one sample. If one tile holds a whole
group, a single launch takes its statistics and writes the result, so each value is read once.
Otherwise a first launch leaves moments or sums of parts of a group in a buffer. They are added up,
and a second launch writes. REDUCE and WRITE say what a launch does. The order of every sum depends
on the shape and the GPU only. Arguments whose name ends in an underscore are tensors that may be
None or have 16 bits.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(
    channels, blocks, splits, WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_C: tl.constexpr,
    REDUCE: tl.constexpr,
):  # fmt: skip
    """A program's sample, split of a plane, part of a group, groups, channels, and which exist.

    A tile has BLOCK_C / PART groups (of WIDTH channels, filled up to PART), or a part of one.
    """
    GROUPS: tl.constexpr = BLOCK_C // PART
    PARTS: tl.constexpr = (WIDTH + PART - 1) // PART
    pid = tl.program_id(0)
    if not REDUCE:  # backwards: the cache still holds what the first launch read last
        pid = tl.num_programs(0) - 1 - pid
    n = (pid // blocks // splits).to(tl.int64)  # since offsets may exceed 2^31
    split = pid // blocks % splits
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
def _tiles(split, tiles, plane, BLOCK_P: tl.constexpr, ONCE: tl.constexpr):
    """The first of a program's tiles and the one after the last."""
    if ONCE:
        begin, end = 0, 1
    else:
        begin = split * tiles
        end = tl.minimum(begin + tiles, tl.cdiv(plane, BLOCK_P))
    return begin, end


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
def _first(n, c, channels, plane, LAST: tl.constexpr):
    """Offset of a channel's first value."""
    if LAST:
        at = n * plane * channels + c
    else:
        at = (n * channels + c) * plane
    return at


@triton.jit
def _load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _parameter(pointer, otherwise, n, step, c, exists):
    """A parameter of each channel, (BLOCK_C, 1)."""
    if pointer is None:
        values = tl.full(c.shape, otherwise, tl.float32)
    else:
        values = _load(pointer, n * step + c, exists)
    return values[:, None]


@triton.jit
def _by_group(of_channels, PART: tl.constexpr):
    """Reshape (BLOCK_C,) to (groups, PART)."""
    return tl.reshape(of_channels, (of_channels.shape[0] // PART, PART))


@triton.jit
def _by_channel(of_groups, PART: tl.constexpr):
    """Repeat (groups,) for each channel: (BLOCK_C, 1)."""
    GROUPS: tl.constexpr = of_groups.shape[0]
    return tl.reshape(tl.broadcast_to(of_groups[:, None], (GROUPS, PART)), (GROUPS * PART, 1))


@triton.jit
def _combine(count, mean, squares):
    """Moments along the last axis from those of parts: Chan, Golub and LeVeque (1983)."""
    total = tl.sum(count, 1)
    mean_of_all = tl.sum(count * mean, 1) / tl.maximum(total, 1.0)
    delta = mean - mean_of_all[:, None]
    return total, mean_of_all, tl.sum(squares + count * delta * delta, 1)


@triton.jit
def _statistic(count, mean, squares, eps, CENTRED: tl.constexpr):
    """Standard deviation or root mean square, with eps under the root."""
    square = squares / tl.maximum(count, 1.0)
    if not CENTRED:
        square += mean * mean
    return tl.sqrt(square + eps)


@triton.jit
def _denominator(x, v, s, floor, KIND: tl.constexpr):
    """The denominator max(floor, line) of the B series, line = slope * x + s.

    Returns the slope, whether the floor is at least the line, and the denominator.
    """
    if KIND == "B0":
        slope = v
    elif KIND == "B1":
        slope = s
    else:
        slope = tl.full(s.shape, -1.0, tl.float32)
    line = slope * x + s
    return slope, line <= floor, tl.maximum(floor, line, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gradients(x, dy, v, s, floor, KIND: tl.constexpr):
    """The terms of a tile's gradients, which are not yet multiplied by the scale (gamma).

    The first is the part of x's gradient that passes through no statistic. The sums of the others
    give the gradients of weight and of v and, in the B series, of the line in the denominator and
    of the whole denominator.
    """
    if KIND[0] == "S":
        gate = tl.sigmoid(v * x)
        q = dy * gate
        of_weight = q * x
        rest = x * (1.0 - gate)
        direct, of_v, of_line, of_denominator = q * (1.0 + v * rest), of_weight * rest, 0.0, 0.0
    else:
        slope, on_floor, denominator = _denominator(x, v, s, floor, KIND)
        r = 1.0 / denominator
        q = dy * r
        of_weight = q * x
        of_denominator = of_weight * r
        of_line = tl.where(on_floor, 0.0, of_denominator)  # a NaN reaches both
        direct, of_v = q - of_line * slope, of_line * x
    return direct, of_weight, of_v, of_line, of_denominator


@triton.jit
def forward(
    x_, y_, v_, var_, weight_, bias_, stats, parts, weight_step, bias_step, batch, channels, plane,
    blocks, splits, tiles, eps, KIND: tl.constexpr, CENTRED: tl.constexpr, LAST: tl.constexpr,
    ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, REDUCE: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Write y. Write stats (2, batch, groups) if a group has one part. If there is a second launch,
    write the parts' moments (3, batch, groups, parts): count, mean less the group's first value,
    squares.
    """
    ONCE: tl.constexpr = REDUCE and WRITE
    if LAST:  # the same, but the compiler sees that it is a multiple
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(
        channels, blocks, splits, WIDTH, PART, BLOCK_C, REDUCE
    )
    begin, end = _tiles(split, tiles, plane, BLOCK_P, ONCE)
    at, mask = _tile(begin, n, c, exists, channels, plane, BLOCK_P, LAST)
    x = _load(x_, at, mask)

    if REDUCE:
        # Welford's algorithm at each place of the tile. An offset would cost digits: subtract it.
        shift = _load(x_, _first(n, group * WIDTH, channels, plane, LAST), group < groups)
        mean = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        squares = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        shift_ = _by_channel(shift, PART)
        seen = 0.0
        for i in range(begin, end):
            if not ONCE:
                at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
                x = _load(x_, at, mask)
            seen += 1.0
            difference = x - shift_
            delta = tl.where(mask, difference - mean, 0.0)
            mean += delta * (1.0 / seen)
            squares += delta * (difference - mean)
        _, mask = _tile(end - 1, n, c, exists, channels, plane, BLOCK_P, LAST)
        count = tl.where(exists[:, None], seen - 1.0 + mask.to(tl.float32), 0.0)
        count, mean, squares = _combine(count, mean, squares)
        count, mean, squares = _combine(
            _by_group(count, PART), _by_group(mean, PART), _by_group(squares, PART)
        )
        number = splits * tl.cdiv(WIDTH, PART)
        if not WRITE:
            to = parts + (n * groups + group) * number + part * splits + split
            size = batch * groups * number
            tl.store(to, count, mask=group < groups)
            tl.store(to + size, mean, mask=group < groups)
            tl.store(to + 2 * size, squares, mask=group < groups)
        mean += shift
        s = _statistic(count, mean, squares, eps, CENTRED)
        if number == 1:
            tl.store(stats + n * groups + group, mean, mask=group < groups)
            tl.store(stats + (batch + n) * groups + group, s, mask=group < groups)
    else:
        s = _load(stats, (batch + n) * groups + group, group < groups)

    if WRITE:
        s = _by_channel(s, PART)
        v = _parameter(v_, 1.0, 0, 0, c, exists)
        floor = tl.sqrt(_parameter(var_, 0.0, 0, 0, c, exists) + eps)
        scale = _parameter(weight_, 1.0, n, weight_step, c, exists)
        bias = _parameter(bias_, 0.0, n, bias_step, c, exists)
        if KIND[0] == "S":
            scale = scale / s
        for i in range(begin, end):
            if not ONCE:
                at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
                x = _load(x_, at, mask)
            if KIND[0] == "S":
                y = x * tl.sigmoid(v * x) * scale + bias
            else:
                y = x * scale / _denominator(x, v, s, floor, KIND)[2] + bias
            if y_.dtype.element_ty == tl.float16:  # a large constant over sqrt(eps) stays finite
                y = tl.clamp(y, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(y_ + at, y, mask=mask)


@triton.jit
def combine(
    x_, parts, stats, batch, channels, plane, number, eps, WIDTH: tl.constexpr,
    CENTRED: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write stats (2, batch, groups) from the `number` parts of each group that `forward` left.

    With WHOLE, write mean and variance of the whole batch, (2, channels).
    """
    groups = channels // WIDTH
    samples = batch if WHOLE else 1
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    size = batch // samples * groups
    n, group = i // groups, i % groups
    shift = _load(x_, _first(n, group * WIDTH, channels, plane, LAST), i < size)
    count = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    mean = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    squares = tl.zeros((BLOCK, BLOCK_I), tl.float32)
    for begin in range(0, samples * number, BLOCK_I):
        j = begin + tl.arange(0, BLOCK_I)[None, :]
        mask = (i < size) & (j < samples * number)
        m = n + j // number
        at = (m * groups + group) * number + j % number
        more = _load(parts, at, mask)
        own_shift = _load(x_, _first(m, group * WIDTH, channels, plane, LAST), mask)
        delta = _load(parts + batch * groups * number, at, mask) + (own_shift - shift) - mean
        total = tl.maximum(count + more, 1.0)
        mean += delta * more / total
        squares += _load(parts + 2 * batch * groups * number, at, mask)
        squares += delta * delta * count * more / total
        count += more
    count, mean, squares = _combine(count, mean, squares)
    mean = mean[:, None] + shift
    if not WHOLE:
        second = _statistic(count[:, None], mean, squares[:, None], eps, CENTRED)
    else:
        second = (squares / tl.maximum(count, 1.0))[:, None]
    tl.store(stats + i, mean, mask=i < size)
    tl.store(stats + size + i, second, mask=i < size)


@triton.jit
def backward(
    dy_, x_, dx_, v_, var_, weight_, stats, batch_mean_, d_var_, d_s_, sums, weight_step, batch,
    channels, plane, blocks, splits, tiles, eps, KIND: tl.constexpr, CENTRED: tl.constexpr,
    LAST: tl.constexpr, ALIGN: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, REDUCE: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Write dx. Write the gradients of v, var, weight, bias in parts (4, batch, splits, channels).

    Of two launches, the first one writes the gradient of s, d_s, in parts (batch, groups, parts),
    and the second one reads their sums (batch, groups), and d_var_ if the variance is the batch's.
    """
    ONCE: tl.constexpr = REDUCE and WRITE
    if LAST:
        channels = channels // ALIGN * ALIGN
    else:
        plane = plane // ALIGN * ALIGN
    groups = channels // WIDTH
    n, split, part, group, c, exists = _place(
        channels, blocks, splits, WIDTH, PART, BLOCK_C, REDUCE
    )
    begin, end = _tiles(split, tiles, plane, BLOCK_P, ONCE)
    at, mask = _tile(begin, n, c, exists, channels, plane, BLOCK_P, LAST)
    x = _load(x_, at, mask)
    dy = _load(dy_, at, mask)
    s_of_group = tl.load(stats + (batch + n) * groups + group, mask=group < groups, other=1.0)
    s = _by_channel(s_of_group, PART)
    v = _parameter(v_, 1.0, 0, 0, c, exists)
    floor = tl.sqrt(_parameter(var_, 0.0, 0, 0, c, exists) + eps)
    scale = _parameter(weight_, 1.0, n, weight_step, c, exists)
    if KIND[0] == "S":
        scale = scale / s

    if REDUCE:
        by_bias = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        by_weight, by_v, by_line, by_denominator = by_bias, by_bias, by_bias, by_bias
        for i in range(begin, end):
            if not ONCE:
                at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
                x = _load(x_, at, mask)
                dy = _load(dy_, at, mask)
            _, of_weight, of_v, of_line, of_denominator = _gradients(x, dy, v, s, floor, KIND)
            by_bias += dy
            by_weight += of_weight
            by_v += of_v
            by_line += of_line
            by_denominator += of_denominator
        d_bias = tl.sum(by_bias, 1, keep_dims=True)
        d_weight = tl.sum(by_weight, 1, keep_dims=True)
        d_v = tl.sum(by_v, 1, keep_dims=True) * scale
        size = batch * splits * channels
        to = sums + (n * splits + split) * channels + c[:, None]
        if KIND[0] == "S":
            d_weight = d_weight / s
            d_s = -scale * d_weight
        else:
            d_v = -d_v
            d_s = -tl.sum(by_line, 1, keep_dims=True) * scale
            if KIND == "B1":
                d_s += d_v
            d_floor = -tl.sum(by_denominator - by_line, 1, keep_dims=True) * scale
            tl.store(to + size, d_floor / (2.0 * floor), mask=exists[:, None])
        tl.store(to, d_v, mask=exists[:, None])
        tl.store(to + 2 * size, d_weight, mask=exists[:, None])
        tl.store(to + 3 * size, d_bias, mask=exists[:, None])
        d_s = tl.sum(_by_group(d_s, PART), 1)
        if not WRITE:
            number = splits * tl.cdiv(WIDTH, PART)
            to = d_s_ + (n * groups + group) * number + part * splits + split
            tl.store(to, d_s, mask=group < groups)
    else:
        d_s = _load(d_s_, n * groups + group, group < groups)

    if WRITE:
        slope = _by_channel(d_s / (s_of_group * WIDTH * plane), PART)
        mean = _by_channel(_load(stats, n * groups + group, group < groups), PART)
        if d_var_ is not None:
            slope_of_batch = _parameter(d_var_, 0.0, 0, 0, c, exists) * (2.0 / batch / plane)
            batch_mean = _parameter(batch_mean_, 0.0, 0, 0, c, exists)
        for i in range(begin, end):
            if not ONCE:
                at, mask = _tile(i, n, c, exists, channels, plane, BLOCK_P, LAST)
                x = _load(x_, at, mask)
                dy = _load(dy_, at, mask)
            dx = _gradients(x, dy, v, s, floor, KIND)[0] * scale
            dx += slope * (x - mean if CENTRED else x)
            if d_var_ is not None:
                dx += slope_of_batch * (x - batch_mean)
            tl.store(dx_ + at, dx, mask=mask)
