"""What the GPU kernels in Triton compute for a tile. The formulas are explained in reference.py.

Where a group fits on a multiprocessor, one launch takes its statistics and writes the result, so
each value is read once (triton_whole.py). Otherwise a first launch leaves moments or sums of parts
of groups in a buffer, and a second one adds them up and writes (triton_split.py). The order of
every sum depends on the shape and the GPU only. Arguments whose name ends in an underscore are
tensors that may be None or have 16 bits.

KIND is a string of `reference.KINDS`, and GATED says whether it is of the S series: a kernel can't
look at a string's first letter before Triton 3.4.
"""
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _parameter(pointer, otherwise, at, exists):
    """A parameter of each channel."""
    if pointer is None:
        values = tl.full(at.shape, otherwise, tl.float32)
    else:
        values = _load(pointer, at, exists)
    return values


@triton.jit
def _inverse(x):
    """1 / x for x >= 0, with an error of 2e-7. A division takes three times the instructions."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _sigmoid(v, x):
    """Of v * x. The factor for the power of 2 belongs to v, which many values share."""
    return _inverse(1.0 + tl.exp2(x * (v * -1.4426950408889634)))


@triton.jit
def _limit(y, pointer):
    """A float16 stays finite: a large constant over sqrt(eps) would not."""
    if pointer.dtype.element_ty == tl.float16:
        y = tl.clamp(y, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return y


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
def _gradients(x, dy, v, s, floor, KIND: tl.constexpr, GATED: tl.constexpr):
    """The terms of a tile's gradients, which are not yet multiplied by the scale (gamma).

    The first is the part of x's gradient that passes through no statistic. The sums of the others
    give the gradients of weight and of v and, in the B series, of the line in the denominator and
    of the whole denominator.
    """
    if GATED:
        gate = _sigmoid(v, x)
        q = dy * gate
        of_weight = q * x
        rest = x - x * gate
        direct, of_v, of_line, of_denominator = q + v * (q * rest), of_weight * rest, 0.0, 0.0
    else:
        slope, on_floor, denominator = _denominator(x, v, s, floor, KIND)
        r = _inverse(denominator)
        q = dy * r
        of_weight = q * x
        of_denominator = of_weight * r
        of_line = tl.where(on_floor, 0.0, of_denominator)  # a NaN reaches both
        direct, of_v = q - of_line * slope, of_line * x
    return direct, of_weight, of_v, of_line, of_denominator


@triton.jit
def probe(to):
    """Write a 1, to see whether kernels can be compiled and launched."""
    tl.store(to, 1.0)
