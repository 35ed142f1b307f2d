"""Copies of a model together with its optimizer: each finds its own, and neither moves the other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flexkern.learners import MetaplasticMLP
from flexkern.nn import SilentLinear
from flexkern.optim import fuse_into_backward
from flexkern.streams import Experience
from helpers.nets import HAS_KERNELS, Make, batches, mlp, plain, silent
from helpers.optimizers import KINDS, same_bits

pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="needs the compiled kernels")

DATA = batches(16)


def by_torch(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "torch.save": by_torch,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def learn(model: nn.Module, optimizer: Any, first: int, last: int, window: int = 1) -> None:
    for step in range(first, last):
        x, y = DATA[step]
        optimizer.zero_grad()
        for part_x, part_y in zip(x.chunk(window), y.chunk(window), strict=True):
            (nn.functional.cross_entropy(model(part_x), part_y) / window).backward()
        optimizer.step()
        if step % 4 == 3:
            optimizer.consolidate()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


MAKES: dict[str, Make] = {"plain": plain, "silent": silent(silent=0.4, threshold=0.02)}


@ways
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_model_with_its_optimizer(
    kind: str, make: Make, window: int, order: str, way: Callable[[Any], Any]
) -> None:
    model = mlp(make)
    optimizer = KINDS[kind](model.parameters(), lr=0.05, scale=20.0)
    fuse_into_backward(model, optimizer, window=window)
    learn(model, optimizer, 0, 6, window)
    if order == "model first":
        other, others = way((model, optimizer))
    else:
        others, other = way((optimizer, model))
    assert {id(p) for p in others.param_groups[0]["params"]} == {id(p) for p in other.parameters()}
    start = weights(model)
    learn(other, others, 6, 12, window)
    assert same_bits(weights(model), start)  # the copy moves itself only
    moved = weights(other)
    assert not torch.equal(moved[0], start[0])  # a fused weight
    learn(model, optimizer, 6, 12, window)
    assert same_bits(weights(other), moved)
    assert same_bits(weights(model), moved)
    for layer, twin in zip(model, other, strict=True):
        if isinstance(layer, SilentLinear):
            assert torch.equal(layer.silent, twin.silent)


@ways
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_copy(kind: str, way: Callable[[Any], Any]) -> None:
    model = mlp()
    optimizer = KINDS[kind](model.parameters(), lr=0.05, scale="auto")
    fuse_into_backward(model, optimizer)
    learn(model, optimizer, 0, 3)  # in the first item: the scale is not measured yet
    other, others = way(way((model, optimizer)))
    learn(other, others, 3, 10)
    learn(model, optimizer, 3, 10)
    assert same_bits(weights(other), weights(model))
    assert others.scales() == optimizer.scales()


def test_a_layer_that_was_unfused_stays_so_in_a_copy() -> None:
    model = mlp()
    optimizer = KINDS["SGD"](model.parameters(), lr=0.05, scale=20.0)
    fuse_into_backward(model, optimizer)
    model[0].fused_step = False
    other, others = copy.deepcopy((model, optimizer))
    assert [other[0].fused_step, other[2].fused_step] == [False, True]
    learn(other, others, 0, 6)
    learn(model, optimizer, 0, 6)
    assert same_bits(weights(other), weights(model))


@ways
def test_a_copy_of_the_model_alone(way: Callable[[Any], Any]) -> None:
    """It answers; to train it needs an optimizer of its own, and says so."""
    model = mlp()
    optimizer = KINDS["SGD"](model.parameters(), lr=0.05, scale=20.0)
    fuse_into_backward(model, optimizer)
    learn(model, optimizer, 0, 1)
    alone = way(model)
    x, y = DATA[0]
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(alone(x), expected)
    assert torch.equal(alone.eval()(x), expected)
    with pytest.raises(RuntimeError, match="fuse_into_backward"):
        nn.functional.cross_entropy(alone.train()(x), y).backward()
    new = KINDS["SGD"](alone.parameters(), lr=0.05, scale=20.0)
    fuse_into_backward(alone, new)
    learn(alone, new, 1, 3)
    learn(model, optimizer, 1, 3)
    # Both are in their first item, in which all synapses move freely, wherever their anchors are.
    assert same_bits(weights(alone), weights(model))


@ways
def test_a_fused_learner(way: Callable[[Any], Any]) -> None:
    def item(number: int) -> Experience:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(40, 6, generator=generator)
        labels = torch.randint(3, (40,), generator=generator)
        return Experience(str(number), number, inputs, labels, inputs[:4], labels[:4])

    learner = MetaplasticMLP((6,), 3, widths=(7, 5), scale=20.0, lr=0.1, batch_size=8, fused_step=True)
    learner.learn(item(0))
    other = way(learner)
    x = item(9).train_inputs
    before = learner.logits(x)
    assert torch.equal(other.logits(x), before)
    other.learn(item(1))
    assert torch.equal(learner.logits(x), before)
    assert not torch.equal(other.logits(x), before)
    learner.learn(item(1))
    assert torch.equal(other.logits(x), learner.logits(x))
