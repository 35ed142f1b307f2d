"""Schedulers, averages, gradient scalers and compilers of torch with metaplastic optimizers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel

from helpers.nets import batches, mlp
from helpers.optimizers import MAKERS, Case, same_bits, set_grads

STEPS = 9
kinds = pytest.mark.parametrize("kind", MAKERS)


def decaying(optimizer: Any, cls: type = lrs.ExponentialLR) -> Any:
    return cls(optimizer, 0.9)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.5, total_iters=4),
    "ExponentialLR": decaying,
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.5, total_iters=3), decaying(o)], milestones=[3]
    ),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 7),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 6),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.5, total_iters=3), decaying(o)], o),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=4),
}
# What a scheduler writes into the groups.
DRIVEN = {"SGD": ("lr", "momentum"), "wrapped": ("lr", "momentum"), "AdamW": ("lr", "betas")}
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9}, "wrapped": {"momentum": 0.9}, "AdamW": {},
}  # fmt: skip


def test_every_scheduler_of_torch_is_here() -> None:
    public = {name for name in lrs.__all__ if name not in ("LRScheduler",)}
    classes = {name for name in public if inspect.isclass(getattr(lrs, name))}
    assert classes <= set(SCHEDULERS)


def drive(scheduler: Any, step: int) -> None:
    if isinstance(scheduler, lrs.ReduceLROnPlateau):
        scheduler.step(1.0 if step > 1 else 2.0 - step)
    else:
        scheduler.step()


@kinds
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(kind: str, name: str, as_tensor: bool) -> None:
    """The values that it gives to torch's own optimizer, which then are what the steps have."""
    case = Case(kind, {"gate": "step", **OPTIONS[kind]})
    params, by_hand = case.parameters(), case.parameters()
    lr: Any = torch.tensor(0.05) if as_tensor else 0.05
    optimizer, judge = case.make(params, lr=lr), case.make(by_hand)
    torchs = getattr(torch.optim, "SGD" if kind == "wrapped" else kind)(
        case.parameters(), lr=copy.deepcopy(lr), **OPTIONS[kind]
    )
    scheduler, theirs = SCHEDULERS[name](optimizer), SCHEDULERS[name](torchs)
    seen = set()
    for step in range(STEPS):
        for option in DRIVEN[kind]:
            assert optimizer.param_groups[0][option] == torchs.param_groups[0][option]
        value = float(optimizer.param_groups[0]["lr"])
        seen.add(value)
        judge.param_groups[0].update({n: optimizer.param_groups[0][n] for n in DRIVEN[kind]}, lr=value)
        for each, of in ((optimizer, params), (judge, by_hand), (torchs, torchs.param_groups[0]["params"])):
            set_grads(of, step)
            each.step()
        drive(scheduler, step)
        drive(theirs, step)
    assert len(seen) > 1
    assert same_bits(params, by_hand)


@kinds
def test_a_scheduler_and_its_optimizer_resume(kind: str) -> None:
    case = Case(kind, OPTIONS[kind])
    ends = []
    for stop in (None, 4):
        params = case.parameters()
        optimizer = case.make(params)
        scheduler = SCHEDULERS["OneCycleLR"](optimizer)
        for step in range(STEPS):
            if step == stop:
                saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                params = [Parameter(p.detach().clone()) for p in params]
                optimizer = case.make(params)
                scheduler = SCHEDULERS["OneCycleLR"](optimizer)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            set_grads(params, step)
            optimizer.step()
            scheduler.step()
            if step % 4 == 3:
                optimizer.consolidate()
        ends.append(params)
    assert same_bits(*ends)


def learn(model: nn.Module, optimizer: Any, count: int, **around: Any) -> None:
    scaler = around.get("scaler")
    for step, (x, y) in enumerate(batches(count)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        if step % 4 == 3:
            optimizer.consolidate()


@kinds
def test_averaged_model(kind: str) -> None:
    model = mlp()
    optimizer = MAKERS[kind](model.parameters(), lr=0.05, scale=20.0)
    averaged = AveragedModel(model)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(4):
        learn(model, optimizer, 4)
        averaged.update_parameters(model)
        total = [t + p.detach() for t, p in zip(total, model.parameters(), strict=True)]
    for mean, of_sum in zip(averaged.module.parameters(), total, strict=True):
        # The running mean rounds its difference, share and sum in 4 steps each; the sum 4 times, its mean once.
        bound = (3 * 4 + 4 + 1) * 2.0**-24 * 2 * of_sum.abs().max()
        assert (mean - of_sum / 4).abs().max() <= bound
    other = AveragedModel(model)
    assert all(p is not q for p, q in zip(other.parameters(), model.parameters(), strict=True))


@kinds
def test_grad_scaler_on_the_cpu(kind: str) -> None:
    """A power of two as its scale changes no bits; a step of which a gradient overflows is left out."""
    plain, scaled = mlp(), mlp()
    optimizers = [MAKERS[kind](m.parameters(), lr=0.05, scale=20.0) for m in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=100)
    learn(plain, optimizers[0], 9)
    learn(scaled, optimizers[1], 9, scaler=scaler)
    assert same_bits(list(plain.parameters()), list(scaled.parameters()))
    before = [p.detach().clone() for p in scaled.parameters()]
    state = repr(optimizers[1].state_dict())
    x, y = batches(1)[0]
    scaler.scale(nn.functional.cross_entropy(scaled(x), y)).backward()
    next(scaled.parameters()).grad[0, 0] = math.inf
    scaler.step(optimizers[1])
    scaler.update()
    assert scaler.get_scale() == 2.0**5
    assert same_bits(list(scaled.parameters()), before)
    assert repr(optimizers[1].state_dict()) == state


@pytest.mark.slow
@kinds
def test_compiled_model(kind: str) -> None:
    """An eager step of a compiled model; named parameters have the streams of the model's own names."""
    results = []
    for compiled in (False, True):
        model = mlp()
        trained: Any = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = MAKERS[kind](trained.named_parameters(), lr=0.05, scale=20.0)
        learn(trained, optimizer, 9)
        results.append(list(model.parameters()))
    assert same_bits(*results)
