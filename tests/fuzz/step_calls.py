"""Random calls of the gate, the steps and the displacement, each with its judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern import ops
from helpers import judge, judge_adamw, judge_layer
from helpers.draw import (
    LOW,
    chance,
    either,
    exact_of,
    field,
    normal,
    number,
    number_of,
    placed,
    shape_of,
    uniform,
    wild,
)
from helpers.judge import assert_within, same_bits

__all__ = [
    "Arguments",
    "Call",
    "Judge",
    "anchor_of",
    "displacement",
    "dtype_of",
    "exact_weight",
    "flexibility_of",
    "gate",
    "rule_of",
    "step",
]

Arguments = dict[str, Any]
Judge = Callable[[Arguments, Arguments, Any], None]


class Call(NamedTuple):
    """A call by name.

    judge: looks at the arguments before and after the call and at its result; None: the reference does.
    tolerance: of the comparison with the reference.
    """

    function: Callable[..., Any]
    arguments: Arguments
    written: tuple[str, ...] = ()
    judge: Judge | None = None
    tolerance: float = 2e-3


def dtype_of(rng: np.random.Generator) -> torch.dtype:
    return either(
        rng, torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64
    )


def anchor_of(rng: np.random.Generator, near: Tensor) -> Any:
    """Displaced from a weight over four decades, or a field."""
    if chance(rng, 0.4):
        return field(rng, of_anchor=True)
    exact = exact_of(near.dtype)
    size = 10 ** (-4 * uniform(rng, near.shape, exact))
    return placed(rng, near.to(exact) + normal(rng, near.shape, exact).sign() * size, written=False)


def flexibility_of(rng: np.random.Generator, like: Tensor) -> Any:
    kind = rng.integers(3)
    if kind == 0:
        return field(rng, of_anchor=False)
    if kind == 1:
        return number(rng, 0.0, 1.0, 0.5, 0.25, tensor=False)
    return placed(rng, uniform(rng, like.shape, exact_of(like.dtype)), written=False)


def gate(rng: np.random.Generator) -> Call:
    w = normal(rng, shape_of(rng), either(rng, torch.float32, torch.float32, torch.float64))
    is_wild = chance(rng, 0.1)
    arguments = {
        "weight": placed(rng, wild(rng, w) if is_wild else w, written=False),
        "anchor": anchor_of(rng, w),
        "flexibility": flexibility_of(rng, w),
        "scale": number(rng, 0.75, 2.0, 20.0, 100.0),
    }

    def look(before: Arguments, _: Arguments, alpha: Tensor) -> None:
        w, scale = before["weight"], number_of(before["scale"])
        a, f = (judge_layer.materialized(before[name], w) for name in ("anchor", "flexibility"))
        assert alpha.dtype == w.dtype
        assert_within(alpha, *judge.judge_gate(w, a, f, scale))

    return Call(ops.metaplastic_gate, arguments, (), None if is_wild else look)


def _of_step(rng: np.random.Generator, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[Any, ...]:
    """Weights, masters and gradients. Some low-precision weights were written from outside."""
    masters = [0.5 * normal(rng, shape, exact_of(dtype)) for shape in shapes]
    weights = [m.to(dtype, copy=True) for m in masters]
    if chance(rng, 0.2):
        weights = [w + either(rng, 0.0, 0.125) for w in weights]
    of_grad = either(rng, dtype, dtype, torch.float32)
    return weights, masters, [normal(rng, shape, of_grad) for shape in shapes]


def exact_weight(weight: Tensor, master: Tensor | None) -> Tensor:
    """What a low-precision weight is the rounding of, unless it was written from outside."""
    if master is None or weight.dtype not in LOW:
        return weight
    return torch.where(master.to(weight.dtype) == weight, master, weight.to(master.dtype))


def step(rng: np.random.Generator, kind: str, *, gated: bool) -> Call:
    dtype, several = dtype_of(rng), chance(rng, 0.35)
    shapes = [shape_of(rng) for _ in range(rng.integers(0, 4) if several else 1)]
    weights, masters, grads = _of_step(rng, shapes, dtype)
    is_wild = chance(rng, 0.12)
    if is_wild:
        grads = [wild(rng, g) for g in grads]
        if chance(rng, 0.3):
            weights = masters = [wild(rng, w) for w in weights]
            masters = [w.to(exact_of(dtype), copy=True) for w in weights]
    exact = exact_of(dtype)
    columns: dict[str, list[Any]] = {"weight": weights, "grad": grads}
    if gated:
        of_alpha = either(rng, exact, exact if dtype is torch.float64 else torch.bfloat16)
        free = chance(rng, 0.1)
        columns["alpha"] = [None if free else uniform(rng, s, of_alpha) for s in shapes]
    else:
        columns["anchor"] = [anchor_of(rng, m) for m in masters]
        columns["flexibility"] = [flexibility_of(rng, m) for m in masters]
    numbers = rule_of(rng, kind)
    if dtype in LOW or chance(rng, 0.05):
        columns["master"] = masters
    if kind == "sgd":
        if numbers.get("momentum") or chance(rng, 0.05):
            columns["momentum_buffer"] = [normal(rng, s, exact) for s in shapes]
    else:
        columns["exp_avg_sq"] = [10 ** (-4 * uniform(rng, s, exact)) for s in shapes]
        columns["exp_avg"] = [
            normal(rng, s, exact) * v.sqrt() for s, v in zip(shapes, columns["exp_avg_sq"], strict=True)
        ]
        columns["step"] = [torch.tensor(float(rng.integers(1, 2000))) for _ in shapes]
        if numbers.get("amsgrad") or chance(rng, 0.05):
            columns["max_exp_avg_sq"] = [v * either(rng, 0.5, 2.0) for v in columns["exp_avg_sq"]]
    states = [n for n in columns if n in ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
    written = ("weight", *(n for n in ("master", *states) if n in columns))
    arguments: Arguments = {}
    for name, values in columns.items():
        laid = [
            placed(rng, v, written=name in written) if type(v) is Tensor and name != "step" else v
            for v in values
        ]
        arguments[name] = laid if several else laid[0]
    arguments |= {
        name: number(rng, value, tensor=False) if type(value) is float else value
        for name, value in numbers.items()
    }
    arguments["lr"] = number(rng, 0.0, 0.125, 0.5, 1.0)
    if not gated:
        arguments["scale"] = number(rng, 0.75, 2.0, 20.0, 100.0)
    if chance(rng, 0.3):
        arguments["nonfinite"] = either(rng, "skip", "raise", "propagate")
    function = getattr(ops, f"{'gated' if gated else 'metaplastic'}_{kind}_")

    def look(before: Arguments, after: Arguments, result: None) -> None:
        for i in range(len(shapes)):
            of = [{n: v[i] if isinstance(v, list) else v for n, v in a.items()} for a in (before, after)]
            (_look_sgd if kind == "sgd" else _look_adamw)(*of, numbers)

    return Call(function, arguments, written, None if is_wild else look)


def rule_of(rng: np.random.Generator, kind: str) -> Arguments:
    numbers: Arguments = {}
    if chance(rng, 0.4):
        numbers["weight_decay"] = either(rng, 0.0, 0.125, 2.0**-12)
    if chance(rng, 0.3):
        numbers["maximize"] = True
    if kind == "sgd" and chance(rng, 0.5):
        numbers["momentum"] = either(rng, 0.5, 0.875)
        how = rng.integers(3)
        numbers |= ({}, {"nesterov": True}, {"dampening": either(rng, 0.125, -0.5, 1.0)})[how]
    if kind == "adamw":
        if chance(rng, 0.4):
            numbers |= {"beta1": either(rng, 0.0, 0.5, 0.875), "beta2": either(rng, 0.5, 0.9375)}
        if chance(rng, 0.3):
            numbers["amsgrad"] = True
        if chance(rng, 0.3):
            numbers["eps"] = either(rng, 2.0**-20, 0.125)
    return numbers


def _alpha(of: Arguments, exact: Tensor) -> tuple[Tensor, Any]:
    if "scale" in of:
        a, f = (judge_layer.materialized(of[name], exact) for name in ("anchor", "flexibility"))
        return judge.judge_gate(exact, a, f, number_of(of["scale"]))
    alpha = of["alpha"]
    return (torch.ones(exact.shape, dtype=torch.float64) if alpha is None else alpha.double()), 0.0


def _look_sgd(before: Arguments, after: Arguments, numbers: Arguments) -> None:
    exact = exact_weight(before["weight"], before.get("master"))
    alpha, alpha_bound = _alpha(before, exact)
    rule = judge.Rule(lr=number_of(before["lr"]), **numbers)
    buffer = before.get("momentum_buffer") if rule.momentum else None
    judged = judge.judge_step(exact, before["grad"], alpha, alpha_bound, rule, buffer)
    _look_at_weight(before, after, judged.weight, judged.weight_bound)
    if judged.buffer is not None and judged.buffer_bound is not None:
        assert_within(after["momentum_buffer"], judged.buffer, judged.buffer_bound)


def _look_adamw(before: Arguments, after: Arguments, numbers: Arguments) -> None:
    exact = exact_weight(before["weight"], before.get("master"))
    alpha, alpha_bound = _alpha(before, exact)
    largest = before.get("max_exp_avg_sq", before["exp_avg_sq"])
    x = judge_adamw.Operands(
        before["weight"],
        before["grad"],
        exact,
        exact,
        before["exp_avg"],
        before["exp_avg_sq"],
        largest,
        before["step"],
        exact,
    )
    judged = judge_adamw.judge_adamw(x, alpha, alpha_bound, number_of(before["lr"]), numbers)
    _look_at_weight(before, after, judged.weight, judged.weight_bound)
    assert_within(after["exp_avg"], judged.exp_avg, judged.exp_avg_bound)
    assert_within(after["exp_avg_sq"], judged.exp_avg_sq, judged.exp_avg_sq_bound)
    if numbers.get("amsgrad"):
        assert_within(after["max_exp_avg_sq"], judged.max_exp_avg_sq, judged.exp_avg_sq_bound)


def _look_at_weight(before: Arguments, after: Arguments, value: Tensor, bound: Tensor) -> None:
    if before["weight"].dtype not in LOW:
        assert_within(after["weight"], value, bound)
        return
    assert_within(after["master"], value, bound)
    assert same_bits(after["weight"], after["master"].to(after["weight"].dtype))


def displacement(rng: np.random.Generator, *, gated: bool) -> Call:
    call = step(rng, "sgd", gated=gated)
    kept = {
        n: v
        for n, v in call.arguments.items()
        if n in ("weight", "anchor", "flexibility", "alpha", "scale", "nonfinite", "master")
    }
    several = isinstance(kept["weight"], list)
    weights = kept["weight"] if several else [kept["weight"]]
    if gated and not any(v is None for v in (kept["alpha"] if several else [kept["alpha"]])):
        function: Any = ops.gated_displacement_
    elif gated:
        return displacement(rng, gated=False)
    else:
        function = ops.scale_displacement_
    befores = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w in weights:
            w.add_(0.25 * normal(rng, w.shape, w.dtype))
    kept["before"] = befores if several else befores[0]
    written = tuple(n for n in ("weight", "master") if n in kept)

    def look(before: Arguments, after: Arguments, result: None) -> None:
        for i in range(len(weights)):
            of = [{n: v[i] if isinstance(v, list) else v for n, v in a.items()} for a in (before, after)]
            _look_displacement(*of)

    return Call(function, kept, written, None if call.judge is None else look)


def _look_displacement(before: Arguments, after: Arguments) -> None:
    low = before["weight"].dtype in LOW
    w, w0 = before["weight"].double(), before["before"].double()
    exact = exact_weight(before["before"], before["master"] if low else None)
    alpha, alpha_bound = _alpha(before, exact)
    moved = w - w0
    value = exact.double() + alpha * moved
    # Roundings of w - w0, of the product and of the sum.
    bound = alpha_bound * moved.abs() + judge.U * (2 * (alpha * moved).abs() + value.abs())
    bound = bound * judge.SECOND_ORDER + judge.SUBNORMAL
    # Where alpha is 1 a master becomes w.
    bound = torch.where(alpha > 1 - 2.0**-20, bound + (w - value).abs(), bound) if low else bound
    _look_at_weight(before, after, value, bound)
