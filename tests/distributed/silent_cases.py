"""Networks with silent synapses that several processes train together; each case runs on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flexkern import ops
from flexkern.distributed import alone, rank, world_size
from flexkern.nn import AdaptiveThreshold, SilentLinear
from flexkern.optim import MetaplasticAdamW, MetaplasticSGD, fuse_into_backward

BATCH, LONG, SHORT = 12, 200, 12
THRESHOLDS: dict[str, Any] = {"fixed": 0.02, "adaptive": AdaptiveThreshold(target=0.01, gain=5.0, start=0.5)}
# How many of a batch's rows each of two or four processes has.
SPLITS = {
    "even": {2: (6, 6), 4: (3, 3, 3, 3)},
    "uneven": {2: (9, 3), 4: (1, 6, 2, 3)},
    "one is empty": {2: (12, 0), 4: (5, 0, 7, 0)},
}


def network(seed: int = 4, **options: Any) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        SilentLinear(13, 17, silent=0.6, seed=seed, stream=0, **options),
        nn.ReLU(),
        SilentLinear(17, 9, silent=0.4, seed=seed, stream=1, **options),
        nn.ReLU(),
        nn.Linear(9, 5, dtype=options.get("dtype")),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(BATCH, 13, generator=generator)
    return x, torch.randint(0, 5, (BATCH,), generator=generator)


def rows_of(split: str) -> slice:
    """This process's rows; all without a group."""
    if world_size() == 1:
        return slice(0, BATCH)
    ends = [0, *itertools.accumulate(SPLITS[split][world_size()])]
    return slice(ends[rank()], ends[rank() + 1])


def state(model: nn.Module) -> dict[str, Any]:
    layers = [layer for layer in model.modules() if isinstance(layer, SilentLinear)]
    return {
        "masks": [ops.unpack_mask(layer.silent, layer.in_features) for layer in layers],
        "counts": [layer.silent_count.clone() for layer in layers],
        "thresholds": [layer.threshold.clone() for layer in layers],
        "weights": [p.detach().clone() for p in model.parameters()],
        "conversions": [list(layer.conversions) for layer in layers],
    }


def by_sgd(model: nn.Module) -> Any:
    return MetaplasticSGD(model.parameters(), 0.05, scale=20.0, momentum=0.5)


def by_adamw(model: nn.Module) -> Any:
    return MetaplasticAdamW(model.parameters(), 0.005, scale=20.0)


def train(
    *,
    steps: int = SHORT,
    split: str = "uneven",
    optimizer: Callable[[nn.Module], Any] = by_sgd,
    pieces: int = 1,
    change: Callable[[nn.Module], nn.Module] = lambda model: model,
    fuse: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """State after so many steps; with ``pieces`` each batch comes in so many micro-batches, and with
    ``fuse`` layers step in the backward pass."""
    model = change(network(**options))
    stepping, masks = optimizer(model), []
    if fuse:
        group = dist.group.WORLD if world_size() > 1 else None
        fuse_into_backward(model, stepping, window=pieces, process_group=group)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model
    for step in range(steps):
        x, y = batch(step)
        own = rows_of(split)
        x, y = x[own].to(next(model.parameters()).dtype), y[own]
        stepping.zero_grad()
        for i in range(pieces):
            z, truth = x[i::pieces], y[i::pieces]
            loss = nn.functional.cross_entropy(wrapped(z).float(), truth, reduction="sum") / BATCH
            (loss * world_size()).backward()  # DistributedDataParallel takes the mean over processes
        stepping.step()
        masks.append([layer.silent.clone() for layer in model if isinstance(layer, SilentLinear)])
        if step % 5 == 4:
            stepping.consolidate()
    return state(model) | {"history": masks}


def by_hand(split: str = "uneven", **options: Any) -> dict[str, Any]:
    """Another optimizer, gradients summed by hand, and :meth:`SilentLinear.convert`."""
    model = network(**options)
    stepping = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(SHORT):
        x, y = batch(step)
        own = rows_of(split)
        stepping.zero_grad()
        (nn.functional.cross_entropy(model(x[own]), y[own], reduction="sum") / BATCH).backward()
        if world_size() > 1:
            for p in model.parameters():
                dist.all_reduce(p.grad)
        stepping.step()
        for layer in model:
            if isinstance(layer, SilentLinear):
                layer.convert()
    return state(model)


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


def message(of: Callable[[], Any]) -> str:
    try:
        of()
    except RuntimeError as error:
        return str(error)
    return ""


def other_seeds_fused() -> str:
    return message(partial(train, seed=4 + rank(), fuse=True))


def other_seeds() -> str:
    """Masks and weights are those of the first process, and the field that weights are drawn from is not."""
    return message(partial(train, seed=4 + rank()))


def fused_alone() -> str:
    model = network(fused_step=True)
    return message(lambda: model(batch(0)[0]))


def sharded() -> str:
    """By fully_shard, whose optimizer has parameters that no forward pass sees."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network(threshold=0.02)
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)))
    stepping = by_sgd(model)
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    return message(stepping.step)


def joined() -> str:
    wrapped = nn.parallel.DistributedDataParallel(network())

    def run() -> None:
        with wrapped.join():
            wrapped(batch(0)[0])

    return message(run)


def copied(model: nn.Module) -> nn.Module:
    import copy
    import pickle

    return pickle.loads(pickle.dumps(copy.deepcopy(model)))


def loaded(model: nn.Module) -> nn.Module:
    other = network(seed=11)
    other.load_state_dict(model.state_dict())
    return other


GRID = {
    f"{rule}, {insert}, {threshold}, prune {prune}": partial(
        train, rule=rule, insert=insert, threshold=THRESHOLDS[threshold], prune=prune, eta=0.1
    )
    for rule, insert, threshold, prune in itertools.product(
        ("rate", "hebbian"), ("init", "hebbian"), THRESHOLDS, (0.0, 0.01)
    )
}
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
}
# What is run on four processes too.
ON_FOUR = [
    *(name for name in TRAINED if "split" in name or "adaptive, prune 0.01" in name),
    "by hand, one is empty",
]
REFUSED = {
    "other seeds": other_seeds,
    "other seeds, fused": other_seeds_fused,
    "fused alone": fused_alone,
    "joined": joined,
    "sharded": sharded,
}
CASES: dict[str, Callable[[], Any]] = {**TRAINED, "alone": trained_alone, "halves": in_halves, **REFUSED}
