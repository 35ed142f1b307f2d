"""``scale="auto"``: steps that move nothing, before the first one that does, do not change what is measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from helpers.optimizers import Case, make_parameters, same_bits, set_grads, train

CASES = {
    "SGD": Case("SGD", {}),
    "SGD, step": Case("SGD", {"gate": "step"}),
    "SGD, bfloat16": Case("SGD", {}, torch.bfloat16),
}
STEPS = 6


def measured(case: Case, before: Any = None, times: int = 1) -> tuple[float, list[Parameter], Any]:
    """The scale after an item, with some steps before it whose gradients ``before`` sets."""
    params = make_parameters(case.dtype)
    optimizer = case.make(params, scale="auto")
    for _ in range(times if before else 0):
        set_grads(params, 99)
        for p in params:
            before(p)
        optimizer.step()
    train(optimizer, params, 0, STEPS, item=STEPS)
    scale = optimizer.scales()[0]
    assert scale > 0
    return scale, params, optimizer


def nan(p: Parameter) -> None:
    p.grad.fill_(math.nan)


def infinite(p: Parameter) -> None:
    p.grad.fill_(math.inf)


def zero(p: Parameter) -> None:
    p.grad.zero_()


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("before", [nan, infinite, zero])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sgd_measures_the_same_scale(case: Case, before: Any, times: int) -> None:
    expected, judge, other = measured(case)
    scale, params, optimizer = measured(case, before, times)
    assert scale == expected
    train(optimizer, params, STEPS, 3 * STEPS, item=STEPS)
    train(other, judge, STEPS, 3 * STEPS, item=STEPS)
    assert same_bits(params, judge)


@pytest.mark.parametrize("before", [nan, infinite, zero])
@pytest.mark.parametrize("momentum", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_momentum_measures_the_same_scale(momentum: dict[str, Any], before: Any) -> None:
    """A buffer of zeros is as if there had been no step, but that its first gradient is not damped any less."""
    case = Case("SGD", momentum)
    expected, *_ = measured(case)
    assert measured(case, before, 2)[0] == expected


def test_a_learning_rate_that_warms_up_from_zero() -> None:
    """The first step has lr 0 and moves nothing."""
    scales = []
    for first in (0, 1):
        params = make_parameters()
        optimizer = CASES["SGD"].make(params, scale="auto")
        schedule = [0.0, 0.01, 0.02, 0.03, 0.03]
        for step in range(first, len(schedule)):
            optimizer.param_groups[0]["lr"] = schedule[step]
            set_grads(params, step)
            optimizer.step()
        optimizer.consolidate()
        scales.append(optimizer.scales()[0])
    assert scales[0] == scales[1]


@pytest.mark.parametrize("before", [nan, infinite])
def test_adamw_measures_the_same_scale(before: Any) -> None:
    """It counts a step that is skipped, so its corrections differ from then on: the judge begins at step 1."""
    case = Case("AdamW", {"weight_decay": 0.0})
    scale, params, optimizer = measured(case, before)
    judge = make_parameters()
    plain = case.make(judge, scale="auto")
    for p in judge:
        plain.state[p]["step"] = torch.ones(())
        plain.state[p] |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
    train(plain, judge, 0, STEPS, item=STEPS)
    assert same_bits(params, judge)
    assert scale == plain.scales()[0]
    train(optimizer, params, STEPS, 3 * STEPS, item=STEPS)
    train(plain, judge, STEPS, 3 * STEPS, item=STEPS)
    assert same_bits(params, judge)


def test_adamw_with_a_zero_gradient_first() -> None:
    case = Case("AdamW", {"weight_decay": 0.0})
    assert measured(case, zero)[0] > 0
    assert math.isclose(measured(case, zero)[0], measured(case, nan)[0], rel_tol=0.0)
