"""The flexible update (arXiv 2407.07133; docs/design.md) in a tile: the gate alpha, and the step."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.triton_kernels.rules import direction

__all__ = ["finite", "gate", "number", "step"]


@triton.jit
def number(value, address):
    """lr or scale as a float32 scalar: ``value``, or what stands at ``address`` where that is not 0."""
    result = tl.full((), value, tl.float32)
    if address != 0:
        result = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float32)))
    return result


@triton.jit
def gate(weight, anchor, flexibility, scale):
    """alpha = sech(k)^2 with k = scale (1 - f) |w - a| / f, as 4 e / (1 + e)^2 with e = exp(-2k).

    f = 0 never moves, also where w = a, and so does an f under the smallest normal number; f = 1 always does,
    also where |w - a| overflows or is NaN.
    """
    k = scale * (1.0 - flexibility) * tl.abs(weight - anchor) / flexibility
    e = tl.exp2(k * -2.8853900817779268)  # e^(-2k) with one product: 2 log2(e)
    s = 1.0 + e
    alpha = tl.where(flexibility == 1, 1.0, 4.0 * e / (s * s))
    return tl.where(flexibility < 1.1754943508222875e-38, 0.0, alpha)  # 2^-126


@triton.jit
def finite(value):
    """Neither infinite nor NaN: those have all bits of the exponent set."""
    return (value.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000


@triton.jit
def step(
    weight,
    grad,
    alpha,
    state0,
    state1,
    state2,
    lr,
    numbers,
    corrections,
    skip_nonfinite,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
):
    """New weight and states of a step; alpha scales the step, not what enters the states. ``corrections`` are
    what :func:`rules.counted` makes of its number."""
    d, new0, new1, new2 = direction(weight, grad, state0, state1, state2, numbers, corrections, RULE, STATES)
    new_weight = weight - lr * alpha * d
    moved = (skip_nonfinite == 0) | finite(new_weight)
    if STATES & 1:
        new0 = tl.where(moved, new0, state0)
    if STATES & 2:
        new1 = tl.where(moved, new1, state1)
    if STATES & 4:
        new2 = tl.where(moved, new2, state2)
    return tl.where(moved, new_weight, weight), new0, new1, new2
