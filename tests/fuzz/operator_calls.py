"""Random calls of the public operators with arguments that are in order, each with its judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.reference import prototype as reference_prototype
from helpers import judge, judge_adamw, judge_adapter, judge_layer
from helpers.draw import (
    LOW,
    MATRICES,
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
)  # fmt: skip
from helpers.judge import assert_within, same_bits

__all__ = ["FUNCTIONS", "Call", "draw"]

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


def draw(rng: np.random.Generator) -> Call:
    # Of the CPU only: torch.manual_seed takes 2 ms where there is no GPU.
    torch.default_generator.manual_seed(int(rng.integers(1 << 31)))
    return FUNCTIONS[_NAMES[rng.integers(len(_NAMES))]](rng)


# ------------------------------------------------------------------ gate and steps


def _dtype(rng: np.random.Generator) -> torch.dtype:
    return either(
        rng, torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64
    )


def _anchor(rng: np.random.Generator, near: Tensor) -> Any:
    """Displaced from a weight over four decades, or a field."""
    if chance(rng, 0.4):
        return field(rng, of_anchor=True)
    exact = exact_of(near.dtype)
    size = 10 ** (-4 * uniform(rng, near.shape, exact))
    return placed(rng, near.to(exact) + normal(rng, near.shape, exact).sign() * size, written=False)


def _flexibility(rng: np.random.Generator, like: Tensor) -> Any:
    kind = rng.integers(3)
    if kind == 0:
        return field(rng, of_anchor=False)
    if kind == 1:
        return number(rng, 0.0, 1.0, 0.5, 0.25, tensor=False)
    return placed(rng, uniform(rng, like.shape, exact_of(like.dtype)), written=False)


def _gate(rng: np.random.Generator) -> Call:
    w = normal(rng, shape_of(rng), either(rng, torch.float32, torch.float32, torch.float64))
    is_wild = chance(rng, 0.1)
    arguments = {
        "weight": placed(rng, wild(rng, w) if is_wild else w, written=False),
        "anchor": _anchor(rng, w), "flexibility": _flexibility(rng, w), "scale": number(rng, 0.75, 2.0, 20.0, 100.0),
    }  # fmt: skip

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


def _exact(weight: Tensor, master: Tensor | None) -> Tensor:
    """What a low-precision weight is the rounding of, unless it was written from outside."""
    if master is None or weight.dtype not in LOW:
        return weight
    return torch.where(master.to(weight.dtype) == weight, master, weight.to(master.dtype))


def _step(rng: np.random.Generator, kind: str, *, gated: bool) -> Call:
    dtype, several = _dtype(rng), chance(rng, 0.35)
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
        columns["anchor"] = [_anchor(rng, m) for m in masters]
        columns["flexibility"] = [_flexibility(rng, m) for m in masters]
    numbers = _rule(rng, kind)
    if dtype in LOW or chance(rng, 0.05):
        columns["master"] = masters
    if kind == "sgd":
        if numbers.get("momentum") or chance(rng, 0.05):
            columns["momentum_buffer"] = [normal(rng, s, exact) for s in shapes]
    else:
        columns["exp_avg_sq"] = [10 ** (-4 * uniform(rng, s, exact)) for s in shapes]
        columns["exp_avg"] = [normal(rng, s, exact) * v.sqrt()
                              for s, v in zip(shapes, columns["exp_avg_sq"], strict=True)]  # fmt: skip
        columns["step"] = [torch.tensor(float(rng.integers(1, 2000))) for _ in shapes]
        if numbers.get("amsgrad") or chance(rng, 0.05):
            columns["max_exp_avg_sq"] = [v * either(rng, 0.5, 2.0) for v in columns["exp_avg_sq"]]
    states = [n for n in columns if n in ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
    written = ("weight", *(n for n in ("master", *states) if n in columns))
    arguments: Arguments = {}
    for name, values in columns.items():
        laid = [placed(rng, v, written=name in written) if type(v) is Tensor and name != "step" else v
                for v in values]  # fmt: skip
        arguments[name] = laid if several else laid[0]
    arguments |= {name: number(rng, value, tensor=False) if type(value) is float else value
                  for name, value in numbers.items()}  # fmt: skip
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


def _rule(rng: np.random.Generator, kind: str) -> Arguments:
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
    exact = _exact(before["weight"], before.get("master"))
    alpha, alpha_bound = _alpha(before, exact)
    rule = judge.Rule(lr=number_of(before["lr"]), **numbers)
    buffer = before.get("momentum_buffer") if rule.momentum else None
    judged = judge.judge_step(exact, before["grad"], alpha, alpha_bound, rule, buffer)
    _look_at_weight(before, after, judged.weight, judged.weight_bound)
    if judged.buffer is not None and judged.buffer_bound is not None:
        assert_within(after["momentum_buffer"], judged.buffer, judged.buffer_bound)


def _look_adamw(before: Arguments, after: Arguments, numbers: Arguments) -> None:
    exact = _exact(before["weight"], before.get("master"))
    alpha, alpha_bound = _alpha(before, exact)
    largest = before.get("max_exp_avg_sq", before["exp_avg_sq"])
    x = judge_adamw.Operands(
        before["weight"], before["grad"], exact, exact, before["exp_avg"], before["exp_avg_sq"], largest,
        before["step"], exact,
    )  # fmt: skip
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


def _displacement(rng: np.random.Generator, *, gated: bool) -> Call:
    call = _step(rng, "sgd", gated=gated)
    kept = {n: v for n, v in call.arguments.items() if n in ("weight", "anchor", "flexibility", "alpha", "scale",
                                                             "nonfinite", "master")}  # fmt: skip
    several = isinstance(kept["weight"], list)
    weights = kept["weight"] if several else [kept["weight"]]
    if gated and not any(v is None for v in (kept["alpha"] if several else [kept["alpha"]])):
        function: Any = ops.gated_displacement_
    elif gated:
        return _displacement(rng, gated=False)
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
    exact = _exact(before["before"], before["master"] if low else None)
    alpha, alpha_bound = _alpha(before, exact)
    moved = w - w0
    value = exact.double() + alpha * moved
    # Roundings of w - w0, of the product and of the sum.
    bound = alpha_bound * moved.abs() + judge.U * (2 * (alpha * moved).abs() + value.abs())
    bound = bound * judge.SECOND_ORDER + judge.SUBNORMAL
    # Where alpha is 1 a master becomes w.
    bound = torch.where(alpha > 1 - 2.0**-20, bound + (w - value).abs(), bound) if low else bound
    _look_at_weight(before, after, value, bound)


# ------------------------------------------------------------------ layers


def _layer(rng: np.random.Generator, *, linear: bool) -> Call:
    dtype, shape = _dtype(rng), either(rng, *MATRICES)
    several = not linear and chance(rng, 0.25)
    of_grad = either(rng, dtype, torch.float32)
    drawn = [_one_layer(rng, dtype, of_grad, shape) for _ in range(rng.integers(1, 3) if several else 1)]
    rule = _rule(rng, "sgd")
    if chance(rng, 0.2):
        rule["weight_decay"] = 0.125
    arguments: Arguments = {n: [of[n] for of in drawn] if several else drawn[0][n] for n in drawn[0]}
    if not rule.get("momentum"):
        del arguments["momentum_buffer"]
    if dtype not in LOW:
        del arguments["master"]
    insert = either(rng, "init", "init", "hebbian")
    if insert == "hebbian":
        tensors = [judge_layer.materialized(of["anchor"], of["master"]).to(exact_of(dtype), copy=True)
                   for of in drawn]  # fmt: skip
        arguments["anchor"] = tensors if several else tensors[0]
    has_silent = not linear or chance(rng, 0.7)
    how: Arguments = {"insert": insert, "eta": either(rng, 1.0, 0.5), "prune": either(rng, 0.0, 0.0, 0.25)}
    arguments |= rule | how
    arguments |= {"lr": number(rng, 0.0, 0.125, 0.5), "scale": number(rng, 0.75, 20.0)}
    if chance(rng, 0.2):
        alphas = [uniform(rng, shape, exact_of(dtype)) for _ in drawn]
        arguments |= {"alpha": alphas if several else alphas[0], "flexibility": None}
        if chance(rng, 0.5):
            arguments["scale"] = None
    exact, function = exact_of(dtype), ops.linear_step_ if linear else ops.synapse_step_
    if linear:
        size, of_x = (
            either(rng, 1, 2, 4),
            torch.float64 if dtype is torch.float64 else either(rng, torch.float32, *LOW),
        )
        batch = [_eighths(rng, (size, n)).to(of_x) for n in (shape[1], shape[0], shape[0])]
        arguments |= dict(
            zip(("x", "grad_out", "post"), (placed(rng, b, written=False) for b in batch), strict=True)
        )
        del arguments["grad"]
        arguments["rule"] = either(rng, "hebbian", "rate")
        if not has_silent:
            for name in ("silent", "post"):
                del arguments[name]
    elif chance(rng, 0.5):
        both = [[_eighths(rng, (n,)).to(exact) for n in shape] for _ in drawn]
        arguments |= {"pre": [b[1] for b in both] if several else both[0][1],
                      "post": [b[0] for b in both] if several else both[0][0]}  # fmt: skip
    else:
        cs = [_eighths(rng, shape).to(exact) for _ in drawn]
        arguments["coincidence"] = cs if several else cs[0]
    if has_silent or not linear:
        theta = either(
            rng, 0.0, 0.33, 1.01, torch.full((shape[0],), 0.57, dtype=exact), torch.tensor(0.3, dtype=exact)
        )
        arguments["threshold"] = theta
        if several and isinstance(theta, Tensor):
            arguments["threshold"] = [theta for _ in drawn]
    written = tuple(n for n in ("weight", "momentum_buffer", "master", "silent") if n in arguments)
    written += ("anchor",) if insert == "hebbian" and has_silent else ()
    tame = not several and (has_silent or not linear) and dtype is not torch.float64
    look = _look_at_layer(rule, how, linear=linear) if tame else None
    return Call(function, arguments, written, look)


def _one_layer(
    rng: np.random.Generator, dtype: torch.dtype, of_grad: torch.dtype, shape: tuple[int, int]
) -> Arguments:
    m = 0.5 * normal(rng, shape, exact_of(dtype))
    w, g = m.to(dtype, copy=True), normal(rng, shape, of_grad)
    anchor, flexibility = _anchor(rng, m), _flexibility(rng, m)
    mask = uniform(rng, shape) < either(rng, 0.0, 0.1, 0.5, 1.0)
    w[mask], m[mask] = 0.0, 0.0
    return {
        "weight": placed(rng, w, written=True), "grad": placed(rng, g, written=False), "anchor": anchor,
        "flexibility": flexibility, "silent": placed(rng, reference.pack_mask(mask), written=True),
        "momentum_buffer": normal(rng, shape, exact_of(dtype)), "master": m,
    }  # fmt: skip


def _eighths(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.integers(-8, 17, size=shape).astype(np.float32)) / 8


def _look_at_layer(rule: Arguments, how: Arguments, *, linear: bool) -> Judge:
    def look(before: Arguments, after: Arguments, done: ops.Conversions) -> None:
        exact = _exact(before["weight"], before.get("master"))
        zero = torch.zeros(exact.shape)

        def layer(of: Arguments) -> judge_layer.Layer:
            anchor = judge_layer.materialized(of["anchor"], exact)
            f = zero if of["flexibility"] is None else judge_layer.materialized(of["flexibility"], exact)
            grad = of.get("grad", zero)
            return judge_layer.Layer(of["weight"].detach(), grad, anchor, f, of.get("momentum_buffer", zero),
                                     of.get("master", zero), of["silent"])  # fmt: skip

        grad = None
        if linear:
            grad = judge_layer.judge_product(before["grad_out"], before["x"])
            c = judge_layer.judge_coincidence(before["x"], before["post"], before["rule"])
        elif "coincidence" in before:
            c = (before["coincidence"].double(), torch.zeros(exact.shape, dtype=torch.float64))
        else:
            c = judge_layer.judge_rate(before["pre"], before["post"])
        numbers = judge.Rule(number_of(before["lr"]), number_of(before["scale"] or 0.0), **rule)
        opening = judge_layer.Opening(before["threshold"], **how)
        judge_layer.judge_pass(layer(before), layer(after), done, c, numbers, opening, alpha=before.get("alpha"),
                               grad=grad)  # fmt: skip

    return look


# ------------------------------------------------------------------ adapters, prototypes, fields, masks


def _adapter(rng: np.random.Generator) -> Call:
    size = [either(rng, *v) for v in ((0, 1, 2, 5), (0, 1, 3), (1, 3, 8, 33), (1, 2, 5, 16), (0, 1, 3))]
    samples, positions, d, r, tasks = size
    dtype = _dtype(rng)
    shapes = {"x": (samples, positions, d), "down": (tasks, d, r), "down_bias": (tasks, r), "up": (tasks, r, d),
              "up_bias": (tasks, d), "residual": (samples, positions, d)}  # fmt: skip
    if chance(rng, 0.4):
        del shapes["residual"]
    tensors = {n: placed(rng, torch.from_numpy(rng.integers(-4, 5, size=s)).to(dtype) / 4, written=False)
               for n, s in shapes.items()}  # fmt: skip
    index = torch.from_numpy(rng.integers(-1, tasks, size=samples)).to(either(rng, torch.int32, torch.int64))
    arguments: Arguments = {**tensors, "index": index, "scale": number(rng, 1.0, 0.5, -2.0, 0.0, tensor=False)}
    is_wild = chance(rng, 0.1)
    if is_wild:
        arguments["x"] = wild(rng, arguments["x"].detach().clone())
    if chance(rng, 0.3):
        arguments |= {"dropout_p": number(rng, 0.0, 0.125, 0.5, tensor=False),
                      "seed": either(rng, 5, 2**64 - 1, np.int64(3), torch.tensor(7), torch.tensor([-3]))}  # fmt: skip
    has_grads = chance(rng, 0.3)
    if has_grads:
        arguments["x"] = arguments["x"].detach().clone().requires_grad_()

    def look(before: Arguments, _: Arguments, out: Tensor) -> None:
        p, seed = number_of(before.get("dropout_p", 0.0)), before.get("seed")
        if p and not isinstance(seed, Tensor):
            seed = torch.tensor([int(seed) - (1 << 64) if int(seed) >> 63 else int(seed)])
        case = judge_adapter.Case(
            before["x"], before["down"], before["down_bias"], before["up"], before["up_bias"], before["index"],
            before.get("residual"), seed if p else None, number_of(before["scale"]), p,
        )  # fmt: skip
        value, _ = judge_adapter.judge_forward(case)
        judge_adapter.assert_near(out.detach(), value)
        assert out.requires_grad == has_grads

    known = dtype is not torch.float64 and not is_wild
    return Call(ops.gated_adapter, arguments, (), look if known else None)


def _logits(rng: np.random.Generator) -> Call:
    n, k, dim, c = (either(rng, *v) for v in ((0, 1, 3), (1, 2, 3), (1, 7), (0, 1, 4)))
    dtype = _dtype(rng)
    arguments: Arguments = {
        "features": placed(rng, normal(rng, (n, k, dim), dtype), written=False),
        "prototypes": placed(rng, normal(rng, (c, k, dim), either(rng, dtype, torch.float32)), written=False),
        "own_subspace": torch.from_numpy(rng.integers(0, k, size=c)), "weight": number(rng, 0.125, 0.0, -1.0, tensor=False),
        "reweighting": either(rng, "code", "paper"), "base": chance(rng, 0.4), "base_weight": number(rng, 0.25, tensor=False),
    }  # fmt: skip
    if chance(rng, 0.4):
        arguments["openings"] = uniform(rng, (n, k))
    if arguments["base"] and k > 1:  # the first subspace is no task's
        arguments["own_subspace"].clamp_(min=1)

    def look(before: Arguments, _: Arguments, logits: Tensor) -> None:
        exact = {
            n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in before.items()
        }
        expected = reference_prototype.prototype_logits(**exact)
        # Unit vectors of dim products in k subspaces, with weights of at most 1.25 each; all added up.
        bound = 4 * k * (k * dim + 2 * dim + 6) * judge.U
        assert_within(logits, expected, torch.tensor(bound))

    return Call(ops.prototype_logits, arguments, (), look, 1e-3)


def _completion(rng: np.random.Generator) -> Call:
    k, dim, c = (either(rng, *v) for v in ((1, 2, 3), (1, 7), (0, 1, 4)))
    arguments: Arguments = {
        "prototypes": placed(rng, normal(rng, (c, k, dim), _dtype(rng)), written=False),
        "own_subspace": torch.from_numpy(rng.integers(0, k, size=c)), "over": either(rng, "later", "new"),
    }  # fmt: skip
    if chance(rng, 0.4):
        arguments["known"] = uniform(rng, (c, k)) < 0.6
        arguments["known"][torch.arange(c), arguments["own_subspace"]] = True

    def look(before: Arguments, _: Arguments, completed: Tensor) -> None:
        exact = {**before, "prototypes": before["prototypes"].double()}
        exact["known"] = before.get("known", torch.arange(k) <= before["own_subspace"][:, None])
        expected = reference_prototype.complete_prototypes(**exact)
        bound = (
            16
            * (c + 2 * dim + 6)
            * judge.U
            * (1 + expected.abs().max() if expected.numel() else torch.tensor(1.0))
        )
        assert_within(completed, expected, bound)

    return Call(ops.complete_prototypes, arguments, (), look, 1e-3)


def _materialize(rng: np.random.Generator) -> Call:
    of, shape = field(rng, of_anchor=chance(rng, 0.5)), shape_of(rng)

    def look(before: Arguments, _: Arguments, values: Tensor) -> None:
        assert same_bits(values, reference.materialize(before["field"], shape, torch.device("cpu")))

    return Call(ops.materialize, {"field": of, "shape": either(rng, tuple, list, torch.Size)(shape)}, (), look)


def _field(rng: np.random.Generator) -> Call:
    arguments = {"shape": shape_of(rng), "seed": int(rng.integers(1 << 63)), "stream": int(rng.integers(99)),
                 "offset": int(either(rng, 0, 3, 2**40 + 3)), "device": either(rng, None, "cpu")}  # fmt: skip

    def look(before: Arguments, _: Arguments, values: Tensor) -> None:
        of = Field.uniform(before["seed"], before["stream"], offset=before["offset"])
        assert same_bits(values, reference.materialize(of, before["shape"], torch.device("cpu")))

    return Call(ops.flexibility_field, arguments, (), look)


def _pack(rng: np.random.Generator) -> Call:
    mask = uniform(rng, either(rng, *MATRICES)) < 0.5

    def look(before: Arguments, _: Arguments, words: Tensor) -> None:
        assert same_bits(words, reference.pack_mask(before["mask"]))

    return Call(ops.pack_mask, {"mask": placed(rng, mask, written=False)}, (), look)


def _unpack(rng: np.random.Generator) -> Call:
    mask = uniform(rng, either(rng, *MATRICES)) < 0.5
    arguments = {"words": placed(rng, reference.pack_mask(mask), written=False), "columns": mask.shape[1]}

    def look(before: Arguments, _: Arguments, unpacked: Tensor) -> None:
        assert torch.equal(unpacked, reference.unpack_mask(before["words"], before["columns"]))

    return Call(ops.unpack_mask, arguments, (), look)


FUNCTIONS: dict[str, Callable[[np.random.Generator], Call]] = {
    "metaplastic_gate": _gate,
    "metaplastic_sgd_": lambda rng: _step(rng, "sgd", gated=False),
    "gated_sgd_": lambda rng: _step(rng, "sgd", gated=True),
    "metaplastic_adamw_": lambda rng: _step(rng, "adamw", gated=False),
    "gated_adamw_": lambda rng: _step(rng, "adamw", gated=True),
    "scale_displacement_": lambda rng: _displacement(rng, gated=False),
    "gated_displacement_": lambda rng: _displacement(rng, gated=True),
    "synapse_step_": lambda rng: _layer(rng, linear=False),
    "linear_step_": lambda rng: _layer(rng, linear=True),
    "gated_adapter": _adapter,
    "prototype_logits": _logits,
    "complete_prototypes": _completion,
    "materialize": _materialize,
    "flexibility_field": _field,
    "pack_mask": _pack,
    "unpack_mask": _unpack,
}
_NAMES = (*FUNCTIONS, "metaplastic_sgd_", "synapse_step_", "linear_step_")
