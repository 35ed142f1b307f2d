"""Steps that are taken otherwise, on several processes: inside of backward, with what all have for them, under
DDP; and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.nets import mlp
from helpers.optimizers import MAKERS
from helpers.ranks import Here, case
from helpers.ranks_optimizers import DATA, ITEM, LAST, LR, make, trained

__all__ = ["GATHERED", "WAYS_OF_BATCHES"]

DDP = nn.parallel.DistributedDataParallel
# How many of a batch's 12 rows each process has, and in how many backward passes a step comes.
WAYS_OF_BATCHES: dict[str, tuple[dict[int, tuple[int, ...]], int]] = {
    "even": ({1: (12,), 2: (6, 6), 3: (4, 4, 4), 4: (3, 3, 3, 3)}, 1),
    "uneven": ({2: (9, 3), 4: (1, 6, 2, 3)}, 1),
    "windows": ({2: (6, 6)}, 2),
    "one is empty": ({2: (12, 0)}, 1),
}
GATHERED = [
    (kind, option, way, count)
    for i, (kind, option) in enumerate(
        [("SGD", "auto"), ("SGD", "more"), ("AdamW", "step"), ("SGD", "bfloat16")]
    )
    for way, (splits, _) in WAYS_OF_BATCHES.items()
    for count in splits
    if i == 0 or (i + count + len(way)) % 2
]


def train(model: Any, optimizer: Any, rows: slice, window: int) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(LAST):
        x, y = (part[rows] for part in DATA[step])
        if step % window == 0:
            optimizer.zero_grad()
        waits = step % window < window - 1
        with model.no_sync() if waits else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), y, reduction="sum") / max(len(y), 1)
            (loss / window).backward()
        if not waits:
            optimizer.step()
        if step % ITEM == ITEM - 1:
            optimizer.consolidate()


def gathered(here: Here, kind: str, option: str, way: str) -> dict[str, Any]:
    splits, window = WAYS_OF_BATCHES[way]
    first = sum(splits[here.count][: here.rank])
    rows = slice(first, first + splits[here.count][here.rank])
    found: dict[str, Any] = {}
    for fused in (False, True):
        model = mlp(dtype=torch.bfloat16 if option == "bfloat16" else torch.float32)
        if here.rank:  # all get what the first one has
            nn.init.ones_(model[0].weight)
        optimizer = make(kind, option, model)
        if fused:
            names = fuse_into_backward(model, optimizer, window=window, process_group=here.group)
            assert names == ["0", "2"]
        wrapped = DDP(model, process_group=here.group)
        train(wrapped, optimizer, rows, window)
        found["fused" if fused else "plain"] = trained(model, optimizer)
        if fused:
            assert all(isinstance(model[i].weight.grad, SteppedGrad) for i in (0, 2))
            assert here.count == 1 or len(wrapped._module_parameters) == 2  # no bucket for a weight
    return found


for kind_, option_, way_, count_ in GATHERED:
    case(f"gathered, {kind_}, {option_}, {way_}, {count_}", count_)(
        lambda here, kind=kind_, option=option_, way=way_: gathered(here, kind, option, way)
    )


def _said(of: Callable[[], Any]) -> str:
    try:
        of()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@case("gathered, refused", 2)
def refused(here: Here) -> dict[str, str]:
    optimizers = []

    def made(**options: Any) -> Any:
        model = mlp()
        optimizer = MetaplasticSGD(model.named_parameters(), LR, scale=20.0)
        fuse_into_backward(model, optimizer, process_group=here.group)
        optimizers.append(optimizer)  # layers have weak references
        return DDP(model, process_group=here.group, **options)

    def unfused() -> None:
        wrapped = made()
        wrapped.module[2].fused_step = False
        wrapped(DATA[0][0])

    def other_layers() -> None:
        model = mlp()
        mine = model if here.rank else model[2]
        fuse_into_backward(model, MetaplasticSGD(mine.parameters(), LR, scale=20.0), process_group=here.group)

    def inside() -> None:
        model = mlp()
        optimizer = MetaplasticSGD(model.named_parameters(), LR, scale=20.0)
        fuse_into_backward(model, optimizer, process_group=here.group)
        DDP(nn.Sequential(model), process_group=here.group)(DATA[0][0])

    def no_group() -> None:
        model = mlp()
        fuse_into_backward(model, MetaplasticSGD(model.parameters(), LR, scale=20.0), process_group="gloo")  # type: ignore[arg-type]

    wrapped = made()
    wrapped._join_config = wrapped._join_config._replace(enable=True)
    return {
        "find_unused": _said(lambda: made(find_unused_parameters=True)(DATA[0][0])),
        "join": _said(lambda: wrapped(DATA[0][0])),
        "unfused": _said(unfused),
        "other layers": _said(other_layers),
        "inside": _said(inside),
        "no group": _said(no_group),
    }


@case("compiled, sharded", 2)
def compiled(here: Here) -> dict[str, list[Any]]:
    """For each optimizer: trained as it is, and by a compiled step."""
    found: dict[str, list[Any]] = {}
    for kind in MAKERS:
        for of in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
            model = mlp()
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=here.mesh)
            optimizer = make(kind, "auto", model)
            step = of(optimizer.step)
            for number in range(ITEM + 2):
                x, y = (part.chunk(2)[here.rank] for part in DATA[number])
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                step()
                if number == ITEM - 1:
                    optimizer.consolidate()
            found.setdefault(kind, []).append(trained(model, optimizer))
    return found
