"""A torch optimizer becomes a metaplastic one in the middle of training, and nothing else happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler as lrs

from flexkern.optim import MetaplasticAdamW, MetaplasticSGD
from helpers.optimizers import make_parameters, same_bits, set_grads

PAIRS: dict[str, tuple[Any, Any]] = {
    "SGD": (torch.optim.SGD, MetaplasticSGD),
    "AdamW": (torch.optim.AdamW, MetaplasticAdamW),
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {}),
    "SGD, momentum": ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "SGD, nesterov": ("SGD", {"momentum": 0.8, "nesterov": True, "maximize": True, "weight_decay": 0.1}),
    "AdamW": ("AdamW", {}),
    "AdamW, amsgrad": ("AdamW", {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
    "AdamW, maximize": ("AdamW", {"maximize": True}),
}
options = pytest.mark.parametrize(("kind", "rule"), OPTIONS.values(), ids=OPTIONS)
kinds = pytest.mark.parametrize("kind", PAIRS)
LR, FIRST, MORE = 0.05, 7, 20
U = 2.0**-24

SCHEDULERS: dict[str, Callable[[Any], list[Any]]] = {
    "none": lambda o: [],
    "StepLR": lambda o: [lrs.StepLR(o, 4, 0.7)],
    "SequentialLR": lambda o: [
        lrs.SequentialLR(o, [lrs.LinearLR(o, 0.5, total_iters=5), lrs.ExponentialLR(o, 0.95)], milestones=[5])
    ],
    "ChainedScheduler": lambda o: [
        lrs.ChainedScheduler([lrs.LinearLR(o, 0.5, total_iters=9), lrs.ExponentialLR(o, 0.95)], o)
    ],
    "two": lambda o: [lrs.LinearLR(o, 0.5, total_iters=9), lrs.ExponentialLR(o, 0.95)],
    "ReduceLROnPlateau": lambda o: [lrs.ReduceLROnPlateau(o, factor=0.9, patience=2)],
    "CosineAnnealingLR": lambda o: [lrs.CosineAnnealingLR(o, 30)],
}


def go(optimizer: Any, params: list[Parameter], schedulers: list[Any], first: int, last: int) -> list[float]:
    """Steps, and returns the learning rates that they had."""
    had = []
    for step in range(first, last):
        had.append(float(optimizer.param_groups[0]["lr"]))
        set_grads(params, step)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step(*([1.0] if isinstance(scheduler, lrs.ReduceLROnPlateau) else []))
    return had


def bound(kind: str, rule: dict[str, Any], params: list[Parameter], largest_grad: float) -> float:
    """How far two float32 optimizers may be apart after MORE steps from one state.

    A step of either rounds w once. SGD rounds its step 14 times, relative to at most
    (1 + mu) / (1 - mu) (|g| + decay |w|), and what is off in a buffer stays in it for 1 / (1 - mu) steps; so
    test_flexibility_one_is_sgd has it. AdamW: a mean rounds 3 times in each step and forgets by beta, so it is
    off by 3 / (1 - beta1) of the largest it was made of; the root of the second one by half of 4 / (1 - beta2),
    or 4 for each step that there was. A ratio of the corrected means is at most 1 / (1 - beta1): the first mean
    sums (1 - beta1) |g| at most t times, and the root of the second is at least |g| sqrt(1 - beta2) or, while
    t < 1 / (1 - beta2), about |g| / sqrt(t). Corrections, division, root, eps, lr, decay and sums are 10 more.
    """
    largest = max(p.abs().max().item() for p in params) + 0.5
    decay = rule.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)
    if kind == "SGD":
        mu = rule.get("momentum", 0.0)
        size = largest_grad + decay * largest
        return 2 * MORE * U * (largest + LR * 14 * size * (1 + mu) / (1 - mu) ** 2)
    beta1, beta2 = rule.get("betas", (0.9, 0.999))
    # Only FIRST + MORE steps feed a mean.
    count1, count2 = (min(1 / (1 - b), FIRST + MORE) for b in (beta1, beta2))
    roundings = 3 * count1 + 2 * count2 + 10
    size = 1 / (1 - beta1) + decay * largest
    return 2 * MORE * U * (largest + LR * roundings * size)


@options
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_it_goes_on_as_if_nothing_had_happened(
    kind: str, rule: dict[str, Any], schedule: Callable[[Any], list[Any]]
) -> None:
    torchs, ours = PAIRS[kind]
    params, judge = make_parameters(), make_parameters()
    first, plain = torchs(params, lr=LR, **rule), torchs(judge, lr=LR, **rule)
    schedulers, others = schedule(first), schedule(plain)
    go(first, params, schedulers, 0, FIRST)
    go(plain, judge, others, 0, FIRST)
    before = copy.deepcopy(first.state_dict())
    optimizer = ours.from_optimizer(first, schedulers=schedulers, scale=20.0, flexibility=1.0)
    assert repr(first.state_dict()) == repr(before)
    had = go(optimizer, params, schedulers, FIRST, FIRST + MORE)
    assert had == go(plain, judge, others, FIRST, FIRST + MORE)
    tolerance = bound(kind, rule, judge, 4.0)  # no normal number of these 35 x 27 is beyond 4
    assert all((p - q).abs().max().item() <= tolerance for p, q in zip(params, judge, strict=True))
    # Without its state it would be somewhere else.
    if rule.get("momentum") or kind == "AdamW":
        lost = make_parameters()
        forgetful = torchs(lost, lr=LR, **rule)
        theirs = schedule(forgetful)
        go(forgetful, lost, theirs, 0, FIRST)
        forgetful.state.clear()
        go(forgetful, lost, theirs, FIRST, FIRST + MORE)
        assert (lost[0] - judge[0]).abs().max().item() > 100 * tolerance


@options
def test_flexible_weights_begin_at_the_conversion(kind: str, rule: dict[str, Any]) -> None:
    torchs, ours = PAIRS[kind]
    params = make_parameters()
    first = torchs(params, lr=LR, **rule)
    go(first, params, [], 0, FIRST)
    start = [p.detach().clone() for p in params]
    optimizer = ours.from_optimizer(first, scale=20.0, seed=3, gate="step")
    go(optimizer, params, [], FIRST, FIRST + 1)
    assert torch.equal(optimizer.state[params[0]]["anchor"], start[0])
    assert optimizer.param_groups[0]["seed"] == 3
    optimizer.consolidate()
    other = ours([Parameter(p.detach().clone()) for p in params], lr=LR, scale=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    others = other.param_groups[0]["params"]
    go(optimizer, params, [], 9, 14)
    go(other, others, [], 9, 14)
    assert same_bits(params, others)


@options
def test_its_state_can_be_saved_at_once(kind: str, rule: dict[str, Any]) -> None:
    torchs, ours = PAIRS[kind]
    params = make_parameters()
    first = torchs(params, lr=LR, **rule)
    go(first, params, [], 0, FIRST)
    optimizer = ours.from_optimizer(first, scale=20.0)
    resumed = [Parameter(p.detach().clone()) for p in params]
    other = ours(resumed, lr=1.0, scale=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(optimizer, params, [], FIRST, FIRST + 5)
    go(other, resumed, [], FIRST, FIRST + 5)
    assert same_bits(params, resumed)


@kinds
def test_groups_names_and_tensors(kind: str) -> None:
    torchs, ours = PAIRS[kind]
    params = make_parameters()
    lr = torch.tensor(0.1)
    names = ["first", "second", "third"]
    groups = [
        {"params": list(zip(names, params, strict=True))[:2], "lr": lr, "weight_decay": 0.5, "mine": "kept"},
        {"params": list(zip(names, params, strict=True))[2:], "lr": 0.25},
    ]
    first = torchs(groups, lr=1.0)
    set_grads(params, 0)
    first.step()
    optimizer = ours.from_optimizer(first, scale=20.0)
    one, two = optimizer.param_groups
    assert [one["param_names"], two["param_names"]] == [names[:2], names[2:]]
    assert one["mine"] == "kept"
    assert (one["weight_decay"], two["lr"]) == (0.5, 0.25)
    assert isinstance(one["lr"], Tensor)
    assert one["lr"] is not lr
    assert one["lr"] == lr
    assert not {"foreach", "fused", "differentiable"} & set(one)
    # Streams come from the names.
    named = ours(list(zip(names, make_parameters(), strict=True)), lr=0.1, scale=20.0)
    set_grads(params, 1)
    set_grads(named.param_groups[0]["params"], 1)
    optimizer.step()
    named.step()
    for p, q in zip(params, named.param_groups[0]["params"], strict=True):
        assert optimizer.state[p]["flexibility"] == named.state[q]["flexibility"]


@pytest.mark.filterwarnings("error")
@kinds
def test_schedulers_do_not_complain(kind: str) -> None:
    torchs, ours = PAIRS[kind]
    params = make_parameters()
    first = torchs(params, lr=LR)
    schedulers = SCHEDULERS["StepLR"](first)
    optimizer = ours.from_optimizer(first, schedulers=schedulers, scale=20.0)
    go(optimizer, params, schedulers, 0, 9)
    assert schedulers[0].optimizer is optimizer
    assert schedulers[0].last_epoch == 9
    other = lrs.StepLR(optimizer, 4, 0.7, last_epoch=8)  # initial_lr was kept
    assert other.base_lrs == [LR]


@kinds
def test_refusals(kind: str) -> None:
    torchs, ours = PAIRS[kind]
    params = make_parameters()
    with pytest.raises(TypeError, match=f"must be a torch.optim.{kind}, got RMSprop.*Metaplastic"):
        ours.from_optimizer(torch.optim.RMSprop(params), scale=1.0)
    first = torchs(params, lr=LR)
    scheduler = lrs.StepLR(first, 4)
    with pytest.raises(ValueError, match="driven by a learning rate scheduler"):
        ours.from_optimizer(first, scale=1.0)
    with pytest.raises(TypeError, match=r"schedulers must be of torch.optim.lr_scheduler, got int"):
        ours.from_optimizer(first, schedulers=[3], scale=1.0)
    with pytest.raises(ValueError, match="another optimizer"):
        ours.from_optimizer(first, schedulers=[lrs.StepLR(torchs(make_parameters(), lr=LR), 4)], scale=1.0)
    assert scheduler.optimizer is first
    with pytest.raises(ValueError, match=r"^scale must be"):
        ours.from_optimizer(first, schedulers=[scheduler], scale=-1.0)
    assert scheduler.optimizer is first
    complex_one = torchs([torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], lr=LR)
    with pytest.raises(TypeError, match="complex64"):
        ours.from_optimizer(complex_one, scale=1.0)


def test_adam_is_not_adamw() -> None:
    params = make_parameters()
    with pytest.raises((TypeError, ValueError), match=r"AdamW|decoupled"):
        MetaplasticAdamW.from_optimizer(torch.optim.Adam(params), scale=1.0)
    # torch's Adam with decoupled_weight_decay is AdamW, but not of its class.
    made = torch.optim.AdamW(params)
    made.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(ValueError, match="decoupled_weight_decay=False"):
        MetaplasticAdamW.from_optimizer(made, scale=1.0)
