"""The rules of a step in plain PyTorch: the directions of the plain optimizers (docs/design.md, Optimizers)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flexkern.spec.rules import AdamWRule, Rule, SgdRule

__all__ = ["DIRECTIONS", "adamw", "sgd", "step"]

States = list[Tensor]


def sgd(
    rule: SgdRule, weight: Tensor, grad: Tensor, states: Sequence[Tensor], count: Tensor | None = None
) -> tuple[Tensor, States]:
    """The direction and the new momentum buffer of :class:`torch.optim.SGD`; no buffer: no momentum."""
    g = -grad if rule.maximize else grad
    g = g + rule.weight_decay * weight
    if not states:
        return g, []
    buffer = rule.momentum * states[0] + (1 - rule.dampening) * g
    return g + rule.momentum * buffer if rule.nesterov else buffer, [buffer]


def adamw(
    rule: AdamWRule, weight: Tensor, grad: Tensor, states: Sequence[Tensor], count: Tensor | None = None
) -> tuple[Tensor, States]:
    """The direction and the new means of :class:`torch.optim.AdamW` in the step of number ``count``; a third
    state: amsgrad. The means begin at 0, which is what the corrections, made in float64, divide out.
    """
    if count is None:
        raise ValueError("step must be given: the number of this step, counted from 1")
    number = count.reshape(()).to(weight.device, torch.float64)
    first, second = (-torch.expm1(number * math.log(max(b, 1e-300))) for b in (rule.beta1, rule.beta2))
    of_mean, of_root = (1 / first).to(weight.dtype), (1 / second.sqrt()).to(weight.dtype)
    g = -grad if rule.maximize else grad
    mean = rule.beta1 * states[0] + (1 - rule.beta1) * g
    square = rule.beta2 * states[1] + (1 - rule.beta2) * (g * g)
    new_states = [mean, square]
    if len(states) > 2:
        square = torch.maximum(states[2], square)
        new_states.append(square)
    direction = mean * of_mean / (square.sqrt() * of_root + rule.eps)
    return direction + rule.weight_decay * weight, new_states


DIRECTIONS: dict[type[Rule], Callable[..., tuple[Tensor, States]]] = {SgdRule: sgd, AdamWRule: adamw}


def step(
    rule: Rule,
    weight: Tensor,
    grad: Tensor,
    alpha: Tensor | float,
    states: Sequence[Tensor],
    lr: float | Tensor,
    skip_nonfinite: bool = True,
    count: Tensor | None = None,
) -> tuple[Tensor, States]:
    """New weight and states: w - lr alpha d. alpha scales the step, not what enters the states.

    With ``skip_nonfinite`` a synapse whose new weight would not be finite keeps its weight and its states.
    ``count`` is the number of this step, for rules that count them.
    """
    direction, new_states = DIRECTIONS[type(rule)](rule, weight, grad, states, count)
    new_weight = weight - lr * alpha * direction
    if skip_nonfinite:
        moved = torch.isfinite(new_weight)
        new_weight = torch.where(moved, new_weight, weight)
        new_states = [torch.where(moved, n, s) for n, s in zip(new_states, states, strict=True)]
    return new_weight, new_states
