"""A network with silent synapses, and how several processes, or one, train it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flexkern import ops
from flexkern.distributed import rank, world_size
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
        "weights": [whole(p) for p in model.parameters()],
        "conversions": [list(layer.conversions) for layer in layers],
    }


def whole(p: Tensor) -> Tensor:
    of_all: Any = p.detach()
    return (of_all.full_tensor() if hasattr(of_all, "full_tensor") else of_all).clone()


def by_sgd(model: nn.Module) -> Any:
    return MetaplasticSGD(model.parameters(), 0.05, scale=20.0, momentum=0.5)


def by_adamw(model: nn.Module) -> Any:
    return MetaplasticAdamW(model.parameters(), 0.005, scale=20.0)


def in_copies(model: nn.Module, stepping: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    """The model that is called, and the optimizer."""
    optimizer = stepping(model)
    return nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model, optimizer


def fully_sharded(
    model: nn.Module, stepping: Callable[[nn.Module], Any], layers: bool = True, square: bool = False
) -> tuple[nn.Module, Any]:
    """17 and 9 rows: parts differ in size, and of four processes one has none of the second layer."""
    if world_size() > 1:
        shape = (2, 2) if square else (world_size(),)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
        for module in [*model, model] if layers else [model]:
            if list(module.parameters()):
                fully_shard(module, mesh=mesh)
    return model, stepping(model)


def train(
    *,
    steps: int = SHORT,
    split: str = "uneven",
    optimizer: Callable[[nn.Module], Any] = by_sgd,
    pieces: int = 1,
    syncs: bool = True,
    change: Callable[[nn.Module], nn.Module] = lambda model: model,
    spread: Callable[..., tuple[nn.Module, Any]] = in_copies,
    fuse: bool = False,
    resumes: Callable[..., tuple[nn.Module, nn.Module, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """State after so many steps.

    Args:
        steps: how many.
        pieces: each batch comes in so many micro-batches.
        syncs: whether gradients are reduced after each of them, and not after the last one only.
        spread: what processes make of the model.
        fuse: whether layers step in the backward pass.
        resumes: what takes the place of the model and its optimizer in the middle.
    """
    model = change(network(**options))

    def made(model: nn.Module) -> Any:
        stepping = optimizer(model)
        if fuse:
            group = dist.group.WORLD if world_size() > 1 else None
            fuse_into_backward(model, stepping, window=pieces, process_group=group)
        return stepping

    (wrapped, stepping), masks = spread(model, made), []
    for step in range(steps):
        if resumes is not None and step == steps // 2:
            model, wrapped, stepping = resumes(model, stepping, spread, made, options)
        x, y = batch(step)
        own = rows_of(split)
        x, y = x[own].to(next(model.parameters()).dtype), y[own]
        stepping.zero_grad()
        for i in range(pieces):
            z, truth = x[i::pieces], y[i::pieces]
            with synchronised(wrapped, syncs or i == pieces - 1):
                loss = nn.functional.cross_entropy(wrapped(z).float(), truth, reduction="sum") / BATCH
                (loss * world_size()).backward()  # wrappers take the mean over processes
        stepping.step()
        masks.append([layer.silent.clone() for layer in model if isinstance(layer, SilentLinear)])
        if step % 5 == 4:
            stepping.consolidate()
    return state(model) | {"history": masks}


def synchronised(model: Any, does: bool) -> Any:
    """Whether gradients are reduced in the block, as each wrapper has it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext() if does else model.no_sync()
    if world_size() > 1:
        model.set_requires_gradient_sync(does)
    return nullcontext()


def by_hand(split: str = "uneven", spread: Any = None, **options: Any) -> dict[str, Any]:
    """Another optimizer, gradients summed by hand where nothing else does, and :meth:`SilentLinear.convert`."""
    model, conversions = network(**options), []
    if spread is not None:
        spread(model, by_sgd)
    stepping = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(SHORT):
        x, y = batch(step)
        own = rows_of(split)
        stepping.zero_grad()
        (nn.functional.cross_entropy(model(x[own]), y[own], reduction="sum") / BATCH).backward()
        for p in model.parameters():
            if spread is not None:
                p.grad.mul_(world_size())  # it was the mean
            elif world_size() > 1:
                dist.all_reduce(p.grad)
        stepping.step()
        conversions += [layer.convert() for layer in model if isinstance(layer, SilentLinear)]
    return state(model) | {"history": [list(of_one) for of_one in conversions]}


def message(of: Callable[[], Any]) -> str:
    try:
        of()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


GRID = {
    f"{rule}, {insert}, {threshold}, prune {prune}": partial(
        train, rule=rule, insert=insert, threshold=THRESHOLDS[threshold], prune=prune, eta=0.1
    )
    for rule, insert, threshold, prune in itertools.product(
        ("rate", "hebbian"), ("init", "hebbian"), THRESHOLDS, (0.0, 0.01)
    )
}
