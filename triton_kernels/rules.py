"""The rules of a step in a tile: the direction that the plain optimizer would go (docs/design.md, Optimizers).

A kernel gets a rule as a number, RULE, up to NUMBERS float32 numbers whose meaning is the rule's, and up to
MOST_STATES addresses of the weight's states, of which those exist whose bits are set in STATES. A rule that
counts steps makes two scalars of the number of this one, at the beginning: :func:`counted`.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import math
from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from flexkern.spec.rules import AdamWRule, Rule, SgdRule

__all__ = [
    "ADAMW",
    "MOST_STATES",
    "NUMBERS",
    "SGD",
    "VARIANTS",
    "counted",
    "direction",
    "rule_numbers",
    "rule_of",
    "state_bits",
]

MOST_STATES = 3
NUMBERS = 8
SGD = tl.constexpr(0)
ADAMW = tl.constexpr(1)


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
def adamw(weight, grad, mean, square, largest, numbers, corrections, STATES: tl.constexpr):
    """As torch.optim.AdamW: the direction, the new means of g and g^2, and the largest of these (amsgrad)."""
    beta1, mean_share, beta2, square_share, eps, weight_decay, _, _ = numbers
    of_mean, of_root = corrections
    mean = beta1 * mean + mean_share * grad
    square = beta2 * square + square_share * (grad * grad)
    root = square
    if STATES & 4:
        largest = tl.where(largest > square, largest, square)
        root = largest
    d = mean * of_mean / (tl.sqrt_rn(root) * of_root + eps) + weight_decay * weight
    return d, mean, square, largest


@triton.jit
def _expm1(x):
    """exp(x) - 1 of x <= 0 without its cancellation: Taylor to x^9 / 9!, 2^-30 off at -1/2, and the difference
    under that, where exp(x) is 0.6 at most."""
    p = x * (1 / 362880) + 1 / 40320
    p = x * p + 1 / 5040
    p = x * p + 1 / 720
    p = x * p + 1 / 120
    p = x * p + 1 / 24
    p = x * p + 1 / 6
    p = x * p + 1 / 2
    return tl.where(x > -0.5, x * (x * p + 1.0), tl.exp(x) - 1.0)


@triton.jit
def counted(address, numbers, RULE: tl.constexpr):
    """What a rule makes of the number of a step, which stands at ``address``: two scalars, 0 where it does not
    count. AdamW: what divides 1 - beta^t = -expm1(t log beta) out of the mean, and its root out of the other's.
    """
    first = tl.full((), 0.0, tl.float32)
    second = tl.full((), 0.0, tl.float32)
    if RULE == ADAMW:
        count = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float32)))
        mean = -_expm1(count * tl.full((), numbers[6], tl.float32))
        square = -_expm1(count * tl.full((), numbers[7], tl.float32))
        first = tl.div_rn(first + 1.0, mean)
        second = tl.div_rn(second + 1.0, tl.sqrt_rn(square))
    return first, second


@triton.jit
def direction(
    weight, grad, state0, state1, state2, numbers, corrections, RULE: tl.constexpr, STATES: tl.constexpr
):
    """The direction of a rule, and its new states; ``corrections`` are what :func:`counted` gave."""
    if RULE == SGD:
        d, state0 = sgd(weight, grad, state0, numbers, STATES)
    else:
        d, state0, state1, state2 = adamw(weight, grad, state0, state1, state2, numbers, corrections, STATES)
    return d, state0, state1, state2


# --------------------------------------------------------------------------- the host's side


def _sgd_numbers(rule: SgdRule) -> tuple[float, ...]:
    return (
        rule.weight_decay, rule.momentum, 1.0 - rule.dampening, -1.0 if rule.maximize else 1.0, rule.nesterov,
    )  # fmt: skip


def _adamw_numbers(rule: AdamWRule) -> tuple[float, ...]:
    mean_share = 1.0 - rule.beta1
    logarithms = [math.log(beta) if beta else -math.inf for beta in (rule.beta1, rule.beta2)]
    return (
        rule.beta1, -mean_share if rule.maximize else mean_share, rule.beta2, 1.0 - rule.beta2, rule.eps,
        rule.weight_decay, *logarithms,
    )  # fmt: skip


# For the compiler ahead of time: rules by name, each with the sets of states that a step may have.
VARIANTS: dict[str, tuple[int, dict[str, int]]] = {
    "sgd": (SGD.value, {"": 0b0, "-momentum": 0b1}),
    "adamw": (ADAMW.value, {"": 0b011, "-amsgrad": 0b111}),
}
_RULES: dict[type[Rule], tuple[int, Callable[[Any], tuple[float, ...]]]] = {
    SgdRule: (SGD.value, _sgd_numbers),
    AdamWRule: (ADAMW.value, _adamw_numbers),
}


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
