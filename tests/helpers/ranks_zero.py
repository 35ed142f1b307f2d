"""ZeroRedundancyOptimizer, which gives each process an optimizer of its share of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from flexkern import Field
from helpers.nets import mlp
from helpers.optimizers import KINDS, MAKERS
from helpers.ranks import GROUPS, Here, case
from helpers.ranks_optimizers import LAST, LR, learn

__all__ = ["GOES_ON", "PARTITIONED", "zero_alone"]

ZERO: dict[str, dict[str, Any]] = {
    "positions": {"scale": 20.0},
    "model=": {"scale": 20.0, "gate": "step"},
    "auto": {"scale": "auto"},
    "Field": {"scale": 20.0, "flexibility": Field.uniform(5, 7)},
}
STOP = 6  # in the middle of the second item


def _wrapped(params: Any, **options: Any) -> Any:
    return MAKERS["wrapped"](params, **options)


def zero_alone(kind: str, option: str) -> dict[str, Any]:
    model = mlp()
    model_too = {"model": model} if option == "model=" else {}
    optimizer = MAKERS[kind](model.parameters(), lr=LR, seed=3, **model_too, **ZERO[option])
    learn(model, optimizer)
    return {
        "weights": [p.detach() for p in model.parameters()],
        "scales": optimizer.scales(),
        "fields": [optimizer.state[p]["flexibility"] for p in model.parameters()],
    }


def zero(here: Here, kind: str, option: str) -> dict[str, Any]:
    """Trains, saves in the middle, and goes on; also in a second optimizer, from what was saved."""
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel(model, process_group=here.group)

    def make() -> Any:
        model_too = {"model": model} if option == "model=" else {}
        constructor: Any = _wrapped if kind == "wrapped" else KINDS[kind]
        return ZeroRedundancyOptimizer(
            model.parameters(),
            constructor,
            process_group=here.group,
            lr=LR,
            seed=3,
            **model_too,
            **ZERO[option],
        )

    optimizer = make()
    shares = (here.count, here.rank)
    learn(wrapped, optimizer, 0, STOP, shares, optimizer.optim.consolidate)
    optimizer.consolidate_state_dict(0)
    if here.rank == 0:
        saved = optimizer.state_dict(), model.state_dict()
        torch.save(saved, f"{here.folder}/zero-{kind}-{option}-{here.count}.pt")
    learn(wrapped, optimizer, STOP, LAST, shares, optimizer.optim.consolidate)
    state = optimizer.optim.state
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "scales": optimizer.optim.scales(),
        "fields": {i: state[p]["flexibility"] for i, p in enumerate(model.parameters()) if p in state},
    }


def zero_goes_on(here: Here, kind: str, option: str, before: int) -> list[torch.Tensor]:
    """From what another number of processes saved."""
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel(model, process_group=here.group)
    model_too = {"model": model} if option == "model=" else {}
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), KINDS[kind], process_group=here.group, lr=LR, seed=3, **model_too, **ZERO[option]
    )
    saved, weights = torch.load(f"{here.folder}/zero-{kind}-{option}-{before}.pt", weights_only=False)
    model.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    learn(wrapped, optimizer, STOP, LAST, (here.count, here.rank), optimizer.optim.consolidate)
    return [p.detach().clone() for p in model.parameters()]


PARTITIONED = [
    (count, kind, option)
    for count in GROUPS
    for kind in MAKERS
    for option in ZERO
    if option == "auto" or (kind, count) == ("SGD", 3)
]
GOES_ON = [("SGD", 1, 3), ("AdamW", 4, 2), ("SGD", 2, 1), ("AdamW", 3, 4)]
for count_, kind_, option_ in PARTITIONED:
    case(f"ZeRO, {count_}, {kind_}, {option_}", count_)(
        lambda here, kind=kind_, option=option_: zero(here, kind, option)
    )
for kind_, before_, after_ in GOES_ON:
    case(f"ZeRO from {before_} to {after_}, {kind_}", after_)(
        lambda here, kind=kind_, before=before_: zero_goes_on(here, kind, "auto", before)
    )
