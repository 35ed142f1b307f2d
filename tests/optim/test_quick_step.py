"""A step as the one before, on a GPU: it goes through no check, and is the step that the checks lead to."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import flexkern
from flexkern.ops.operator import Operator
from helpers.optimizers import CASES, Case, ids, same_bits, train
from helpers.stand_in import on_a_gpu

status = flexkern.backends()["cpu"]
pytestmark = pytest.mark.skipif(not status.available, reason=status.reason)


@pytest.fixture(autouse=True)
def no_silent_layer() -> None:
    """Of other tests: while there is one, each step is looked at."""
    gc.collect()


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.kind != "wrapped"], ids=ids)
def test_steps_on_a_gpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with flexkern.use_backend("auto"):
        expected = case.parameters()
        train(case.make(expected), expected, 0, 12)
        on_a_gpu(monkeypatch)
        params = case.parameters()
        optimizer = case.make(params)
        train(optimizer, params, 0, 9)
        checked: list[int] = []
        look: Any = optimizer._checked_step
        optimizer._checked_step = lambda groups: (checked.append(1), look(groups))
        train(optimizer, params, 9, 12)
        assert same_bits(params, expected)
        group = optimizer.param_groups[0]
        # No kernel of a GPU takes an alpha in bfloat16, and where lr is a tensor each step is looked at.
        by_checks = isinstance(group["lr"], torch.Tensor) or group["alpha_dtype"] is torch.bfloat16
        assert len(checked) == (3 if by_checks else 0)


def test_a_plan_ends_where_another_backend_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    with flexkern.use_backend("auto"):
        case = next(c for c in CASES.values() if c.kind == "SGD")
        params = case.parameters()
        optimizer = case.make(params)
        train(optimizer, params, 0, 9)
        assert optimizer._step_as_before()
        monkeypatch.setattr(Operator, "serves", lambda *_: False)
        assert not optimizer._step_as_before()
