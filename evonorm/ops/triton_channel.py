"""The GPU kernels for the B series in training, where all samples of a channel are one small tile.
The formulas are explained in reference.py, and what an underscore at the end of a name means in
triton_kernels.py.

A program has a channel. Its tile is (COLUMNS, ROWS, RUN): a row is a sample's plane, and position p
of a row is at p // RUN and p % RUN, as in triton_whole.py. So each value is read once, and weight
and bias may be those of each sample.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _denominator, _gradients, _inverse, _limit, _load, _parameter
from .triton_whole import _of_rows, _tile


@triton.jit
def forward(
    x_, y_, v_, weight_, bias_, stats, batch_stats, weight_step, bias_step, batch, channels, plane,
    eps, KIND: tl.constexpr, CENTRED: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Write y, stats (2, batch, channels) and batch_stats (2, channels)."""
    plane = plane // ALIGN * ALIGN  # the same, but the compiler sees that it is a multiple
    c = tl.program_id(0)
    n = tl.arange(0, ROWS).to(tl.int64)  # since offsets may exceed 2^31
    exists = n < batch
    at, mask = _tile(n, c, exists, channels, plane, COLUMNS, RUN, False)
    x = _load(x_, at, mask)
    v = _parameter(v_, 1.0, n * 0 + c, exists)[None, :, None]
    weight = _parameter(weight_, 1.0, n * weight_step + c, exists)[None, :, None]
    bias = _parameter(bias_, 0.0, n * bias_step + c, exists)[None, :, None]

    per_value = 1.0 / plane
    mean = _of_rows(x) * per_value
    centred = tl.where(mask, x - mean[None, :, None], 0.0)
    rest = _of_rows(centred) * per_value  # the mean's rounding error
    about = _of_rows(centred * centred) * per_value - rest * rest
    # An offset would cost digits: take the samples' means about the first estimate of theirs.
    per_sample = 1.0 / batch
    centre = tl.sum(mean) * per_sample
    apart = tl.where(exists, (mean - centre) + rest, 0.0)
    shift = tl.sum(apart) * per_sample
    apart = tl.where(exists, apart - shift, 0.0)
    var = tl.sum(about + apart * apart) * per_sample
    var = tl.maximum(var, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(batch_stats + c, centre + shift)
    tl.store(batch_stats + channels + c, var)

    mean += rest
    if CENTRED:
        s = tl.sqrt(about + eps)
    else:
        s = tl.sqrt(about + mean * mean + eps)
    tl.store(stats + n * channels + c, mean, mask=exists)
    tl.store(stats + (batch + n) * channels + c, s, mask=exists)
    floor = tl.sqrt(var + eps)
    denominator = _denominator(x, v, s[None, :, None], floor, KIND)[2]
    y = x * weight * _inverse(denominator) + bias
    tl.store(y_ + at, _limit(y, y_), mask=mask)


@triton.jit
def backward(
    dy_, x_, dx_, v_, weight_, stats, batch_stats, sums, weight_step, batch, channels, plane, eps,
    KIND: tl.constexpr, CENTRED: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Write dx, and the gradients of v, var, weight, bias of each sample (4, batch, channels)."""
    plane = plane // ALIGN * ALIGN
    c = tl.program_id(0)
    n = tl.arange(0, ROWS).to(tl.int64)
    exists = n < batch
    at, mask = _tile(n, c, exists, channels, plane, COLUMNS, RUN, False)
    x = _load(x_, at, mask)
    dy = _load(dy_, at, mask)
    v = _parameter(v_, 1.0, n * 0 + c, exists)[None, :, None]
    weight = _parameter(weight_, 1.0, n * weight_step + c, exists)
    s = tl.load(stats + (batch + n) * channels + c, mask=exists, other=1.0)
    batch_mean = tl.load(batch_stats + c)
    floor = tl.sqrt(tl.load(batch_stats + channels + c) + eps)
    direct, of_weight, of_v, of_line, of_denominator = _gradients(
        x, dy, v, s[None, :, None], floor, KIND, False
    )
    d_v = -_of_rows(of_v) * weight
    d_s = -_of_rows(of_line) * weight
    if KIND == "B1":
        d_s += d_v
    d_var = -_of_rows(of_denominator - of_line) * weight * _inverse(2.0 * floor)
    slope_of_batch = tl.sum(d_var) * (2.0 / batch / plane)
    slope = d_s * _inverse(s * plane)
    mean = 0.0
    if CENTRED:
        mean = _load(stats, n * channels + c, exists)
    # slope * (x - mean) + slope_of_batch * (x - batch_mean), about one centre
    rest = (slope * (batch_mean - mean))[None, :, None]
    dx = direct * weight[None, :, None]
    dx += (slope + slope_of_batch)[None, :, None] * (x - batch_mean) + rest
    tl.store(dx_ + at, dx, mask=mask)

    to = sums + n * channels + c
    size = (c * 0).to(tl.int64) + batch * channels
    tl.store(to, d_v, mask=exists)
    tl.store(to + size, d_var, mask=exists)
    tl.store(to + 2 * size, _of_rows(of_weight), mask=exists)
    tl.store(to + 3 * size, _of_rows(dy), mask=exists)
