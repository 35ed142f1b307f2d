"""MetaplasticAdamW against torch.optim.AdamW, alone and inside a backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import Parameter

from flexkern import ops
from flexkern.nn import SilentLinear
from flexkern.optim import MetaplasticAdamW, fuse_into_backward
from helpers.nets import HAS_KERNELS, batches, mask_of, mlp, plain, silent, silent_are_zero
from helpers.optimizers import SHAPES, same_bits, set_grads

LR, STEPS = 0.01, 200
LOW = (torch.bfloat16, torch.float16)
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "no decay": {"weight_decay": 0.0, "betas": (0.8, 0.95), "eps": 1e-4},
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
gates = pytest.mark.parametrize("gate", ["item", "step"])


def start(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [Parameter((0.3 * torch.randn(s, generator=generator)).to(dtype)) for s in SHAPES]


def bound(rule: dict[str, Any], params: list[torch.Tensor], u: float, steps: int = STEPS) -> float:
    """How far two optimizers may be apart after these steps with equal gradients.

    In each step each of the two rounds w once, and its change, at most lr (ratio + decay |w|). A first mean is
    made anew by 3 roundings in each step, of which beta1 is forgotten, so 3 / (1 - beta1) roundings are in it;
    the second mean has 4 in each, at most 4 / (1 - beta2) or 4 for each step that there was, and its root has
    half. Two corrections, two products, division, root, eps, decay, two sums, lr and alpha: 12 more. The ratio
    is at most 3 for these gradients, which the test asserts.
    """
    beta1, beta2 = rule.get("betas", (0.9, 0.999))
    decay = rule.get("weight_decay", 0.01)
    largest = max(p.abs().max().item() for p in params)
    roundings = 3 / (1 - beta1) + min(4 / (1 - beta2), 4 * steps) / 2 + 12
    return 2 * steps * u * (largest + LR * (3 + decay * largest) * roundings)


@pytest.mark.parametrize(
    ("rule", "gate", "as_tensor"),
    [*((rule, gate, False) for rule in RULES.values() for gate in ("item", "step")), ({}, "item", True)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW], ids=str)
def test_flexibility_one_is_adamw(dtype: torch.dtype, as_tensor: bool, gate: str, rule: dict[str, Any]) -> None:
    params = start(dtype)
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    judge = [Parameter(p.detach().to(exact)) for p in params]
    lr: Any = torch.tensor(LR) if as_tensor else LR
    optimizer = MetaplasticAdamW(params, lr, scale=1e5, flexibility=1.0, gate=gate, **rule)
    theirs = torch.optim.AdamW(judge, torch.tensor(LR) if as_tensor else LR, **rule)
    largest = [p.detach().abs() for p in judge]
    for step in range(STEPS):
        before = [p.detach().clone() for p in judge]
        set_grads(params, step)
        for p, q in zip(params, judge, strict=True):
            q.grad = p.grad.to(exact)
        optimizer.step()
        theirs.step()
        if step % 50 == 49:
            optimizer.consolidate()
        largest = [torch.maximum(m, p.detach().abs()) for m, p in zip(largest, judge, strict=True)]
        for p, b in zip(judge, before, strict=True):
            # What the bound says of the ratio.
            assert ((p - b).abs() <= LR * (3 + rule.get("weight_decay", 0.01) * b.abs())).all()
    # In float64 lr, eps and betas may be rounded to float32 by neither.
    u = 2.0**-53 if dtype is torch.float64 else 2.0**-24
    tolerance = bound(rule, largest, u)
    for p, q in zip(params, judge, strict=True):
        got = optimizer.state[p]["master"] if dtype in LOW else p
        assert (got - q).abs().max().item() <= tolerance
        if dtype in LOW:
            assert torch.equal(p, got.to(dtype))
    assert tolerance < 0.01 * (judge[0] - start(exact)[0]).abs().max().item()


@rules
@gates
def test_alpha_scales_step_and_decay_but_not_the_means(gate: str, rule: dict[str, Any]) -> None:
    flexible, free = start(), start()
    options: dict[str, Any] = {"lr": LR, "scale": 30.0, "gate": gate, **rule}
    optimizer = MetaplasticAdamW(flexible, flexibility=0.5, **options)
    judge = MetaplasticAdamW(free, flexibility=1.0, **options)
    anchors = [p.detach().clone() for p in flexible]
    alpha = [torch.ones_like(p) for p in flexible]
    for step in range(24):
        before = [p.detach().clone() for p in flexible]
        with torch.no_grad():  # both step from the same weights
            for p, q in zip(free, flexible, strict=True):
                p.copy_(q)
        if gate == "step" or step % 8 == 0:
            alpha = [
                ops.metaplastic_gate(w, a, 0.5, 30.0) if w.dim() > 1 else torch.ones_like(w)
                for w, a in zip(before, anchors, strict=True)
            ]
        for each, params in ((optimizer, flexible), (judge, free)):
            set_grads(params, step)
            each.step()
        for p, q, w, al in zip(flexible, free, before, alpha, strict=True):
            for name in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(optimizer.state[p][name], judge.state[q][name])
            change = (q - w).double()  # of the free one: rounded once, with half an ulp of q
            expected = w.double() + al.double() * change
            # Three weights round once each; alpha times the change, its product with lr and alpha itself, which
            # the step makes in another way than the gate does: within 16 roundings (see test_optim.py) twice.
            u = 2.0**-24
            tolerance = u * (2 * q.abs() + p.abs() + (2 * 16 + 4) * change.abs())
            assert ((p - expected).abs() <= tolerance).all()
        if step % 8 == 7:
            optimizer.consolidate()
            judge.consolidate()
    assert 0.05 < alpha[0].mean() < 0.8


def test_a_stiff_weight_does_not_decay() -> None:
    p = Parameter(torch.full((3, 3), 0.5))
    optimizer = MetaplasticAdamW([p], 0.1, scale=1e6, flexibility=0.5, weight_decay=1.0)
    set_grads([p], 0)
    optimizer.step()
    optimizer.consolidate()
    held = p.detach().clone()
    for _ in range(5):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p, held)
    assert not torch.equal(p, torch.full((3, 3), 0.5))


def learn(model: nn.Module, optimizer: Any, count: int, items: int = 3) -> None:
    for step, (x, y) in enumerate(batches(count)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if (step + 1) % (count // items) == 0:
            optimizer.consolidate()


needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="needs the compiled kernels")


@needs_kernels
@gates
@pytest.mark.parametrize("rule", [RULES["plain"], RULES["amsgrad"], RULES["maximize"]], ids=str)
def test_fused_into_backward(gate: str, rule: dict[str, Any]) -> None:
    """One step of a fused model is that of the same model which is not, up to the rounding of the gradient."""
    for steps in (1, 3):
        nets = []
        for fused in (False, True):
            model = mlp(plain)
            # eps is large beside the gradient's rounding, so that no rounding decides the sign of a step.
            optimizer = MetaplasticAdamW(model.parameters(), LR, scale=20.0, gate=gate, **{**rule, "eps": 0.1})
            if fused:
                assert fuse_into_backward(model, optimizer) == ["0", "2"]
            learn(model, optimizer, steps, items=1)
            nets.append((model, optimizer))
        for p, q in zip(nets[0][0].parameters(), nets[1][0].parameters(), strict=True):
            first, second = nets[0][1].state[p], nets[1][1].state[q]
            assert set(first) == set(second)
            assert torch.equal(first["step"], second["step"])
            # A gradient sums 12 samples, each a product of errors and activities that are themselves sums of up
            # to 17: 12 + 17 + 17 roundings of the sum of sizes, which is at most 12 * (1/12) * 8 (an activity).
            # The step is at most 1 / eps times as far off as the gradient, and each later gradient moves by
            # less than 64 times how far the weights are apart, lr / eps of which go into the next step.
            u = 2.0**-24
            off = LR / 0.1 * (12 + 17 + 17 + 20) * u * 8
            tolerance = off * sum((1 + LR / 0.1 * 64) ** n for n in range(steps)) + 2 * steps * u
            assert (p - q).abs().max().item() <= tolerance


@needs_kernels
@gates
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_silent_synapses(gate: str, fused: bool) -> None:
    model = mlp(silent(silent=0.5, threshold=0.1))
    before = [mask_of(m).clone() for m in model if isinstance(m, SilentLinear)]
    optimizer = MetaplasticAdamW(model.parameters(), LR, scale=20.0, gate=gate)
    if fused:
        fuse_into_backward(model, optimizer)
    learn(model, optimizer, 12)
    after = [mask_of(m) for m in model if isinstance(m, SilentLinear)]
    assert silent_are_zero(model)
    assert any((b & ~a).any() for a, b in zip(after, before, strict=True))  # some became functional
    assert not any((a & ~b).any() for a, b in zip(after, before, strict=True))
    weight = model[0].weight
    means = optimizer.state[weight]["exp_avg"]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(means).all()
    assert (means[~after[0]] != 0).any()
    assert optimizer.state[weight]["step"] == 12


@needs_kernels
def test_silent_layers_without_silent_synapses_are_plain_ones() -> None:
    ends = []
    for make in (silent(silent=0.0), plain):
        torch.manual_seed(0)
        model = mlp(make)
        if ends:
            model.load_state_dict(ends[0][1], strict=False)
        first = {k: v.clone() for k, v in model.state_dict().items() if "weight" in k or "bias" in k}
        optimizer = MetaplasticAdamW(model.parameters(), LR, scale=20.0, gate="step")
        learn(model, optimizer, 9)
        ends.append(([p.detach() for p in model.parameters()], first))
    assert same_bits(ends[0][0], ends[1][0])


def test_the_effort_of_auto_is_what_a_constant_gradient_does() -> None:
    """``scale="auto"`` measures with steps of lr: Adam's are so for a steady gradient."""
    p = Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = MetaplasticAdamW([p], LR, scale="auto", weight_decay=0.0, eps=0.0)
    for _ in range(16):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.state_dict()  # it was not in vain
    effort = optimizer.param_groups[0]["first_item"][2]
    assert effort == pytest.approx(16 * LR, rel=16 * 2.0**-53)
    # Each of 16 steps is off by at most 12 + 16 roundings (see above), and each weight rounds.
    assert np.abs(p.detach().numpy() + effort).max() <= 16 * 30 * 2.0**-53 * effort
