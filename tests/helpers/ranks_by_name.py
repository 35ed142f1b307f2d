"""Two processes that train one network on the same batches: their weights are those of one to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from helpers.nets import batches, mlp
from helpers.optimizers import KINDS
from helpers.ranks import Here, case

__all__ = ["ITEM", "LAST", "MORE", "OPTIONS", "STOP", "WAYS", "alone", "learn", "one_for_each"]

ITEM, STOP, LAST = 4, 6, 10
DATA = batches(LAST)
OPTIONS: dict[str, dict[str, Any]] = {
    "item": {"scale": 20.0},
    "step": {"scale": 20.0, "gate": "step"},
    "auto": {"scale": "auto"},
}
LR = 0.05
MORE: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.5}, "AdamW": {}}


def learn(model: nn.Module, steps: Callable[[], Any], ends: Callable[[], Any], first: int, last: int) -> None:
    """All processes see the same batch: the mean of their gradients is the gradient, to the bit."""
    for step in range(first, last):
        x, y = DATA[step]
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps()
        if step % ITEM == ITEM - 1:
            ends()


def whole(tensor: Any) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def _found(model: nn.Module, optimizers: list[Any]) -> dict[str, Any]:
    flexibilities = [(tuple(p.shape), o.state[p]["flexibility"]) for o in optimizers for p in o.state]
    return {
        "weights": [whole(p) for p in model.parameters()],
        "scales": [scale for o in optimizers for scale in o.scales()],
        "flexibilities": flexibilities,
    }


def alone(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """One process without any wrapper."""
    model = mlp()
    optimizer = KINDS[kind](model.named_parameters(), lr=LR, seed=3, **MORE[kind], **options)
    learn(model, optimizer.step, optimizer.consolidate, 0, LAST)
    return _found(model, [optimizer])


def data_parallel(kind: str, options: dict[str, Any], here: Here, folder: str) -> dict[str, Any]:
    wrapped = nn.parallel.DistributedDataParallel(mlp(), process_group=here.group)
    optimizer = KINDS[kind](wrapped.named_parameters(), lr=LR, seed=3, **MORE[kind], **options)
    learn(wrapped, optimizer.step, optimizer.consolidate, 0, LAST)
    return _found(wrapped, [optimizer])


def data_parallel_by_model(kind: str, options: dict[str, Any], here: Here, folder: str) -> dict[str, Any]:
    wrapped = nn.parallel.DistributedDataParallel(mlp(), process_group=here.group)
    optimizer = KINDS[kind](wrapped.parameters(), lr=LR, seed=3, model=wrapped, **MORE[kind], **options)
    learn(wrapped, optimizer.step, optimizer.consolidate, 0, LAST)
    return _found(wrapped, [optimizer])


def fully_sharded(kind: str, options: dict[str, Any], here: Here, folder: str) -> dict[str, Any]:
    model = mlp()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=here.mesh)
    optimizer = KINDS[kind](model.named_parameters(), lr=LR, seed=3, **MORE[kind], **options)
    learn(model, optimizer.step, optimizer.consolidate, 0, STOP)
    saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(saved, checkpoint_id=folder, process_group=here.group)
    learn(model, optimizer.step, optimizer.consolidate, STOP, LAST)
    return _found(model, [optimizer])


def zero_redundancy(kind: str, options: dict[str, Any], here: Here, folder: str) -> dict[str, Any]:
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel(model, process_group=here.group)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        KINDS[kind],
        process_group=here.group,
        lr=LR,
        seed=3,
        model=model,
        **MORE[kind],
        **options,
    )
    learn(wrapped, optimizer.step, optimizer.optim.consolidate, 0, LAST)
    return _found(model, [optimizer.optim])


def one_for_each(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """An optimizer for each parameter, which steps as soon as its gradient is there."""
    model = mlp()
    optimizers = [
        KINDS[kind]([(name, p)], lr=LR, seed=3, **MORE[kind], **options) for name, p in model.named_parameters()
    ]
    of = {id(o.param_groups[0]["params"][0]): o for o in optimizers}

    def step(p: torch.Tensor) -> None:
        of[id(p)].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    learn(model, lambda: None, lambda: [o.consolidate() for o in optimizers], 0, LAST)
    return _found(model, optimizers)


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "DDP": data_parallel,
    "DDP, model=": data_parallel_by_model,
    "FSDP2": fully_sharded,
    "ZeRO": zero_redundancy,
}

for way_, function_ in WAYS.items():
    for kind_ in KINDS:
        for name_, options_ in OPTIONS.items():
            key_ = f"{way_}-{kind_}-{name_}"
            case(key_, 2)(
                lambda here, key=key_, function=function_, kind=kind_, options=options_: function(
                    kind, options, here, f"{here.folder}/{key}"
                )
            )
