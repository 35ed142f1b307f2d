"""What the in-place steps share: the checks of their arguments, and the public records of their options."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from flexkern.ops import checks
from flexkern.ops.choices import NONFINITE
from flexkern.ops.operator import Operator
from flexkern.plain import nearest
from flexkern.spec import RULES, Rule

__all__ = [
    "NO_OPTIONS",
    "QUICK_NONFINITE",
    "Given",
    "InsertionRule",
    "Options",
    "QuickRule",
    "check_rule",
    "check_step",
    "number_and_tensor",
    "of_options",
    "quick_rule",
    "rule_of",
    "split_options",
    "states_and_master",
]

QUICK_NONFINITE = ("skip", "propagate")  # "raise" looks at the gradients first
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class InsertionRule:
    """What silent synapses become, and when functional ones go silent (arXiv 2410.05899).

    Args:
        insert: "init": the inserted weight is the anchor, the layer's own initial draw. "hebbian": it is
            ``eta`` c, and is written to the anchor too, which then must be a tensor.
        eta: of Hebbian insertion; >= 0.
        prune: a functional synapse with abs(w) under it before and after the step goes silent; 0: none does.
    """

    insert: str = "init"
    eta: float = 1.0
    prune: float = 0.0


class Options(NamedTuple):
    """What a public function was given beside tensors and gate, as it was given.

    It travels as a plain tuple until the checks need its names: one with names takes 0.3 microseconds to make.

    lr, scale, master, nonfinite: of the step.
    states: those of the rule, by name, in its order; then ``step``, where the rule counts steps.
    rule: its numbers, by name.
    insertion: of InsertionRule, by name; for layers.
    """

    lr: Any
    scale: Any
    states: dict[str, Any]
    master: Any
    nonfinite: str
    rule: dict[str, Any]
    insertion: dict[str, Any]


Given = tuple[Any, Any, dict[str, Any], Any, str, dict[str, Any], dict[str, Any]]
COUNT = "step"  # the argument of rules that count steps
NO_OPTIONS: dict[str, Any] = {}  # of insertion, where there is none; never written to

# Of the records that keyword arguments make: their names, and the ranges of numbers (None: it is a switch).
# Looked up here because torch.compile does not trace dataclasses.fields of a class.
_NAMES: dict[type, tuple[str, ...]] = {
    kind: tuple(f.name for f in fields(kind)) for kind in (*RULES, InsertionRule)
}
_RANGES = {
    kind: [(f.name, f.metadata.get("low"), f.metadata.get("high")) for f in fields(kind)] for kind in RULES
}


def of_options(
    kind: type[_Options], options: dict[str, Any], operator: str, others: Sequence[str] = ()
) -> _Options:
    """A record from the keyword arguments of an operator.

    Raises:
        TypeError: if one is unknown; the message says which was meant.
    """
    names = _NAMES[kind]
    for name in options:
        if name not in names:
            meant = nearest(name, [*names, *others]) or f"; it takes {', '.join(names)}"
            raise TypeError(f"{operator}() got an unexpected keyword argument {name!r}{meant}")
    # The dispatcher takes Python's numbers and switches; others, numpy's, become such.
    return kind(**{name: _plain(value) for name, value in options.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, np.bool_):
        return bool(value)
    if not isinstance(value, Real) or isinstance(value, (int, float)):
        return value
    try:
        return float(value)
    except OverflowError:  # of a fraction
        return math.inf


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of keyword arguments those of InsertionRule, and the rest, which are the rule's or unknown."""
    if not options:
        return NO_OPTIONS, NO_OPTIONS
    insertion = {name: value for name, value in options.items() if name in _NAMES[InsertionRule]}
    return insertion, {name: value for name, value in options.items() if name not in insertion}


def rule_of(operator: Operator, options: Options, name: str) -> Rule:
    """The rule of an operator with these options of the function of this name.

    Raises:
        TypeError: if one is unknown.
    """
    kind = operator.spec.rule
    assert kind is not None
    return of_options(
        kind,
        options.rule,
        name,
        ("lr", "scale", "master", "nonfinite", *kind.STATES, *[COUNT] * kind.COUNTS_STEPS),
    )


def number_and_tensor(value: float | Tensor) -> tuple[float, Tensor | None]:
    """lr, scale or a threshold as the operators take it: a number, and a tensor that takes its place."""
    return (0.0, value) if isinstance(value, Tensor) else (float(value), None)


def check_rule(weight: Tensor, rule: Rule, options: Options) -> None:
    """Checks the numbers of a step.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    checks.check_number(options.lr, "lr", weight)
    for name, low, high in _RANGES[type(rule)]:
        value = getattr(rule, name)
        if low is None:
            checks.check_switch(value, name)
            continue
        if not checks.is_number(value):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not low <= value <= high:
            allowed = f">= 0 and at most {high}" if low == 0 else "a finite number"
            raise ValueError(f"{name} must be {allowed}, got {checks.shown(value)}")
    rule.check()
    checks.check_word(options.nonfinite, "nonfinite", NONFINITE)


def check_step(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    options: Options,
    rule: Rule,
) -> tuple[list[Tensor], list[Tensor]]:
    """Checks what all steps share and returns weights and gradients as lists."""
    weights = checks.as_list(weight, "weight")
    grads = checks.as_list(grad, "grad", len(weights))
    for w, g in zip(weights, grads, strict=True):
        checks.check_matches(w, "weight", w, checks.FLOAT_DTYPES)
        checks.check_writable(w, "weight")
        if w.dtype != weights[0].dtype or w.device != weights[0].device:
            raise ValueError(
                f"weights of one call must share dtype and device, got {weights[0].dtype} on "
                f"{weights[0].device} and {w.dtype} on {w.device}; make one call for each"
            )
        checks.check_matches(g, "grad", w, (w.dtype, torch.float32))
        if g.dtype != grads[0].dtype:
            raise ValueError(f"grads of one call must share a dtype, got {grads[0].dtype} and {g.dtype}")
    if weights:
        check_rule(weights[0], rule, options)
    return weights, grads


def _state(value: Any, name: str, weights: list[Tensor], needed: str) -> list[Tensor]:
    """A state of the rule, or the masters, as a checked list, empty where none is needed."""
    if value is None:
        if needed:
            raise ValueError(f"{name} is needed: {needed}")
        return []
    exact = checks.exact_dtype(weights[0])
    values = checks.as_list(value, name, len(weights))
    for w, v in zip(weights, values, strict=True):
        checks.check_matches(v, name, w, (exact,))
        checks.check_writable(v, name)
    return values


def _counts(value: Any, weights: list[Tensor]) -> list[Tensor]:
    """The number of the step of each weight, as a checked list."""
    if value is None:
        raise ValueError("step is needed: a tensor with the number of this step, 1 in the first")
    values = checks.as_list(value, COUNT, len(weights))
    for w, v in zip(weights, values, strict=True):
        if not isinstance(v, Tensor):
            raise TypeError(
                f"{COUNT} must be a torch.Tensor, which is read on its device, got {type(v).__name__}"
            )
        checks.check_dense(v, COUNT)
        if v.dtype is not torch.float32 or v.numel() != 1:
            raise ValueError(f"{COUNT} must be one float32 element, got {v.dtype}, shape {tuple(v.shape)}")
        if v.device != w.device:
            raise ValueError(f"{COUNT} must be on the device of weight, {w.device}, got {v.device}")
    return values


def states_and_master(
    options: Options, weights: list[Tensor], rule: Rule
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """The rule's states, with the number of the step where it counts, and the masters of a step, checked; each
    list is empty where none is needed."""
    dtype = weights[0].dtype
    low = dtype in checks.LOW_PRECISION
    checked = {}
    for name, value in options.states.items():
        if name == COUNT:
            checked[name] = checks.contiguous(_counts(value, weights))
            continue
        needed = name in rule.needs()
        checked[name] = _state(value if needed else None, name, weights, rule.why_needed() if needed else "")
    masters = _state(
        options.master if low else None, "master", weights,
        f"a {dtype} weight cannot hold its displacement; pass weight.float() once and keep it" if low else "",
    )  # fmt: skip
    return checked, masters


# ------------------------------------------------------------------ before the checks

_PLAIN_TYPES = frozenset({int, float, bool})


class QuickRule(NamedTuple):
    """A rule as an attempt passes it.

    numbers: in the order of the schema.
    needs: for each of the rule's states whether a step with these numbers has it; then, where the rule counts
        steps, that their number is needed.
    none: that many Nones, for a step without any; else empty.
    updated: how many of these are states.
    is_plain: whether all numbers have their defaults.
    """

    numbers: tuple[Any, ...]
    needs: tuple[bool, ...]
    none: tuple[None, ...]
    updated: int
    is_plain: bool

    def states(self, given: dict[str, Any]) -> Sequence[Any]:
        """What an operator takes of these states (and the number of the step): None in place of those that the
        step does not have."""
        return self.none or [
            state if needs else None for state, needs in zip(given.values(), self.needs, strict=True)
        ]


@functools.lru_cache(maxsize=1024)
def _quick_rule(kind: Any, items: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> QuickRule | None:
    """``types`` are those of the values: 1 and True are one key without them."""
    try:
        rule = kind(**dict(items))
    except TypeError:
        return None
    if any(isinstance(getattr(rule, name), bool) is not (low is None) for name, low, _ in _RANGES[kind]):
        return None
    numbers = tuple(getattr(rule, name) for name in _NAMES[kind])
    needs = tuple(state in rule.needs() for state in rule.STATES) + (True,) * rule.COUNTS_STEPS
    none = () if any(needs) else (None,) * len(needs)
    return QuickRule(numbers, needs, none, len(rule.STATES), rule == kind())


_kinds: tuple[Any, ...] = RULES  # mypy takes the hash of a class for that of its instances
_PLAIN: dict[Any, QuickRule | None] = {kind: _quick_rule(kind, (), ()) for kind in _kinds}


def quick_rule(kind: type[Rule], numbers: dict[str, Any]) -> QuickRule | None:
    """The rule of these keyword arguments, for an attempt; None if the checks must look at them first."""
    if not numbers:
        return _PLAIN[kind]
    types = tuple(map(type, numbers.values()))
    if not _PLAIN_TYPES.issuperset(types):
        return None
    hashable: Any = kind  # mypy takes the hash of the class for that of its instances
    return _quick_rule(hashable, tuple(numbers.items()), types)
