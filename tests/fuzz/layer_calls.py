"""Random calls of the passes over a layer, each with its judge."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flexkern import ops, reference
from fuzz.step_calls import Arguments, Call, Judge, anchor_of, dtype_of, exact_weight, flexibility_of, rule_of
from helpers import judge, judge_layer
from helpers.draw import LOW, MATRICES, chance, either, exact_of, normal, number, number_of, placed, uniform

__all__ = ["layer"]


def layer(rng: np.random.Generator, *, linear: bool) -> Call:
    dtype, shape = dtype_of(rng), either(rng, *MATRICES)
    several = not linear and chance(rng, 0.25)
    of_grad = either(rng, dtype, torch.float32)
    drawn = [_one_layer(rng, dtype, of_grad, shape) for _ in range(rng.integers(1, 3) if several else 1)]
    rule = rule_of(rng, "sgd")
    if chance(rng, 0.2):
        rule["weight_decay"] = 0.125
    arguments: Arguments = {n: [of[n] for of in drawn] if several else drawn[0][n] for n in drawn[0]}
    if not rule.get("momentum"):
        del arguments["momentum_buffer"]
    if dtype not in LOW:
        del arguments["master"]
    insert = either(rng, "init", "init", "hebbian")
    if insert == "hebbian":
        tensors = [
            judge_layer.materialized(of["anchor"], of["master"]).to(exact_of(dtype), copy=True) for of in drawn
        ]
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
        arguments |= {
            "pre": [b[1] for b in both] if several else both[0][1],
            "post": [b[0] for b in both] if several else both[0][0],
        }
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
    anchor, flexibility = anchor_of(rng, m), flexibility_of(rng, m)
    mask = uniform(rng, shape) < either(rng, 0.0, 0.1, 0.5, 1.0)
    w[mask], m[mask] = 0.0, 0.0
    return {
        "weight": placed(rng, w, written=True),
        "grad": placed(rng, g, written=False),
        "anchor": anchor,
        "flexibility": flexibility,
        "silent": placed(rng, reference.pack_mask(mask), written=True),
        "momentum_buffer": normal(rng, shape, exact_of(dtype)),
        "master": m,
    }


def _eighths(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.integers(-8, 17, size=shape).astype(np.float32)) / 8


def _look_at_layer(rule: Arguments, how: Arguments, *, linear: bool) -> Judge:
    def look(before: Arguments, after: Arguments, done: ops.Conversions) -> None:
        exact = exact_weight(before["weight"], before.get("master"))
        zero = torch.zeros(exact.shape)

        def state(of: Arguments) -> judge_layer.Layer:
            anchor = judge_layer.materialized(of["anchor"], exact)
            f = zero if of["flexibility"] is None else judge_layer.materialized(of["flexibility"], exact)
            grad = of.get("grad", zero)
            return judge_layer.Layer(
                of["weight"].detach(),
                grad,
                anchor,
                f,
                of.get("momentum_buffer", zero),
                of.get("master", zero),
                of["silent"],
            )

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
        judge_layer.judge_pass(
            state(before), state(after), done, c, numbers, opening, alpha=before.get("alpha"), grad=grad
        )

    return look
