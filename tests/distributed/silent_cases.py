"""Networks with silent synapses that several processes train together; each case runs on all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distributed import silent_sharded
from distributed.silent_networks import (
    BATCH,
    GRID,
    LONG,
    SHORT,
    SPLITS,
    THRESHOLDS,
    batch,
    by_adamw,
    by_hand,
    by_sgd,
    fully_sharded,
    message,
    network,
    state,
    train,
)  # fmt: skip
from flexkern.distributed import alone, rank


def evaluated_by_one() -> dict[str, Any]:
    """The first process evaluates, and also runs a training pass without a step, while the others do not."""
    model = network(threshold=0.02)
    stepping = by_sgd(model)
    x, y = batch(0)
    if rank() == 0:
        model.eval()
        model(x)
        model.train()
        with torch.no_grad():
            model(x)
    nn.functional.cross_entropy(model(x), y).backward()
    stepping.step()
    return state(model)


def trained_alone() -> dict[str, Any]:
    """Each process trains a network of its own, on batches of its own; only the first one has a second step."""
    with alone():
        model = network(threshold=0.02)
        stepping = by_sgd(model)
        for step in range(2 if torch.distributed.is_initialized() and dist.get_rank() == 0 else 1):
            x, y = batch(step)
            stepping.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            stepping.step()
        return state(model)


def in_halves() -> list[dict[str, Any]]:
    """Two groups of two processes, each with a network of its own; and what one process has of its batches."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, place = divmod(rank(), 2)
    found = []
    for group, rows in ((groups[mine], slice(place * 6, place * 6 + 6)), (None, slice(0, BATCH))):
        with alone() if group is None else nullcontext():
            model = network(process_group=group, threshold=0.2)
            stepping = by_sgd(model)
            ddp = nn.parallel.DistributedDataParallel
            wrapped = model if group is None else ddp(model, process_group=group)
            for step in range(SHORT):
                x, y = batch(step + 1000 * mine)
                stepping.zero_grad()
                nn.functional.cross_entropy(wrapped(x[rows]), y[rows]).backward()
                stepping.step()
        found.append(state(model))
    return found


def other_seeds_fused() -> str:
    return message(partial(train, seed=4 + rank(), fuse=True))


def other_seeds() -> str:
    """Masks and weights are those of the first process, and the field that weights are drawn from is not."""
    return message(partial(train, seed=4 + rank()))


def fused_alone() -> str:
    model = network(fused_step=True)
    return message(lambda: model(batch(0)[0]))


def joined() -> str:
    wrapped = nn.parallel.DistributedDataParallel(network())

    def run() -> None:
        with wrapped.join():
            wrapped(batch(0)[0])

    return message(run)


def copied(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(copy.deepcopy(model)))


def loaded(model: nn.Module) -> nn.Module:
    other = network(seed=11)
    other.load_state_dict(model.state_dict())
    return other


TRAINED: dict[str, Callable[[], dict[str, Any]]] = {
    **GRID,
    **{f"split {name}": partial(train, split=name, threshold=0.02) for name in SPLITS},
    "many steps": partial(train, steps=LONG, threshold=THRESHOLDS["adaptive"], prune=0.005),
    "many steps, hebbian": partial(train, steps=LONG, threshold=THRESHOLDS["adaptive"], rule="hebbian"),
    "AdamW": partial(train, optimizer=by_adamw, threshold=0.02),
    "micro-batches": partial(train, pieces=3, threshold=0.02),
    "micro-batches, hebbian": partial(train, pieces=3, threshold=0.02, rule="hebbian"),
    "fused": partial(train, fuse=True, threshold=0.02),
    "fused, hebbian, one is empty": partial(
        train, fuse=True, split="one is empty", threshold=THRESHOLDS["adaptive"], rule="hebbian"
    ),
    "fused, micro-batches": partial(train, fuse=True, pieces=3, threshold=0.02),
    "bfloat16": partial(train, threshold=0.02, dtype=torch.bfloat16),
    "by hand": partial(by_hand, threshold=0.02),
    "by hand, one is empty": partial(by_hand, split="one is empty", threshold=0.02, rule="hebbian"),
    "copied": partial(train, threshold=0.02, change=copied),
    "loaded": partial(train, threshold=0.02, change=loaded),
    "evaluated by one": evaluated_by_one,
    "no_sync": partial(train, pieces=3, syncs=False, threshold=0.02),
    "no_sync, hebbian": partial(train, pieces=3, syncs=False, split="even", threshold=0.02, rule="hebbian"),
    "no_sync, fused": partial(train, pieces=3, syncs=False, fuse=True, threshold=0.02),
    **silent_sharded.TRAINED,
}
# What is run on four processes too.
ON_FOUR = [
    *(name for name in TRAINED if "split" in name or "adaptive, prune 0.01" in name),
    "by hand, one is empty",
    "fully sharded, by hand",
]
REFUSED = {
    "other seeds": other_seeds,
    "other seeds, fused": other_seeds_fused,
    "fused alone": fused_alone,
    "joined": joined,
    **silent_sharded.REFUSED,
}
# Of a mesh of two dimensions, so only on four.
IN_COPIES = {
    "fully sharded, in copies": partial(train, spread=partial(fully_sharded, square=True), threshold=0.02)
}
CASES: dict[str, Callable[[], Any]] = {
    **TRAINED,
    **IN_COPIES,
    "alone": trained_alone,
    "halves": in_halves,
    "saved": silent_sharded.saved,
    **REFUSED,
}
