"""A model that changes its dtype, or whose low-precision weights are written, in the middle of training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.optimizers import MAKERS

TINY = 1e-12  # a learning rate whose steps no weight here can hold
kinds = pytest.mark.parametrize("kind", MAKERS)


def made(kind: str) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, MAKERS[kind](model.parameters(), lr=0.05, scale=20.0)


def steps(model: nn.Module, optimizer: Any, count: int, lr: float = 0.05) -> None:
    dtype = next(model.parameters()).dtype
    for group in optimizer.param_groups:
        group["lr"] = lr
    for i in range(count):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(i)).to(dtype)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@kinds
def test_state_follows_the_dtype(kind: str) -> None:
    model, optimizer = made(kind)
    steps(model, optimizer, 3)
    optimizer.consolidate()
    steps(model, optimizer, 1)
    anchor = optimizer.state[model[0].weight]["anchor"].clone()
    model.double()
    steps(model, optimizer, 2)
    optimizer.consolidate()
    steps(model, optimizer, 1)
    state = optimizer.state[model[0].weight]
    assert state["anchor"].dtype is state["alpha"].dtype is torch.float64
    assert torch.equal(state["anchor"], anchor.double())
    assert (state["alpha"] < 1).any()


@kinds
def test_low_precision_weights_that_are_written(kind: str) -> None:
    model, optimizer = made(kind)
    model.bfloat16()
    steps(model, optimizer, 3)
    optimizer.consolidate()
    steps(model, optimizer, 3)
    best: dict[str, Tensor] = {name: value * 0.5 for name, value in copy.deepcopy(model.state_dict()).items()}
    model.load_state_dict(best)
    steps(model, optimizer, 1, TINY)
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[0].weight.data.mul_(2)  # without a word to anyone
    steps(model, optimizer, 1, TINY)
    assert torch.equal(model[0].weight, 2 * best["0.weight"])


@kinds
def test_steps_in_between_in_float32_are_kept(kind: str) -> None:
    model, optimizer = made(kind)
    model.bfloat16()
    steps(model, optimizer, 1)
    model.float()
    start = model[0].weight.detach().clone()
    steps(model, optimizer, 30)
    expected = model[0].weight.detach().bfloat16()
    assert not torch.equal(expected, start.bfloat16())
    model.bfloat16()
    steps(model, optimizer, 1, TINY)
    assert torch.equal(model[0].weight, expected)
