"""The float64 judge of the flexible update, with bounds on what float32 arithmetic may do to it.

Each bound counts roundings: an operation in float32 is at most U = 2^-24 off, relative to its result, and an
operation that is ``n`` ulp off at most ``2 n U``. Nothing here is fitted to what the kernels give.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern import reference

__all__ = [
    "Judged",
    "Rule",
    "assert_within",
    "bits",
    "float32",
    "judge_gate",
    "judge_step",
    "make_inputs",
    "same_bits",
]

U = 2.0**-24
# k = scale (1 - f) |w - a| / f in float32 with the constant 2 log2(e): the constant, its product with the
# scale, 1 - f, w - a, three products of these, and a reciprocal of f at most 1 ulp off.
K_ROUNDINGS = 1 + 1 + 1 + 1 + 3 + 2
# alpha = 4 e / (1 + e)^2: exp2 at most 1.5 ulp off; then 1 + e and a reciprocal at most 1 ulp off, both of
# which count twice because they are squared; the square; the product.
ALPHA_ROUNDINGS = 3 + 2 * (1 + 2) + 1 + 1
# exp2 gives 0 under 2^-125.5, and alpha is up to four times that.
ALPHA_FLUSH = 2.0**-123
# The kernels flush results under 2^-126 to 0 (vector.h); at most ten of them meet in one result.
SUBNORMAL = 10 * 2.0**-126
# Terms of second order: a handful of factors (1 + U) or (1 + 1e-4) of alpha at most.
SECOND_ORDER = 1 + 2.0**-10


def float32(value: float) -> float:
    """``value`` as a kernel gets it."""
    return float(np.float32(value))


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN compares equal to itself and 0 differs from -0."""
    return (
        tensor.detach()
        .contiguous()
        .view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Every element of ``actual`` is within ``bound`` of ``expected``; the message shows the worst."""
    assert actual.shape == expected.shape
    error = (actual.detach().double() - expected).abs()
    bad = ~(error <= bound)  # NaN is bad
    if bad.any():
        worst = int(torch.where(bad, torch.nan_to_num(error / bound, nan=torch.inf), -1.0).argmax())
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements are off, element {worst} most: got "
            f"{actual.flatten()[worst].item()!r}, judge {expected.flatten()[worst].item()!r}, error "
            f"{error.flatten()[worst].item():.3g}, bound {bound.expand_as(error).flatten()[worst].item():.3g}"
        )


class Rule(NamedTuple):
    """The numbers of a step, as they are passed to the operators."""

    lr: float = 0.125
    scale: float = 20.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False


class Judged(NamedTuple):
    """Exact results and how far from them float32 may be."""

    weight: Tensor
    weight_bound: Tensor
    buffer: Tensor | None
    buffer_bound: Tensor | None


def judge_gate(weight: Tensor, anchor: Tensor, flexibility: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """alpha in float64 of the given float32 inputs, and its bound."""
    w, a, f, s = weight.double(), anchor.double(), flexibility.double(), float32(scale)
    alpha = reference.gate(w, a, f, s)
    two_k = (
        (2 * s * (1 - f) * (w - a).abs() / f).nan_to_num(nan=0.0).clamp(max=200.0)
    )  # beyond, alpha is flushed
    # e^(-2k) turns a relative error of k into 2k times as much.
    return alpha, alpha * torch.expm1((K_ROUNDINGS * two_k + ALPHA_ROUNDINGS) * U) + ALPHA_FLUSH


def judge_step(
    weight: Tensor,
    grad: Tensor,
    alpha: Tensor,
    alpha_bound: Tensor | float,
    rule: Rule,
    buffer: Tensor | None = None,
    grad_bound: Tensor | float = 0.0,
) -> Judged:
    """One SGD step in float64 and its bound, from float32 inputs; ``weight`` is the master if there is one.

    ``grad_bound``: how far the gradient that a kernel made itself may be from ``grad``.
    """
    w = weight.double()
    lr, decay, momentum = float32(rule.lr), float32(rule.weight_decay), float32(rule.momentum)
    g = (-grad if rule.maximize else grad).double() + decay * w
    g_bound = grad_bound + U * ((decay * w).abs() + g.abs())
    new_buffer = buffer_bound = None
    if buffer is not None:
        b, share = buffer.double(), float32(1 - rule.dampening)
        new_buffer = momentum * b + share * g
        buffer_bound = share * g_bound + U * ((momentum * b).abs() + (share * g).abs() + new_buffer.abs())
        if rule.nesterov:
            g_bound = g_bound + momentum * buffer_bound + U * (momentum * new_buffer).abs()
            g = g + momentum * new_buffer
            g_bound = g_bound + U * g.abs()
        else:
            g, g_bound = new_buffer, buffer_bound
        buffer_bound = buffer_bound * SECOND_ORDER + SUBNORMAL
    step = lr * alpha * g
    new_weight = w - step
    step_bound = lr * (alpha_bound * g.abs() + alpha * g_bound) + 2 * U * step.abs()
    weight_bound = (step_bound + U * new_weight.abs()) * SECOND_ORDER + SUBNORMAL
    return Judged(new_weight, weight_bound, new_buffer, buffer_bound)


class Inputs(NamedTuple):
    """Operands of a step; ``weight`` is ``master`` rounded to the asked dtype."""

    weight: Tensor
    grad: Tensor
    anchor: Tensor
    flexibility: Tensor
    buffer: Tensor
    master: Tensor


def make_inputs(
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
) -> Inputs:
    """Weights like those of a layer, f over (0, 1), displacements over four decades: with scale 20 alpha takes
    all values from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype is torch.float64 else torch.float32

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=exact)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=exact)

    master = 0.5 * normal()
    displacement = torch.sign(normal()) * 10 ** (-4 * uniform())
    flexibility = uniform().clamp(2.0**-23, 1 - 2.0**-23)
    return Inputs(
        master.to(dtype, copy=True),
        normal().to(grad_dtype or dtype),
        master + displacement,
        flexibility,
        normal(),
        master,
    )
