"""What wrappers of torch.distributed do to an optimizer: flat vectors, a NaN that one process alone sees."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from flexkern import Field, ops
from flexkern.optim import Metaplastic, MetaplasticAdamW, MetaplasticSGD, fuse_into_backward
from helpers.nets import mlp
from helpers.optimizers import KINDS, MAKERS
from helpers.ranks import Here, case
from helpers.ranks_optimizers import DATA, ITEM, LAST, LR, PLAN, learn, whole

__all__ = ["FLATTENED", "FUSED", "NONFINITE"]

# ------------------------------------------------------------------ what one process alone sees

NONFINITE = ("FSDP2", "TP", "ZeRO")


def _refused(step: Callable[[], Any]) -> str:
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def nan_on_one(here: Here, kind: str, way: str, nonfinite: str) -> dict[str, Any]:
    """A gradient has a NaN in its last row, which one process has."""
    weight = torch.arange(35.0).reshape(7, 5) / 35
    grad = torch.ones(7, 5)
    grad[6, 2] = torch.nan
    params: list[Any]
    if way == "ZeRO":
        params = [nn.Parameter(weight.clone()) for _ in range(4)]
        for p in params:
            p.grad = torch.ones(7, 5)
        params[2].grad = grad
        optimizer: Any = ZeroRedundancyOptimizer(
            params, KINDS[kind], process_group=here.group, lr=LR, scale=20.0, nonfinite=nonfinite
        )
    else:
        placements = [Shard(0) if way == "FSDP2" else Shard(1)]
        params = [nn.Parameter(distribute_tensor(weight, here.mesh, placements))]
        params[0].grad = distribute_tensor(grad, here.mesh, placements)
        optimizer = MAKERS[kind](params, lr=LR, scale=20.0, nonfinite=nonfinite, gate="step")
    refused = _refused(optimizer.step)
    return {"refused": refused, "moved": [(whole(p) - weight).abs() for p in params]}


for kind_ in MAKERS:
    for way_ in NONFINITE:
        for nonfinite_ in ("raise", "skip"):
            if kind_ != "wrapped" or way_ != "ZeRO":
                case(f"NaN, {way_}, {kind_}, {nonfinite_}", 3)(
                    lambda here, kind=kind_, way=way_, nonfinite=nonfinite_: nan_on_one(
                        here, kind, way, nonfinite
                    )
                )


@case("anchor differs in one part", 3)
def anchor_differs(here: Here) -> list[str]:
    field = Field.normal(1, 2, std=0.3)
    weight = ops.materialize(field, (7, 5))
    answers = []
    for spoiled in (False, True):
        weight[6, 4] += 0.5 * spoiled
        p = nn.Parameter(distribute_tensor(weight, here.mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.ones(7, 5), here.mesh, [Shard(0)])
        answers.append(_refused(MetaplasticSGD([p], LR, scale=20.0, anchor=field).step))
    return answers


@case("gradients laid out otherwise", 3)
def other_gradients(here: Here) -> dict[str, list[torch.Tensor]]:
    """A gradient that is a sum over processes, and one of which each has all, for a weight that is not so."""
    weight = torch.arange(35.0).reshape(7, 5) / 35
    summand = torch.full((7, 5), 0.5 * (here.rank + 1))
    found: dict[str, list[torch.Tensor]] = {}
    for kind, maker in MAKERS.items():
        found[kind] = []
        for placement, part, of_grad in (
            (Replicate(), summand, Partial()),
            (Shard(0), summand, Partial()),
            (Shard(1), torch.full((7, 5), 3.0), Replicate()),
        ):
            p: Any = nn.Parameter(distribute_tensor(weight.clone(), here.mesh, [placement]))
            optimizer = maker([p], lr=LR, scale=20.0, gate="step")
            for _ in range(2):
                p.grad = DTensor.from_local(part, here.mesh, [of_grad], run_check=False)
                optimizer.step()
            found[kind].append(p.detach().full_tensor())
    return found


@case("refusals of layouts", 2)
def refusals(here: Here) -> dict[str, str]:
    weight = torch.ones(4, 3)
    partial: Any = nn.Parameter(DTensor.from_local(weight, here.mesh, [Partial()], run_check=False))
    sharded: Any = nn.Parameter(distribute_tensor(weight, here.mesh, [Shard(0)]))
    plain = nn.Parameter(weight.clone())
    found = {"Partial": _refused(lambda: MetaplasticSGD([partial], LR, scale=1.0))}
    optimizer = MetaplasticAdamW([sharded, plain], LR, scale=1.0)
    with torch.no_grad():
        sharded.grad, plain.grad = None, distribute_tensor(weight, here.mesh, [Shard(0)])
    found["sharded gradient"] = _refused(optimizer.step)
    return found


@case("mixed", 2)
def mixed(here: Here) -> list[torch.Tensor]:
    """One layer is sharded and the other is not."""
    model = mlp()
    fully_shard(model[0], mesh=here.mesh)
    optimizer = MetaplasticSGD(model.named_parameters(), LR, scale="auto", momentum=0.9, seed=3)
    learn(model, optimizer)
    return list(map(whole, model.parameters()))


# ------------------------------------------------------------------ flat vectors


def _flat(here: Here, views: bool, **more: Any) -> Any:
    return FullyShardedDataParallel(
        mlp(), process_group=here.group, device_id=torch.device("cpu"), use_orig_params=views, **more
    )


def flattened_before(here: Here, kind: str, views: bool) -> dict[str, Any]:
    model = _flat(here, views)
    return {"refused": _refused(lambda: MAKERS[kind](model.parameters(), lr=LR, scale=20.0))}


def flattened_after(here: Here, kind: str, views: bool) -> dict[str, Any]:
    """It is wrapped when the optimizer has taken some steps, or none."""
    answers = {}
    for steps in (0, 3):
        model = mlp()
        optimizer = MAKERS[kind](model.parameters(), lr=LR, scale=20.0)
        learn(model, optimizer, 0, steps)
        wrapped = FullyShardedDataParallel(
            model, process_group=here.group, device_id=torch.device("cpu"), use_orig_params=views
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            refused = _refused(lambda o=optimizer, w=wrapped: learn(w, o, 3, 5))  # type: ignore[misc]
        answers[f"after {steps}"] = refused + " ".join(
            str(w.message) for w in caught if "no gradient" in str(w.message)
        )
    return answers


FLATTENED = [(kind, views) for kind in MAKERS for views in (False, True)]
for kind_, views_ in FLATTENED:
    case(f"FSDP1, {kind_}, {views_}", 2)(
        lambda here, kind=kind_, views=views_: (
            flattened_before(here, kind, views) | flattened_after(here, kind, views)
        )
    )


@case("FSDP1 that does not shard", 2)
def not_sharded(here: Here) -> list[torch.Tensor]:
    model = _flat(here, True, sharding_strategy=ShardingStrategy.NO_SHARD)
    named = [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in model.named_parameters()]
    optimizer = MetaplasticSGD(named, LR, scale=20.0, seed=3)
    learn(model, optimizer)
    return [p.detach().clone() for p in model.parameters()]


@case("wrapped after the optimizer was made", 2)
def too_late(here: Here) -> dict[str, int]:
    """The parameters that it has are not those of the model any more."""
    counts = {}
    for kind, maker in MAKERS.items():
        model = mlp()
        optimizer = maker(model.parameters(), lr=LR, scale=20.0)
        fully_shard(model, mesh=here.mesh)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learn(model, optimizer, 0, 3)
        counts[kind] = sum("no gradient at all" in str(w.message) for w in caught)
    return counts


# ------------------------------------------------------------------ steps inside of backward


def _fused_then_wrapped(model: Any, optimizer: Any, wrap: Callable[[Any], Any]) -> str:
    fuse_into_backward(model, optimizer)
    wrapped = wrap(model)
    return _refused(lambda: learn(wrapped, optimizer, 0, 2))


def _wrapped_then_fused(model: Any, optimizer: Any, wrap: Callable[[Any], Any]) -> str:
    wrapped = wrap(model)
    if wrap.__name__ in ("fsdp2", "tp"):
        optimizer = MetaplasticSGD(model.parameters(), LR, scale=20.0)
    return _refused(lambda: fuse_into_backward(wrapped, optimizer))


def _part_of_wrapped(model: Any, optimizer: Any, wrap: Callable[[Any], Any]) -> str:
    """Only the inner module is shown to fuse_into_backward."""
    wrapped = wrap(model)

    def fuse() -> None:
        fuse_into_backward(model, optimizer)
        learn(wrapped, optimizer, 0, 2)

    return _refused(fuse)


FUSED: dict[str, Callable[[Any, Any, Any], str]] = {
    "fused, then wrapped": _fused_then_wrapped,
    "wrapped, then fused": _wrapped_then_fused,
    "fused inside": _part_of_wrapped,
}


def fused(here: Here, order: str) -> dict[str, Any]:
    def ddp(model: Any) -> Any:
        return nn.parallel.DistributedDataParallel(model, process_group=here.group)

    def fsdp1(model: Any) -> Any:
        return FullyShardedDataParallel(
            model, process_group=here.group, device_id=torch.device("cpu"), use_orig_params=True
        )

    def fsdp2(model: Any) -> Any:
        return fully_shard(model, mesh=here.mesh)

    def tp(model: Any) -> Any:
        return parallelize_module(model, here.mesh, PLAN)

    answers = {}
    for wrap in (ddp, fsdp1, fsdp2, tp):
        model = mlp()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = MetaplasticSGD(model.parameters(), LR, scale=20.0)
        answers[wrap.__name__] = FUSED[order](model, optimizer, wrap)
        if wrap is ddp:
            answers["unchanged"] = all(
                torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)
            )
    return answers


for order_ in FUSED:
    case(order_, 2)(lambda here, order=order_: fused(here, order))


# ------------------------------------------------------------------ around a step


@case("clipped and accumulated", 2)
def clipped(here: Here) -> dict[str, list[torch.Tensor]]:
    """clip_grad_norm_ with DTensors; two batches to a step, the first without synchronisation."""
    found = {}
    for way in ("alone", "DDP", "FSDP2"):
        model: Any = mlp()
        if way == "DDP":
            model = nn.parallel.DistributedDataParallel(model, process_group=here.group)
        elif way == "FSDP2":
            fully_shard(model, mesh=here.mesh)
        optimizer = MetaplasticSGD(model.named_parameters(), LR, scale=20.0, seed=3, momentum=0.9)
        shares, mine = (1, 0) if way == "alone" else (here.count, here.rank)
        for step in range(0, LAST, 2):
            optimizer.zero_grad()
            for i in (0, 1):
                x, y = (part.chunk(shares)[mine] for part in DATA[step + i])
                if way == "FSDP2":
                    model.set_requires_gradient_sync(i == 1)
                with model.no_sync() if way == "DDP" and i == 0 else contextlib.nullcontext():
                    (nn.functional.cross_entropy(model(x), y) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if step % ITEM == ITEM - 2:
                optimizer.consolidate()
        found[way] = list(map(whole, model.parameters()))
    return found


@case("a scaler", 2)
def scaled(here: Here) -> dict[str, Any]:
    """Both scalers of gradients: an infinite gradient on one process skips the step on all."""
    found = {}
    for name, scaler in (
        ("sharded", ShardedGradScaler(device="cpu", process_group=here.group, init_scale=4.0)),
        ("plain", torch.amp.GradScaler("cpu", init_scale=4.0)),
    ):
        model = mlp()
        fully_shard(model, mesh=here.mesh)
        optimizer = MetaplasticSGD(model.named_parameters(), LR, scale=20.0, seed=3)
        for step in range(4):
            x, y = DATA[step]
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            if step == 2 and here.rank == 1:
                grad: Any = model[0].weight.grad
                grad._local_tensor[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        found[name] = list(map(whole, model.parameters()))
    return found


@case("made on the meta device", 2)
def from_meta(here: Here) -> list[torch.Tensor]:
    values = mlp().state_dict()
    with torch.device("meta"):
        model = mlp()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=here.mesh)
    optimizer = MetaplasticSGD(model.named_parameters(), LR, scale="auto", momentum=0.9, seed=3)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(distribute_tensor(values[name], here.mesh, p.placements))
    learn(model, optimizer)
    return list(map(whole, model.parameters()))


@case("exchanged by a framework", 2)
def exchanged(here: Here) -> dict[str, Any]:
    """accelerate shards a model that has an optimizer, and puts the new parameters into its lists."""
    found = {}
    for kind, maker in MAKERS.items():
        model = mlp()
        optimizer = maker(model.parameters(), lr=LR, scale="auto", seed=3)
        listed = optimizer.param_groups[0]["params"]
        listed[:] = [torch.empty(1) for _ in listed]  # so that the whole parameters can go
        fully_shard(model, mesh=here.mesh)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        learn(model, optimizer)
        fields = [optimizer.state[p]["flexibility"] for p in model.parameters()]
        found[kind] = {"weights": list(map(whole, model.parameters())), "fields": fields}
    return found


@case("taken over from torch", 2)
def taken_over(here: Here) -> dict[str, list[torch.Tensor]]:
    """from_optimizer, in the middle of sharded training."""
    found = {}
    for kind, plain, given in (
        (MetaplasticSGD, torch.optim.SGD, {"momentum": 0.9}),
        (MetaplasticAdamW, torch.optim.AdamW, {}),
    ):
        for way in ("alone", "FSDP2"):
            model = mlp()
            if way == "FSDP2":
                fully_shard(model, mesh=here.mesh)
            before = plain(model.named_parameters(), lr=0.01, **given)
            learn(model, before, 0, 3)
            optimizer = kind.from_optimizer(before, scale=20.0, seed=3)
            learn(model, optimizer, 3, LAST)
            found[f"{kind.__name__}, {way}"] = list(map(whole, model.parameters()))
    return found


@case("other optimizers in the wrapper", 2)
def others(here: Here) -> dict[str, list[torch.Tensor]]:
    found = {}
    for way in ("alone", "FSDP2"):
        for name in ("RMSprop", "Adagrad"):
            model = mlp()
            if way == "FSDP2":
                fully_shard(model, mesh=here.mesh)
            plain = getattr(torch.optim, name)(model.named_parameters(), lr=0.01)
            optimizer = Metaplastic(plain, scale="auto", seed=3)
            learn(model, optimizer)
            found[f"{name}, {way}"] = list(map(whole, model.parameters()))
    return found
