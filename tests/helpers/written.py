"""Low-precision weights that were written from outside between two steps, for every operator with a master."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.ops.layers import LayerGate
from flexkern.ops.linear import STEPS as LINEAR_STEPS
from flexkern.ops.linear import linear_step_by_rule
from flexkern.ops.synapse import STEPS as SYNAPSE_STEPS
from flexkern.ops.synapse import synapse_step_by_rule
from helpers.judge import bits, same_bits
from helpers.judge_adamw import Operands, make_operands

__all__ = ["LOW", "STEPPERS", "check_followed", "check_kept"]

LOW = [torch.bfloat16, torch.float16]
SHAPE = (11, 391)  # rows that end inside a vector and a word
Stepper = Callable[[Operands, float], None]


def _silent(like: Tensor) -> Tensor:
    """Which synapses are silent in a pass over a layer."""
    return (torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.2).to(like.device)


def _given(x: Operands, lr: float, rule: str) -> tuple[Any, ...]:
    if rule == "sgd":
        return lr, 20.0, {"momentum_buffer": x.exp_avg}, x.master, "skip", {"momentum": 0.9}, {}
    states = x.states({})
    master = states.pop("master")
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")
    return lr, 20.0, {name: states[name] for name in names}, master, "skip", {}, {}


def _step(rule: str) -> Stepper:
    def run(x: Operands, lr: float) -> None:
        if rule == "sgd":
            ops.gated_sgd_(
                x.weight, x.grad, x.flexibility, lr=lr, momentum=0.9, momentum_buffer=x.exp_avg, master=x.master
            )
        else:
            ops.metaplastic_adamw_(x.weight, x.grad, x.anchor, x.flexibility, lr=lr, scale=20.0, **x.states({}))

    return run


def _synapse(rule: str) -> Stepper:
    def run(x: Operands, lr: float) -> None:
        pre, post = (torch.zeros(n, device=x.weight.device) for n in (SHAPE[1], SHAPE[0]))
        synapse_step_by_rule(
            SYNAPSE_STEPS["synapse_step_" if rule == "sgd" else "synapse_adamw_step_"], x.weight, x.grad,
            LayerGate(x.anchor, x.flexibility, None), ops.pack_mask(_silent(x.weight)), pre, post, None, 0.5,
            _given(x, lr, rule),
        )  # fmt: skip

    return run


def _linear(rule: str) -> Stepper:
    def run(x: Operands, lr: float) -> None:
        batches = x.grad[:3].contiguous(), x.grad[:, :3].t().contiguous()
        linear_step_by_rule(
            LINEAR_STEPS["linear_step_" if rule == "sgd" else "linear_adamw_step_"], x.weight, *batches,
            LayerGate(x.anchor, x.flexibility, None), None, None, "hebbian", 0.0, _given(x, lr, rule),
        )  # fmt: skip

    return run


STEPPERS: dict[str, Stepper] = {
    f"{family}-{rule}": make(rule)
    for family, make in (("step", _step), ("synapse", _synapse), ("linear", _linear))
    for rule in ("sgd", "adamw")
}


def _start(dtype: torch.dtype, device: torch.device, name: str) -> tuple[Operands, Tensor]:
    """Weights that are the roundings of their masters, of which some are written then, and which these are."""
    x = Operands(*(t.to(device, copy=True) for t in make_operands(SHAPE, 21, dtype)))
    if name.startswith("synapse"):
        for t in (x.weight, x.master):
            t[_silent(t)] = 0.0
    assert same_bits(x.weight, x.master.to(dtype))
    chosen = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.05
    chosen[4] = False  # a row that nobody writes to
    written = chosen.to(device) & (x.weight != 0)
    x.weight[written] *= 0.5
    return x, written


def check_kept(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """With lr = 0 the masters of what was written hold that, and all others what they held, to the bit."""
    x, written = _start(dtype, device, name)
    before = Operands(*(t.clone() for t in x))
    STEPPERS[name](x, 0.0)
    assert 100 < int(written.sum()) < x.weight.numel() // 2
    assert torch.equal(bits(x.master)[~written], bits(before.master)[~written])
    assert torch.equal(x.master[written], before.weight[written].float())
    assert same_bits(x.weight, before.weight)


def check_followed(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """The step is that of weights whose masters held what was written."""
    x, written = _start(dtype, device, name)
    expected = Operands(*(t.clone() for t in x))
    expected.master.copy_(torch.where(written, x.weight.float(), x.master))
    STEPPERS[name](x, 0.01)
    STEPPERS[name](expected, 0.01)
    for one, other in zip(x, expected, strict=True):
        assert same_bits(one, other)
