"""The rules of a step in a tile: the direction that the plain optimizer would go (docs/design.md, Optimizers).

A kernel gets a rule as a number, RULE, up to NUMBERS float32 numbers whose meaning is the rule's, and up to
MOST_STATES addresses of the weight's states, of which those exist whose bits are set in STATES.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from flexkern.spec.rules import Rule, SgdRule

__all__ = ["MOST_STATES", "NUMBERS", "SGD", "VARIANTS", "direction", "rule_numbers", "rule_of", "state_bits"]

MOST_STATES = 3
NUMBERS = 8
SGD = tl.constexpr(0)


@triton.jit
def sgd(weight, grad, state0, numbers, STATES: tl.constexpr):
    """As torch.optim.SGD: the direction, and the new momentum buffer where there is one."""
    weight_decay, momentum, grad_share, sign, nesterov, _, _, _ = numbers
    g = sign * grad + weight_decay * weight
    buffer = state0
    if STATES != 0:
        buffer = momentum * state0 + grad_share * g
        g = tl.where(nesterov != 0, g + momentum * buffer, buffer)
    return g, buffer


@triton.jit
def direction(weight, grad, state0, state1, state2, numbers, RULE: tl.constexpr, STATES: tl.constexpr):
    """The direction of a rule, and its new states."""
    if RULE == SGD:
        d, state0 = sgd(weight, grad, state0, numbers, STATES)
    return d, state0, state1, state2


# --------------------------------------------------------------------------- the host's side


def _sgd_numbers(rule: SgdRule) -> tuple[float, ...]:
    return (
        rule.weight_decay, rule.momentum, 1.0 - rule.dampening, -1.0 if rule.maximize else 1.0, rule.nesterov,
    )  # fmt: skip


# For the compiler ahead of time: rules by name, each with the sets of states that a step may have.
VARIANTS: dict[str, tuple[int, dict[str, int]]] = {"sgd": (SGD.value, {"": 0b0, "-momentum": 0b1})}
_RULES: dict[type[Rule], tuple[int, Callable[[Any], tuple[float, ...]]]] = {SgdRule: (SGD.value, _sgd_numbers)}


def rule_of(rule: Rule) -> int:
    """RULE of the kernels."""
    return _RULES[type(rule)][0]


def rule_numbers(rule: Rule) -> list[float]:
    """The NUMBERS numbers of a rule."""
    numbers = [float(n) for n in _RULES[type(rule)][1](rule)]
    return numbers + [0.0] * (NUMBERS - len(numbers))


def state_bits(states: Sequence[Sequence[Tensor] | Tensor | None]) -> int:
    """STATES of the kernels: which of the rule's states are there."""
    return sum(1 << i for i, state in enumerate(states) if state is not None and len(state) > 0)
