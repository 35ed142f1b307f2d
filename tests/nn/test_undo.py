"""A block that fails half-way leaves everything as it was."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import nn

from flexkern.nn import (
    ExpertHead,
    FeatureStatistics,
    LDAHead,
    NotLearnedError,
    PrototypeClassifier,
    RidgeHead,
    SynapseGate,
)
from flexkern.nn.undo import Undo


class Thing:
    def __init__(self) -> None:
        self.number, self.names, self.known, self.seen = 1, ["a"], {"x": 1}, {1}
        self.counts = defaultdict(int, a=2)
        self.inner = {"y": 2}


def test_attributes_containers_and_tensors_are_put_back() -> None:
    thing, layer = Thing(), nn.BatchNorm1d(3)
    weight, before = layer.weight, {k: v.clone() for k, v in layer.state_dict().items()}
    names, version = thing.names, layer.bias._version

    def change() -> None:
        thing.number, thing.extra = 2, 3  # type: ignore[attr-defined]
        thing.names.append("b")
        thing.names = ["c"]
        thing.known["z"] = 2
        thing.seen.add(2)
        thing.counts["b"] += 1
        thing.inner.clear()
        with torch.no_grad():
            layer.weight.fill_(7)
        layer.running_mean = torch.full((5,), 9.0, dtype=torch.float64)
        layer.register_buffer("more", torch.ones(2))
        layer.eval()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Undo(thing, layer, containers=[thing.inner], written=[layer]):
        change()
    assert vars(thing) == vars(Thing())
    assert thing.names is names
    assert layer.weight is weight
    assert layer.training
    after = layer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) and after[k].dtype is before[k].dtype for k in before)
    assert layer.bias._version == version  # what was not written is not written again


def test_a_block_that_ends_is_kept() -> None:
    thing = Thing()
    with Undo(thing):
        thing.number = 5
    assert thing.number == 5


def test_gradients_are_on_again() -> None:
    def fail() -> None:
        torch.set_grad_enabled(False)  # as a torch.no_grad() does that an interrupt keeps from ending
        raise MemoryError

    with pytest.raises(MemoryError), Undo():
        fail()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_sums_take_nothing_that_would_spoil_them(wrong: float) -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    spoiled = x.clone()
    spoiled[2, 1] = wrong
    prototypes = PrototypeClassifier(4)
    prototypes.add_subspace()
    for module, learn in (
        (head := RidgeHead(4), head.update),
        (lda := LDAHead(4), lda.update),
        (statistics := FeatureStatistics(4), statistics.update),
        (prototypes, lambda x, y: prototypes.update(x[:, None], y)),
        (experts := ExpertHead(4), lambda x, y: experts.learn(x, x, y)),
        (experts, lambda x, y: experts.learn(torch.zeros(6, 4), x, y)),
        (gate := SynapseGate(4), gate.learn),
    ):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with pytest.raises(ValueError, match=r"(h0|own|features) has infinite or NaN elements"):
            learn(spoiled, y)
        after = module.state_dict()
        assert all(torch.equal(after[k], before[k]) for k in before)


def test_asked_before_learning() -> None:
    x = torch.zeros(2, 4)
    for ask in (
        RidgeHead(4).predict,
        LDAHead(4).predict,
        SynapseGate(4).evidence,
        SynapseGate(4).scores,
        SynapseGate(4),
    ):
        with pytest.raises(NotLearnedError):
            ask(x)
    with pytest.raises(NotLearnedError):
        PrototypeClassifier(4, base=True).predict(x[:, None])
