"""The float64 judge of an AdamW step, with bounds that count roundings as judge.py's do."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern.spec.rules import AdamWRule
from helpers.judge import SECOND_ORDER, SUBNORMAL, U, float32, make_inputs

__all__ = ["Operands", "Roundings", "judge_adamw", "make_operands"]


class Roundings(NamedTuple):
    """Of what differs between backends, in units of 2^-24 of the result.

    corrections: of 1 / (1 - beta1^t) and of 1 / sqrt(1 - beta2^t). On the CPU and in the reference they are
        made in double and rounded once. On a GPU t log(beta) rounds twice, which moves -expm1 by less than the
        same share. CUDA's expm1f and a division or root are 2, 1 and 1: 6. Triton has the exponential by hand:
        under -1/2 it is 0.6 at most and 4 off, its argument's product with log2(e) moves it by 3 of 0.37, and
        the difference is 0.39 or more: 9; with the argument and the division 12.
    division: 1 where it is correctly rounded, 4 where it is quick and 2 ulp off.
    root: torch.sqrt, which the reference takes, is up to 1 ulp off; the kernels' own is correctly rounded.
    """

    corrections: float = 1.0
    division: float = 1.0
    root: float = 2.0


class Operands(NamedTuple):
    """``weight`` is ``master`` rounded to the asked dtype; the states are those of a rule that has stepped."""

    weight: Tensor
    grad: Tensor
    anchor: Tensor
    flexibility: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor
    step: Tensor
    master: Tensor

    def states(self, rule: dict[str, Any]) -> dict[str, Tensor | None]:
        """The keyword arguments that a step by this rule has beside lr and scale."""
        low = self.weight.dtype in (torch.bfloat16, torch.float16)
        return {
            "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "step": self.step,
            "max_exp_avg_sq": self.max_exp_avg_sq if rule.get("amsgrad") else None,
            "master": self.master if low else None,
        }  # fmt: skip


def make_operands(
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    step: float = 3.0,
) -> Operands:
    """As judge.make_inputs, with means over four decades; the largest are above some of the second means."""
    x = make_inputs(shape, seed, dtype, grad_dtype)
    generator = torch.Generator().manual_seed(seed + 1000)
    size = 10 ** (-4 * torch.rand(shape, generator=generator, dtype=x.buffer.dtype))
    largest = size * (0.5 + torch.rand(shape, generator=generator, dtype=size.dtype))
    return Operands(
        x.weight, x.grad, x.anchor, x.flexibility, x.buffer * size.sqrt(), size, largest, torch.tensor(step),
        x.master,
    )  # fmt: skip


class Judged(NamedTuple):
    """Exact results and how far from them float32 may be."""

    weight: Tensor
    weight_bound: Tensor
    exp_avg: Tensor
    exp_avg_bound: Tensor
    exp_avg_sq: Tensor
    exp_avg_sq_bound: Tensor
    max_exp_avg_sq: Tensor


def judge_adamw(
    x: Operands,
    alpha: Tensor,
    alpha_bound: Tensor | float,
    lr: float,
    numbers: dict[str, Any],
    roundings: Roundings = Roundings(),  # noqa: B008 - a tuple
) -> Judged:
    """One AdamW step in float64 and its bound, from float32 operands, with numbers as a kernel gets them."""
    rule = AdamWRule(**numbers)
    w, g, m, v = (t.double() for t in (x.master, x.grad, x.exp_avg, x.exp_avg_sq))
    g = -g if rule.maximize else g
    lr, eps, decay = float32(lr), float32(rule.eps), float32(rule.weight_decay)
    old, new = float32(rule.beta1) * m, float32(1 - rule.beta1) * g
    mean = old + new
    mean_bound = U * (old.abs() + new.abs() + mean.abs())
    old, new = float32(rule.beta2) * v, float32(1 - rule.beta2) * g * g
    square = old + new
    square_bound = U * (old + 2 * new + square)
    largest = torch.maximum(x.max_exp_avg_sq.double(), square) if rule.amsgrad else square
    t = x.step.double()
    of_mean = 1 / (1 - rule.beta1**t)
    of_root = 1 / (1 - rule.beta2**t).sqrt()
    numerator = of_mean * mean
    numerator_bound = of_mean * mean_bound + (roundings.corrections + 1) * U * numerator.abs()
    # sqrt(v + b) - sqrt(v) is less than b / (2 sqrt(v)).
    root = largest.sqrt()
    root_bound = square_bound / (2 * root) + roundings.root * U * root
    denominator = of_root * root + eps
    denominator_bound = (
        of_root * (root_bound + (roundings.corrections + 1) * U * root) + U * eps + U * denominator
    )
    ratio = numerator / denominator
    ratio_bound = (numerator_bound + ratio.abs() * denominator_bound) / denominator
    ratio_bound = ratio_bound + roundings.division * U * ratio.abs()
    direction = ratio + decay * w
    direction_bound = ratio_bound + U * (decay * w).abs() + U * direction.abs()
    change = lr * alpha * direction
    weight = w - change
    change_bound = lr * (alpha_bound * direction.abs() + alpha * direction_bound) + 2 * U * change.abs()
    return Judged(
        weight, (change_bound + U * weight.abs()) * SECOND_ORDER + SUBNORMAL,
        mean, mean_bound * SECOND_ORDER + SUBNORMAL,
        square, square_bound * SECOND_ORDER + SUBNORMAL, largest,
    )  # fmt: skip
