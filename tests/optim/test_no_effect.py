"""An optimizer that can only have been the plain one says so, once, and says what to do."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from flexkern.optim import MetaplasticSGD
from helpers.children import run_python
from helpers.optimizers import KINDS

kinds = pytest.mark.parametrize("kind", KINDS)
WITHOUT = "without consolidate"


def optimizer_of_one(kind: str, **options: Any) -> Any:
    p = Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    return KINDS[kind]([p], lr=1e-5, **{"scale": 1.0, **options})


def messages(caught: list[Any]) -> list[str]:
    gc.collect()
    return [str(w.message) for w in caught]


@kinds
@pytest.mark.parametrize("options", [{}, {"scale": "auto"}, {"scale": "auto", "gate": "step"}], ids=str)
def test_a_thousand_steps_warn_once(kind: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = optimizer_of_one(kind, **options)
        for _ in range(999):
            optimizer.step()
        assert not messages(caught)
        for _ in range(50 if options else 1100):
            optimizer.step()
        del optimizer
        found = messages(caught)
    assert len(found) == 1
    assert WITHOUT in found[0]
    assert found[0].startswith(f"{KINDS[kind].__name__} has taken 1000 steps")  # type: ignore[attr-defined]
    assert "optimizer.consolidate()" in found[0]


@kinds
def test_an_optimizer_that_goes_away_warns_once(kind: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = optimizer_of_one(kind)
        for _ in range(200):
            optimizer.step()
        assert not messages(caught)
        del optimizer
        found = messages(caught)
    assert len(found) == 1
    assert "took 200 steps and is gone without consolidate()" in found[0]


SILENT: dict[str, dict[str, Any]] = {
    "step gate": {"gate": "step"},
    "f = 1": {"flexibility": 1.0},
    "f = 1, step gate": {"flexibility": 1, "gate": "step", "scale": "auto"},
}


@kinds
@pytest.mark.parametrize("options", SILENT.values(), ids=SILENT)
def test_nothing_is_said_where_consolidate_is_not_needed(kind: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = optimizer_of_one(kind, **options)
        for _ in range(1100):
            optimizer.step()
        del optimizer
        assert not messages(caught)


@kinds
@pytest.mark.parametrize("done", ["consolidate", "state_dict", "pickle", "few steps", "loaded", "copied"])
def test_nothing_is_said_where_the_items_end_or_the_state_was_taken(kind: str, done: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = optimizer_of_one(kind)
        if done in ("loaded", "copied"):  # of an optimizer that is in its second item
            other = optimizer_of_one(kind)
            other.step()
            other.consolidate()
            if done == "loaded":
                optimizer.load_state_dict(other.state_dict())
            else:
                optimizer = copy.deepcopy(other)
        for _ in range(9 if done == "few steps" else 200):
            optimizer.step()
        if done in ("consolidate", "state_dict"):
            getattr(optimizer, done)()
        elif done == "pickle":
            torch.save(optimizer, "/dev/null")
        optimizer = other = None
        assert not messages(caught)


def test_a_copy_in_its_first_item_speaks_for_itself() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = optimizer_of_one("SGD")
        for _ in range(200):
            first.step()
        second = copy.deepcopy(first)
        first.consolidate()
        del first
        assert not messages(caught)
        for _ in range(200):
            second.step()
        del second
        assert len(messages(caught)) == 1


def test_an_optimizer_without_flexible_parameters() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p = Parameter(torch.ones(4))
        p.grad = torch.ones(4)
        optimizer = MetaplasticSGD([p], 1e-5, scale=1.0)
        for _ in range(1100):
            optimizer.step()
        del optimizer
        found = messages(caught)
    assert len(found) == 1
    assert "no flexible parameter" in found[0]
    assert "flexible_vectors=True" in found[0]
    assert "fully_shard" in found[0]


TRAIN = """
import torch
from flexkern.optim import MetaplasticSGD
p = torch.nn.Parameter(torch.ones(2, 2))
p.grad = torch.ones(2, 2)
optimizer = MetaplasticSGD([p], 1e-5, scale=1.0)
for _ in range(200):
    optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "optimizer.consolidate()", "optimizer.state_dict()"])
def test_at_the_end_of_a_program(end: str) -> None:
    child = run_python(TRAIN + end)
    assert child.returncode == 0, child.stderr
    assert child.stderr.count(WITHOUT) == (end == "")
    assert child.stderr.count("UserWarning") == (end == "")
