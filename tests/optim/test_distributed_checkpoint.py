"""torch.distributed.checkpoint, in one process: saved and loaded, training goes on to the bit."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)

from helpers.nets import batches, mlp
from helpers.optimizers import CASES, MAKERS, Case, ids, same_bits

ITEM, LAST = 4, 12
# In the first item; at its end, before the next step; in the middle of the second.
STOPS = {"in the first item": 2, "at its end": 4, "in the second": 6}
WHERE = [
    *itertools.product(["item", "step"], [20.0, "auto"], STOPS, [False, True]),
]
DATA = batches(LAST)
MORE: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "wrapped": {"momentum": 0.9},
    "AdamW": {"amsgrad": True},
}


def learn(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        x, y = DATA[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
        optimizer.step()
        if step % ITEM == ITEM - 1:
            optimizer.consolidate()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*single process:UserWarning")  # as no_dist is meant
@pytest.mark.parametrize(
    ("gate", "scale", "stop", "flat"),
    WHERE,
    ids=[f"{g}-{s}-{w}-{'flat' if f else 'nested'}" for g, s, w, f in WHERE],
)
@pytest.mark.parametrize("kind", MAKERS)
def test_saved_and_loaded_it_goes_on_to_the_bit(
    kind: str, gate: str, scale: Any, stop: str, flat: bool, tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    given = {"lr": 0.02, "scale": scale, "gate": gate, "seed": 3, **MORE[kind]}
    model = mlp()
    optimizer = MAKERS[kind](model.parameters(), **given)
    learn(model, optimizer, 0, STOPS[stop])
    saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    learn(model, optimizer, STOPS[stop], LAST)

    resumed = mlp()
    with torch.no_grad():
        for p in resumed.parameters():
            p.mul_(-3.0)
    fresh = MAKERS[kind](resumed.parameters(), **given)
    found = dict(zip(("model", "optimizer"), get_state_dict(resumed, fresh, options=options), strict=True))
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(
        resumed, fresh, model_state_dict=found["model"], optim_state_dict=found["optimizer"], options=options
    )
    learn(resumed, fresh, STOPS[stop], LAST)
    assert same_bits(weights(resumed), weights(model))


OTHER = {
    "SGD, dampening and decay": Case("SGD", {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    "SGD, auto, momentum": Case("SGD", {"scale": "auto", "momentum": 0.9, "dampening": 0.4, "gate": "step"}),
    "AdamW, auto, step": Case("AdamW", {"scale": "auto", "gate": "step", "amsgrad": True}),
    "SGD, bfloat16, item": Case("SGD", {"momentum": 0.9}, torch.bfloat16),
    "SGD, vectors": Case("SGD", {"flexible_vectors": True, "flexibility": 0.4}),
    "SGD, raise": Case("SGD", {"nonfinite": "raise"}),
}
QUERIED = {name: c for name, c in CASES.items() if "anchor" not in c.options} | OTHER


@pytest.mark.parametrize("load", [False, True], ids=["", "weights loaded after it"])
@pytest.mark.parametrize("case", QUERIED.values(), ids=QUERIED)
def test_asking_a_fresh_optimizer_for_its_state_changes_nothing(case: Case, load: bool) -> None:
    """torch takes a step with zeros for it, at a learning rate of 0."""
    results = []
    for asked in (False, True):
        model = mlp(dtype=case.dtype)
        named = Case(case.kind, case.options, case.dtype)
        optimizer = named.make(model.named_parameters() if case.named else model.parameters(), lr=0.02)
        if "lr" in case.options:
            optimizer.param_groups[0]["lr"] = torch.tensor(0.02)
        if asked:
            get_optimizer_state_dict(model, optimizer)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02, rel=2.0**-24)  # a float32 tensor
        if load:
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p * 0.75 + 0.0625)
        learn(model, optimizer, 0, LAST)
        results.append((weights(model), optimizer.scales(), optimizer.state_dict()))
    assert same_bits(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert repr(results[0][2]) == repr(results[1][2])


@pytest.mark.parametrize("case", CASES.values(), ids=ids)
def test_asking_an_optimizer_that_has_trained_changes_nothing(case: Case) -> None:
    if "anchor" in case.options:
        pytest.skip("the anchor is of other weights")
    model = mlp(dtype=case.dtype)
    optimizer = Case(case.kind, case.options, case.dtype).make(model.named_parameters())
    learn(model, optimizer, 0, 6)
    before = copy.deepcopy(weights(model)), repr(optimizer.state_dict())
    optimizer.zero_grad()
    state = get_optimizer_state_dict(model, optimizer)
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    assert same_bits(weights(model), before[0])
    assert repr(optimizer.state_dict()) == before[1]
