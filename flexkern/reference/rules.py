"""The rules of a step in plain PyTorch: the directions of the plain optimizers (docs/design.md, Optimizers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flexkern.spec.rules import Rule, SgdRule

__all__ = ["DIRECTIONS", "sgd", "step"]

States = list[Tensor]


def sgd(rule: SgdRule, weight: Tensor, grad: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
    """The direction and the new momentum buffer of :class:`torch.optim.SGD`; no buffer: no momentum."""
    g = -grad if rule.maximize else grad
    g = g + rule.weight_decay * weight
    if not states:
        return g, []
    buffer = rule.momentum * states[0] + (1 - rule.dampening) * g
    return g + rule.momentum * buffer if rule.nesterov else buffer, [buffer]


DIRECTIONS: dict[type[Rule], Callable[..., tuple[Tensor, States]]] = {SgdRule: sgd}


def step(
    rule: Rule,
    weight: Tensor,
    grad: Tensor,
    alpha: Tensor | float,
    states: Sequence[Tensor],
    lr: float | Tensor,
    skip_nonfinite: bool = True,
) -> tuple[Tensor, States]:
    """New weight and states: w - lr alpha d. alpha scales the step, not what enters the states.

    With ``skip_nonfinite`` a synapse whose new weight would not be finite keeps its weight and its states.
    """
    direction, new_states = DIRECTIONS[type(rule)](rule, weight, grad, states)
    new_weight = weight - lr * alpha * direction
    if skip_nonfinite:
        moved = torch.isfinite(new_weight)
        new_weight = torch.where(moved, new_weight, weight)
        new_states = [torch.where(moved, n, s) for n, s in zip(new_states, states, strict=True)]
    return new_weight, new_states
