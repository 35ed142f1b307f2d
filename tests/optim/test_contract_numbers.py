"""Numbers that an optimizer is given: of every kind, and out of every range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from helpers.optimizers import KINDS, MAKERS, Case, same_bits, through_file, train

kinds = pytest.mark.parametrize("kind", MAKERS)
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.0625, "scale": 16.0, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125},
    "AdamW": {"lr": 0.0625, "scale": 16.0, "eps": 0.25, "weight_decay": 0.125, "betas": (0.5, 0.75)},
}
NUMBERS = [(kind, name) for kind, options in OPTIONS.items() for name in options]
TYPES = [np.float32, np.float64, np.float16, np.int64]


def of(number: Any, kind: Any) -> Any:
    if isinstance(number, tuple):
        return tuple(of(n, kind) for n in number)
    return kind(number)


@pytest.mark.parametrize("numpy", TYPES)
@pytest.mark.parametrize("later", [False, True], ids=["at construction", "later"])
@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=str)
def test_numbers_of_numpy(kind: str, name: str, later: bool, numpy: Any) -> None:
    """The same steps as with Python's, and plain data in the state. All are exact in float16."""
    value = of(OPTIONS[kind][name], numpy)
    plain = of(value, float)  # int64 makes 0 of most
    if name == "scale" and plain == 0:
        pytest.skip("0 is no scale")
    case = Case(kind, {"gate": "step", **OPTIONS[kind]})
    params, judge = case.parameters(), case.parameters()
    optimizer = case.make(params, **({} if later else {name: value}))
    other = case.make(judge, **{name: plain})
    if later:
        optimizer.param_groups[0][name] = value
    train(optimizer, params, 0, 6)
    train(other, judge, 0, 6)
    assert same_bits(params, judge)
    saved = through_file(optimizer.state_dict())["param_groups"][0][name]
    assert saved == plain
    numbers = saved if isinstance(saved, tuple) else (saved,)
    # What is set later is looked at when it is used and when it is saved, and stays an integer then.
    assert all(type(v) is (int if later and numpy is np.int64 else float) for v in numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["nesterov", "maximize", "amsgrad", "flexible_vectors"])
@pytest.mark.parametrize("bad", [1, 0.0, "yes", None, torch.tensor(True)], ids=repr)
def test_switches_are_bools(kind: str, name: str, bad: Any) -> None:
    if name not in Case(kind, {}).make().param_groups[0]:
        pytest.skip("not of this optimizer")
    with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
        Case(kind, {}).make(**{name: bad})


TOO_LARGE = [1e39, 1e300, 10**400, math.inf, math.nan, -1.0]
NO_NUMBERS = [True, "0.1", None, 1j, [0.1], {"lr": 0.1}]


@pytest.mark.parametrize("bad", [*TOO_LARGE, *NO_NUMBERS], ids=lambda b: repr(b)[:12])
@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=str)
def test_numbers_out_of_range_are_refused_by_name(kind: str, name: str, bad: Any) -> None:
    if name == "dampening" and bad == -1.0:
        pytest.skip("torch has a dampening of either sign")
    given = (bad, 0.5) if name == "betas" else bad
    case = Case(kind, OPTIONS[kind])
    error = ValueError if bad in TOO_LARGE[:3] else (TypeError, ValueError)
    with pytest.raises(error, match=f"^{name} must be"):
        case.make(**{name: given})
    # And of one group, after which the optimizer is as it was.
    optimizer = case.make()
    before = repr(optimizer.state_dict())
    with pytest.raises(error, match=f"^{name} must be"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))], name: given})
    assert repr(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    "bad", [(0.9,), (0.9, 0.99, 0.999), 0.9, "ab", None, (0.9, 1.0), (1.0, 0.9), (-0.1, 0.9)]
)
def test_betas_are_a_pair(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^betas must be a pair"):
        Case("AdamW", {}).make(betas=bad)


@kinds
@pytest.mark.parametrize(
    "bad", [True, "uniform ", math.nan, 1.0000001, -1e-9, 10**400, 1j], ids=lambda b: repr(b)[:12]
)
def test_flexibilities_out_of_range(kind: str, bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^flexibility(\[0\])? must be"):
        Case(kind, {}).make(flexibility=bad)


@kinds
@pytest.mark.parametrize("bad", [True, -1, 2**64, 1.0, "0", None], ids=repr)
def test_seeds_out_of_range(kind: str, bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^seed must be"):
        Case(kind, {}).make(seed=bad)


@kinds
def test_seeds_and_flexibilities_of_numpy(kind: str) -> None:
    case = Case(kind, {})
    params, judge = case.parameters(), case.parameters()
    train(case.make(params, seed=np.int64(7)), params, 0, 6)
    train(case.make(judge), judge, 0, 6)
    assert same_bits(params, judge)
    optimizer = case.make(flexibility=np.float32(0.5), seed=np.uint64(2**64 - 1))
    train(optimizer, optimizer.param_groups[0]["params"], 0, 6)
    saved = through_file(optimizer.state_dict())["param_groups"][0]
    assert (type(saved["flexibility"]), saved["flexibility"]) == (float, 0.5)
    assert (type(saved["seed"]), saved["seed"]) == (int, 2**64 - 1)
    for values in ([np.float32(0.5)] * 3, np.float64(0.5)):
        optimizer.param_groups[0]["flexibility"] = 0.25
        optimizer.param_groups[0]["flexibility"] = values
        train(optimizer, optimizer.param_groups[0]["params"], 6, 9)
        through_file(optimizer.state_dict())
