"""The float64 judge of the gated adapter: inputs, exact results, and bounds on what kernels may be off.

A kernel multiplies numbers of the inputs' dtype and adds products up in float32, in any order; it may round a
product to the inputs' dtype before it goes on, as a library does. Each bound counts those roundings: one to a
dtype is at most its unit roundoff off, relative to the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flexkern.reference import adapter as reference_adapter
from helpers.judge import U, assert_within

__all__ = ["BANK", "Case", "Near", "assert_near", "index_of", "judge_backward", "judge_forward", "make_case"]

BANK = ("down", "down_bias", "up", "up_bias")
UNITS = {torch.float32: U, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Half the distance of the smallest numbers of a dtype; of bfloat16 what its instructions may lose, which read
# and write 0 for numbers under 2^-126.
SMALLEST = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-126, torch.float16: 2.0**-25}
# n U is a bound for a sum of n products to first order; n stays under 2^13.
SECOND_ORDER = 1 + 2.0**-10


class Case(NamedTuple):
    """Arguments of the operator; ``residual`` and ``seed`` may be None."""

    x: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    index: Tensor
    residual: Tensor | None
    seed: Tensor | None
    scale: float
    dropout_p: float

    def tensors(self) -> dict[str, Tensor]:
        """What has a gradient, by name."""
        given = {name: getattr(self, name) for name in ("x", *BANK, "residual")}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def exact(self) -> Case:
        """The same in float64."""
        return self._replace(**{name: tensor.double() for name, tensor in self.tensors().items()})


def index_of(kind: str, samples: int, tasks: int, seed: int = 0) -> Tensor:
    """Task of each sample: "none", "one" (the last), "sorted", or "mixed" with -1 among them."""
    if kind == "none" or tasks == 0:
        return torch.full((samples,), -1)
    if kind == "one":
        return torch.full((samples,), tasks - 1)
    drawn = torch.randint(-1, tasks, (samples,), generator=torch.Generator().manual_seed(seed))
    return drawn.sort().values if kind == "sorted" else drawn


def make_case(
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    index: str = "mixed",
    residual: bool = True,
    scale: float = 0.75,
    dropout_p: float = 0.0,
    seed: int = 1,
    exact: bool = False,
) -> Case:
    """Random arguments of size (S, L, d, r, T). ``exact``: small multiples of 1/4, whose sums float32 holds."""
    samples, positions, d, r, tasks = size
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if exact:
            return torch.randint(-4, 5, shape, generator=generator).to(dtype) / 4
        return torch.randn(shape, generator=generator).to(dtype)

    return Case(
        draw(samples, positions, d),
        draw(tasks, d, r),
        draw(tasks, r),
        draw(tasks, r, d),
        draw(tasks, d),
        index_of(index, samples, tasks, seed),
        draw(samples, positions, d) if residual else None,
        torch.tensor([seed + 7]) if dropout_p else None,
        scale,
        dropout_p,
    )


class Near(NamedTuple):
    """Exact values, and how far from them a kernel's may be."""

    value: Tensor
    bound: Tensor

    def rounded(self, dtype: torch.dtype, times: int = 1) -> Near:
        """After ``times`` operations whose results are rounded to ``dtype``."""
        bound = self.bound
        for _ in range(times):
            bound = bound + UNITS[dtype] * (self.value.abs() + bound) + SMALLEST[dtype]
        return Near(self.value, bound)

    def narrow(self, dtype: torch.dtype) -> Near:
        """A float32 result stored in ``dtype``."""
        return self if dtype is torch.float32 else self.rounded(dtype)

    def times(self, factor: Tensor | float) -> Near:
        """Scaled, by a number that was rounded to float32, in float32."""
        size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        return Near(self.value * factor, self.bound * size).rounded(torch.float32, 2)

    def plus(self, exact: Tensor) -> Near:
        return Near(self.value + exact, self.bound).rounded(torch.float32)

    def where(self, mask: Tensor) -> Near:
        zero = torch.zeros_like(self.value)
        return Near(torch.where(mask, self.value, zero), torch.where(mask, self.bound, zero))


def exactly(value: Tensor) -> Near:
    return Near(value.double(), torch.zeros(value.shape, dtype=torch.float64))


def product(a: Near, b: Near) -> Near:
    """A matrix product of n terms a sum: n U times the sum of the terms' sizes, beside what a and b are off."""
    sizes = (a.value.abs() + a.bound) @ (b.value.abs() + b.bound)
    inherited = sizes - a.value.abs() @ b.value.abs()
    rounding = a.value.shape[-1] * U * SECOND_ORDER * sizes
    # What a dtype's smallest numbers lose, in each of the terms.
    return Near(a.value @ b.value, inherited + rounding + a.value.shape[-1] * 2.0**-126)


def judge_forward(case: Case) -> tuple[Near, Near]:
    """``out`` and ``hidden`` of the operator."""
    dtype, x = case.x.dtype, case.exact()
    value, hidden = reference_adapter.forward(*x)
    out_bound, hidden_bound = torch.zeros_like(value), torch.zeros_like(hidden)
    kept: Tensor | float = 1.0
    if case.seed is not None:
        kept = reference_adapter.dropout_mask(tuple(hidden.shape), case.seed, case.dropout_p, case.x.device) * (
            1 / (1 - case.dropout_p)
        )
    for t in range(len(x.down)):
        own = case.index == t
        z = product(exactly(x.x[own]), exactly(x.down[t])).narrow(dtype).plus(x.down_bias[t])
        # ReLU moves two numbers no further apart; its result replaces the value, the bound stays.
        h = Near(z.value.clamp(min=0), z.bound)
        h = h.times(kept[own] if isinstance(kept, Tensor) else kept).narrow(dtype)
        y = product(h, exactly(x.up[t])).narrow(dtype).plus(x.up_bias[t]).times(case.scale)
        if x.residual is not None:
            y = y.plus(x.residual[own])
        out_bound[own], hidden_bound[own] = y.narrow(dtype).bound, h.bound
    return Near(value, out_bound), Near(hidden, hidden_bound)


def judge_backward(case: Case, grad_out: Tensor, hidden: Tensor) -> dict[str, Near]:
    """The gradients by name, from the very ``hidden`` units that the kernel was given."""
    dtype, x = case.x.dtype, case.exact()
    grads = reference_adapter.backward(
        grad_out.double(), x.x, hidden.double(), x.down, x.up, x.index, x.scale, x.dropout_p
    )
    near = {name: exactly(grad) for name, grad in zip(("x", *BANK), grads, strict=True)}
    d, r = x.down.shape[1:]
    for t in range(len(x.down)):
        own = case.index == t
        inputs, g, h = (exactly(v[own].reshape(-1, n)) for v, n in ((x.x, d), (grad_out, d), (hidden, r)))
        ones = exactly(torch.ones(1, len(g.value)))
        dh = product(g, exactly(x.up[t].T)).narrow(dtype)
        # scale / (1 - p) as one factor or as two
        dz = dh.times(x.scale).times(1 / (1 - x.dropout_p)).where(h.value > 0).narrow(dtype)
        of_task = {
            "down": product(Near(inputs.value.T, inputs.bound.T), dz),
            "down_bias": product(ones, dz),
            "up": product(Near(h.value.T, h.bound.T), g).times(x.scale),
            "up_bias": product(ones, g).times(x.scale),
        }
        for name, grad in of_task.items():
            near[name].bound[t] = grad.narrow(dtype).bound.reshape(near[name].bound[t].shape)
        grad_x = product(dz, exactly(x.down[t].T)).narrow(dtype)
        near["x"].bound[own] = grad_x.bound.reshape(near["x"].bound[own].shape)
    return near


def assert_near(actual: Tensor, judged: Near) -> None:
    """Every element of ``actual`` is within its bound."""
    assert_within(actual, judged.value, judged.bound)
