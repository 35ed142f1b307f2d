"""What some processes saved by torch.distributed.checkpoint, another number of them loads and goes on with."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from helpers.optimizers import KINDS, MAKERS
from helpers.ranks import GROUPS, Here, case
from helpers.ranks_optimizers import LAST, WAYS, learn, make, network, whole

__all__ = ["LOADS", "OPTION", "STOPS"]

STOPS = {"SGD": 2, "AdamW": 6, "wrapped": 6}  # in the first item, while a scale is measured; in the second
OPTION = {"SGD": "auto", "AdamW": "bfloat16", "wrapped": "more"}
# From each number to each other one, with one optimizer after the other; from and to two with all of them.
LOADS = [
    (kind, before, after)
    for i, kind in enumerate(MAKERS)
    for before, after in itertools.product(GROUPS, GROUPS)
    if before != after and (2 in (before, after) or (before + after) % 3 == i)
]


def _flat(before: int) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=before > 2)


def _by_rows(kind: str, here: Here) -> tuple[Any, Any]:
    model = WAYS["FSDP2"].apply(network(OPTION[kind]), here)
    return model, make(kind, OPTION[kind], model)


def _spread(kind: str, here: Here) -> tuple[Any, Any]:
    """By rows; four of them twice, with tensor parallelism inside; one alone is not spread at all."""
    model: Any = network(OPTION[kind])
    if here.count == 4:
        model = WAYS["FSDP2 and TP"].apply(model, here)
    elif here.count > 1:
        model = WAYS["FSDP2"].apply(model, here)
    return model, make(kind, OPTION[kind], model)


def _exact(model: Any, optimizer: Any) -> list[Tensor]:
    return [whole(optimizer.state[p].get("master", p)) for p in model.parameters()]


def save(here: Here, kind: str) -> list[Tensor]:
    """All processes see the same batches, so that only their number differs."""
    model, optimizer = _spread(kind, here)
    learn(model, optimizer, 0, STOPS[kind])
    saved = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_flat(here.count)),
    }
    dcp.save(saved, checkpoint_id=f"{here.folder}/{kind}-{here.count}", process_group=here.group)
    learn(model, optimizer, STOPS[kind], LAST)
    return _exact(model, optimizer)


def load(here: Here, kind: str, before: int) -> list[Tensor]:
    model, optimizer = _spread(kind, here)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-3.0)
    found = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_flat(before)),
    }
    dcp.load(found, checkpoint_id=f"{here.folder}/{kind}-{before}", process_group=here.group)
    set_model_state_dict(model, found["model"])
    set_optimizer_state_dict(model, optimizer, found["optimizer"], options=_flat(before))
    learn(model, optimizer, STOPS[kind], LAST)
    return _exact(model, optimizer)


for kind_ in MAKERS:
    for count_ in GROUPS:
        case(f"saved, {kind_}, {count_}", count_)(lambda here, kind=kind_: save(here, kind))
for kind_, before_, after_ in LOADS:
    case(f"loaded, {kind_}, from {before_} to {after_}", after_)(
        lambda here, kind=kind_, before=before_: load(here, kind, before)
    )


def _full(here: Here, kind: str) -> list[list[Tensor]]:
    """The whole state on each process, as for one without torch.distributed; from it and back. (torch itself
    cannot distribute a whole tensor to parts that were cut twice and differ in size.)"""
    whole_state = StateDictOptions(full_state_dict=True)
    model, optimizer = _by_rows(kind, here)
    learn(model, optimizer, 0, STOPS[kind])
    weights = get_model_state_dict(model, options=whole_state)
    # Tensors that are not sharded are the optimizer's own.
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=whole_state))
    learn(model, optimizer, STOPS[kind], LAST)

    back, again = _by_rows(kind, here)
    set_model_state_dict(back, copy.deepcopy(weights), options=whole_state)  # torch writes to what it is given
    set_optimizer_state_dict(back, again, copy.deepcopy(state), options=whole_state)
    learn(back, again, STOPS[kind], LAST)

    alone = network(OPTION[kind])
    lonely = make(kind, OPTION[kind], alone)
    set_model_state_dict(alone, weights, options=whole_state)
    set_optimizer_state_dict(alone, lonely, state, options=whole_state)
    learn(alone, lonely, STOPS[kind], LAST)
    return [_exact(*one) for one in ((model, optimizer), (back, again), (alone, lonely))]


for kind_ in MAKERS:
    case(f"the whole state, {kind_}", 4)(lambda here, kind=kind_: _full(here, kind))


def _own(here: Here, kind: str) -> list[list[Tensor]]:
    """The optimizer's own state_dict, which has DTensors: into another sharding, and into a plain network."""
    model, optimizer = _spread(kind, here)
    learn(model, optimizer, 0, STOPS[kind])
    saved = copy.deepcopy(optimizer.state_dict())
    values = [whole(p) for p in model.parameters()]
    learn(model, optimizer, STOPS[kind], LAST)
    found = [_exact(model, optimizer)]
    for way in ("FSDP2", "TP", ""):
        other: Any = network(OPTION[kind])
        with torch.no_grad():
            for p, value in zip(other.parameters(), values, strict=True):
                p.copy_(value)
        if way:
            other = WAYS[way].apply(other, here)
        loaded = make(kind, OPTION[kind], other)
        loaded.load_state_dict(saved)
        learn(other, loaded, STOPS[kind], LAST)
        found.append(_exact(other, loaded))
    return found


for kind_ in KINDS:
    case(f"its own state, {kind_}", 2)(lambda here, kind=kind_: _own(here, kind))
