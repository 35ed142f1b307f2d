"""Networks with silent synapses that fully_shard spreads over processes, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from distributed.silent_networks import (
    BATCH,
    GRID,
    THRESHOLDS,
    batch,
    by_adamw,
    by_hand,
    by_sgd,
    fully_sharded,
    message,
    network,
    rows_of,
    state,
    train,
)  # fmt: skip
from flexkern.distributed import alone, world_size
from flexkern.nn import SilentLinear
from flexkern.optim import MetaplasticSGD
from helpers import groups


def resumed(
    model: nn.Module, stepping: Any, spread: Any, made: Any, options: dict[str, Any], full: bool = False
) -> tuple[nn.Module, nn.Module, Any]:
    """Another model with another optimizer, which were given the state of these: parts, or the whole."""
    how = StateDictOptions(full_state_dict=full)
    weights = get_model_state_dict(model, options=how)
    ours = copy.deepcopy(get_optimizer_state_dict(model, stepping, options=how))
    other = network(**{**options, "seed": 11})
    wrapped, again = spread(other, made)
    set_model_state_dict(other, copy.deepcopy(weights), options=how)
    set_optimizer_state_dict(other, again, ours, options=how)
    return other, wrapped, again


def saved() -> Path:
    """Where there is what a process alone is to go on from, after half of the steps."""

    def save(model: nn.Module, stepping: Any, *others: Any) -> Any:
        found = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, stepping),
        }
        dcp.save(found, checkpoint_id=groups.FOLDER / "silent")
        return resumed(model, stepping, *others)

    train(threshold=0.02, spread=fully_sharded, resumes=save)
    return groups.FOLDER / "silent"


def went_on(folder: Path) -> dict[str, Any]:
    """From :func:`saved`, in one process."""

    def load(_: nn.Module, __: Any, spread: Any, made: Any, options: dict[str, Any]) -> Any:
        model = network(**{**options, "seed": 11})
        wrapped, stepping = spread(model, made)
        found = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, stepping),
        }
        dcp.load(found, checkpoint_id=folder)
        set_model_state_dict(model, found["model"])
        set_optimizer_state_dict(model, stepping, found["optimizer"])
        return model, wrapped, stepping

    return train(threshold=0.02, resumes=load)


def written_by_hand() -> dict[str, Any]:
    """Weights are written where synapses are silent, which makes them functional; and a network's state that
    knows of no mask is loaded."""
    model = network(threshold=0.02)
    _, stepping = fully_sharded(model, by_sgd)
    plain: dict[str, Any] = {}
    for name, p in model.named_parameters():
        plain[name] = p.detach() + 0.01  # also where synapses are silent
    model.load_state_dict(plain, strict=False)
    for step in range(4):
        x, y = batch(step)
        own = rows_of("even")
        stepping.zero_grad()
        nn.functional.cross_entropy(model(x[own]), y[own]).backward()
        if step == 2:
            with torch.no_grad():
                model[0].weight.fill_(0.25)
        stepping.step()
    return state(model)


def cut_by_columns() -> str:
    layer, mesh = SilentLinear(8, 6), init_device_mesh("cpu", (world_size(),))
    fully_shard(layer, shard_placement_fn=lambda p: Shard(p.dim() - 1), mesh=mesh)
    return message(partial(by_sgd, layer))


def tensor_parallel(optimizer: Callable[[nn.Module], Any]) -> str:
    """Of torch's own optimizers only the forward pass can tell."""
    plan: dict[str, Any] = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    model = parallelize_module(network(), init_device_mesh("cpu", (world_size(),)), plan)
    model.eval()
    with torch.no_grad():
        assert model(batch(0)[0]).shape == (BATCH, 5)
    model.train()

    def run() -> None:
        optimizer(model)
        model(batch(0)[0])

    return message(run)


def sharded_alone() -> str:
    model = network(threshold=0.02)
    _, stepping = fully_sharded(model, by_sgd)
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    with alone():
        return message(stepping.step)


_sharded = partial(train, spread=fully_sharded, threshold=0.02)
TRAINED: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        f"fully sharded, {name}": partial(of, spread=fully_sharded)
        for name, of in GRID.items()
        if "adaptive, prune 0.01" in name
    },
    "fully sharded, many steps": partial(_sharded, steps=60, threshold=THRESHOLDS["adaptive"], prune=0.005),
    "fully sharded as one": partial(_sharded, spread=partial(fully_sharded, layers=False)),
    "fully sharded, one is empty": partial(_sharded, split="one is empty", rule="hebbian"),
    "fully sharded, AdamW": partial(_sharded, optimizer=by_adamw),
    "fully sharded, scale": partial(
        _sharded, optimizer=lambda model: MetaplasticSGD(model.parameters(), 0.05, gate="step"), steps=20
    ),
    "fully sharded, bfloat16": partial(_sharded, dtype=torch.bfloat16),
    "fully sharded, no_sync": partial(_sharded, pieces=3, syncs=False, rule="hebbian"),
    "fully sharded, by hand": partial(by_hand, spread=fully_sharded, threshold=0.02, prune=0.01),
    "fully sharded, resumed": partial(_sharded, resumes=resumed),
    "fully sharded, resumed from the whole": partial(_sharded, resumes=partial(resumed, full=True)),
    "fully sharded, written by hand": written_by_hand,
}
REFUSED: dict[str, Callable[[], str]] = {
    "by columns": cut_by_columns,
    "tensor parallel": partial(tensor_parallel, by_sgd),
    "tensor parallel, torch's": partial(tensor_parallel, lambda m: torch.optim.SGD(m.parameters(), 0.05)),
    "sharded, alone": sharded_alone,
}
