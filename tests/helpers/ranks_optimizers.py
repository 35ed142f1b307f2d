"""One network, trained by each optimizer in each of the ways that torch has for several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from flexkern import Field, ops
from flexkern.optim import sharded
from flexkern.optim.flexibilities import stream_of_name
from helpers.nets import batches, mlp
from helpers.optimizers import MAKERS
from helpers.ranks import Here, case

__all__ = ["DATA", "ITEM", "LAST", "OPTIONS", "RUNS", "WAYS", "Way", "alone", "learn", "make", "whole"]

ITEM, LAST, LR, SEED = 4, 10, 0.05, 3
DATA = batches(LAST)
OPTIONS: dict[str, dict[str, Any]] = {
    "item": {"scale": 20.0},
    "step": {"scale": 20.0, "gate": "step"},
    "auto": {"scale": "auto"},
    "more": {"scale": 20.0, "weight_decay": 0.1, "nonfinite": "raise"},
    "vectors": {"scale": "auto", "gate": "step", "flexible_vectors": True, "flexibility": "biased_low"},
    "bfloat16": {"scale": 20.0, "gate": "step", "alpha_dtype": torch.bfloat16},
    "tensors": {"scale": 20.0},
}
MORE: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "AdamW": {"amsgrad": True},
    "wrapped": {"momentum": 0.5, "dampening": 0.2},
}


class Way(NamedTuple):
    """How a network is spread.

    apply: makes the network that is trained of a plain one.
    counts: over how many processes.
    shares: how many shares of a batch there are, and which one this process has.
    """

    apply: Callable[[nn.Sequential, Here], nn.Module]
    counts: tuple[int, ...]
    shares: Callable[[Here], tuple[int, int]] = lambda here: (here.count, here.rank)


def data_parallel(model: nn.Sequential, here: Here) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, process_group=here.group)


def fully_sharded(model: nn.Sequential, here: Here) -> nn.Module:
    """Rows: 17 and 5 of them, so that parts differ in size, and of four processes one has nothing."""
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=here.mesh)
    return model


def by_columns(model: nn.Sequential, here: Here) -> nn.Module:
    return distribute_module(model, here.mesh, _columns, _in, _out)


def _columns(name: str, module: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor import distribute_tensor

    for key, p in list(module.named_parameters(recurse=False)):
        placements = [Shard(1) if p.dim() > 1 else Replicate()]
        module.register_parameter(key, nn.Parameter(distribute_tensor(p, mesh, placements)))


def _in(module: nn.Module, inputs: Any, mesh: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return tuple(DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)


def _out(module: nn.Module, output: Any, mesh: Any) -> Any:
    return output.redistribute(placements=[Replicate()]).to_local()


PLAN = {
    "0": ColwiseParallel(use_local_output=False),
    "2": RowwiseParallel(use_local_output=True),
}


def tensor_parallel(model: nn.Sequential, here: Here) -> nn.Module:
    return parallelize_module(model, here.mesh, PLAN)


def both(model: nn.Sequential, here: Here) -> nn.Module:
    """Tensor parallel inside of fully_shard: weights are cut twice."""
    assert here.square is not None
    parallelize_module(model, here.square["tp"], PLAN)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=here.square["dp"])
    return model


def hybrid(model: nn.Sequential, here: Here) -> nn.Module:
    """Parts in two processes, twice."""
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=here.square)
    return model


def _one_share(here: Here) -> tuple[int, int]:
    return 1, 0


WAYS = {
    "DDP": Way(data_parallel, (2, 4)),
    "FSDP2": Way(fully_sharded, (1, 2, 3, 4)),
    "columns": Way(by_columns, (2, 3), _one_share),
    "TP": Way(tensor_parallel, (2, 3, 4), _one_share),
    "FSDP2 and TP": Way(both, (4,), lambda here: (2, here.rank // 2)),
    "HSDP": Way(hybrid, (4,)),
}


def network(option: str) -> nn.Sequential:
    return mlp(dtype=torch.bfloat16 if option == "bfloat16" else torch.float32)


def make(kind: str, option: str, model: nn.Module) -> Any:
    """An optimizer of this model, spread or not."""
    given = dict(OPTIONS[option])
    if option == "more":
        given |= MORE[kind]
    if kind == "wrapped" and option == "more":
        given.pop("weight_decay")
    if (kind, option) == ("AdamW", "bfloat16"):
        given["eps"] = 0.01  # gradients are rounded before they are summed: small ones differ by their size
    if option == "tensors":
        given["flexibility"] = [
            ops.materialize(Field.uniform(9, i, low=0.2, high=0.9), p.shape) if p.dim() > 1 else 1.0
            for i, p in enumerate(model.parameters())
        ]
    return MAKERS[kind](model.named_parameters(), lr=LR, seed=SEED, **given)


def learn(
    model: nn.Module,
    optimizer: Any,
    first: int = 0,
    last: int = LAST,
    shares: tuple[int, int] = (1, 0),
    consolidate: Callable[[], None] | None = None,
) -> None:
    """Steps of a stream whose items have ITEM steps; of each batch this process has its share."""
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        x, y = (part.chunk(shares[0])[shares[1]] for part in DATA[step])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
        optimizer.step()
        if step % ITEM == ITEM - 1:
            (consolidate or optimizer.consolidate)()


def whole(tensor: Any) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def trained(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What there is to compare: exact weights, scales, and what the state says of flexibilities."""
    state = [optimizer.state[p] for p in model.parameters()]
    return {
        "weights": [whole(of.get("master", p)) for of, p in zip(state, model.parameters(), strict=True)],
        "scales": optimizer.scales(),
        "fields": [of["flexibility"] for of in state if isinstance(of["flexibility"], dict)],
    }


def alone(kind: str, option: str) -> dict[str, Any]:
    """In one process."""
    model = network(option)
    optimizer = make(kind, option, model)
    learn(model, optimizer)
    return trained(model, optimizer)


def run(here: Here, way: Way, kind: str, option: str) -> dict[str, Any]:
    model = way.apply(network(option), here)
    optimizer = make(kind, option, model)
    learn(model, optimizer, shares=way.shares(here))
    return trained(model, optimizer)


# Every way, each with another optimizer and option; all of them where there are uneven and empty parts.
RUNS = [
    (way, count, kind, option)
    for way, of_way in WAYS.items()
    for count in of_way.counts
    for i, kind in enumerate(MAKERS)
    for j, option in enumerate(OPTIONS)
    if (way, count) == ("FSDP2", 4) or j == (2 + i - count + len(way)) % len(OPTIONS)
]
for way_, count_, kind_, option_ in RUNS:
    case(f"{way_}, {count_}, {kind_}, {option_}", count_)(
        lambda here, way=way_, kind=kind_, option=option_: run(here, WAYS[way], kind, option)
    )


def drawn(here: Here, way: Way) -> list[tuple[Tensor, Tensor]]:
    """Of each weight the part that is here, of values drawn before it was spread, and of the field itself."""
    model = network("item")
    fields = {name: Field.uniform(SEED, stream_of_name(name)) for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(ops.materialize(fields[name], p.shape))
    found = []
    for name, p in way.apply(model, here).named_parameters():
        part = sharded.here(p.detach())
        field = sharded.field_here(p, fields[name.removeprefix("module.")])
        found.append((part.clone(), field if isinstance(field, Tensor) else ops.materialize(field, part.shape)))
    return found


for way_, of_way_ in WAYS.items():
    for count_ in of_way_.counts:
        case(f"fields, {way_}, {count_}", count_)(lambda here, way=way_: drawn(here, WAYS[way]))
