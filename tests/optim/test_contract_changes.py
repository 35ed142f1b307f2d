"""What is changed in a group later: it holds from then on. And the quick step, which must notice it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern import Field
from helpers.optimizers import CASES, MAKERS, Case, ids, same_bits, train

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=ids)

CHANGES: dict[str, list[Any]] = {
    "lr": [0.01, torch.tensor(0.01)],
    "scale": [3.0, torch.tensor(3.0)],
    "weight_decay": [0.3],
    "maximize": [True],
    "gate": ["item", "step"],
    "nonfinite": ["propagate", "raise"],
    "flexibility": [0.9, "biased_low", Field.uniform(3, 5)],
    "seed": [8],
    "flexible_vectors": [True],
    "alpha_dtype": [torch.bfloat16],
}
OF_KIND = {
    "SGD": {"momentum": [0.5], "dampening": [0.1], "nesterov": [True]},
    "wrapped": {"momentum": [0.5], "dampening": [0.1], "nesterov": [True]},
    "AdamW": {"betas": [(0.8, 0.9)], "eps": [1e-3], "amsgrad": [True]},
}
CHANGED = [
    (kind, name, value)
    for kind in MAKERS
    for name, values in (CHANGES | OF_KIND[kind]).items()
    for value in values
]
SILENT = ("nonfinite",)  # all gradients are finite


@pytest.mark.parametrize(("kind", "name", "value"), CHANGED, ids=str)
@pytest.mark.parametrize("way", ["by hand", "by a checkpoint"])
def test_an_option_that_is_changed_later(kind: str, name: str, value: Any, way: str) -> None:
    """It holds from then on: for training goes on as it would after loading a state with this option."""
    case = Case(kind, {} if kind == "AdamW" else {"momentum": 0.9})
    params, unchanged = case.parameters(), case.parameters()
    optimizer, other = case.make(params), case.make(unchanged)
    train(optimizer, params, 0, 6)
    train(other, unchanged, 0, 6)
    optimizer.param_groups[0][name] = value
    if way == "by a checkpoint":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert optimizer.param_groups[0][name] == value
    train(optimizer, params, 6, 14)
    train(other, unchanged, 6, 14)
    same_as_before = name in SILENT or (name, value) == ("gate", "item")
    assert same_bits(params, unchanged) == same_as_before
    assert all(torch.isfinite(p).all() for p in params)
    if name in ("lr", "scale"):  # a number and a tensor are the same
        judge = case.parameters()
        numbers = case.make(judge)
        train(numbers, judge, 0, 6)
        numbers.param_groups[0][name] = CHANGES[name][0]
        train(numbers, judge, 6, 14)
        assert same_bits(params, judge)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.kind != "wrapped"], ids=ids)
def test_the_plans_come_back_after_loading(case: Case) -> None:
    """What a checked step has found serves the next ones, also after groups were replaced."""
    params = case.parameters()
    optimizer = case.make(params)
    train(optimizer, params, 0, 9)
    checked: list[int] = []
    look = optimizer._checked_step
    optimizer._checked_step = lambda groups: (checked.append(1), look(groups))
    train(optimizer, params, 9, 11)
    before = len(checked)
    train(optimizer, params, 11, 12)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, 12, 14)
    checked.clear()
    train(optimizer, params, 14, 16)
    assert len(checked) == before
    assert (before == 2) == isinstance(optimizer.param_groups[0]["lr"], Tensor)
