"""Modules whose state an average writes: what was derived from it before is not used any more."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flexkern.nn import FeatureStatistics, LDAHead, PrototypeClassifier, RidgeHead, SynapseGate

X, LABELS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def gate() -> SynapseGate:
    one = SynapseGate(5, gate="ridge", features=8)
    one.learn(X[LABELS < 2], LABELS[LABELS < 2])
    one.learn(X[LABELS >= 2], LABELS[LABELS >= 2])
    return one


def prototypes() -> PrototypeClassifier:
    one = PrototypeClassifier(5)
    one.add_subspace()
    one.update(X[:, None], LABELS)
    return one


def ridge() -> RidgeHead:
    one = RidgeHead(5, features=8)
    one.update(X, LABELS)
    return one


def lda() -> LDAHead:
    one = LDAHead(5)
    one.update(X, LABELS)
    return one


def statistics() -> FeatureStatistics:
    one = FeatureStatistics(5)
    one.update(X, LABELS)
    return one


CASES: dict[str, tuple[Callable[[], nn.Module], str, Callable[[nn.Module], Tensor]]] = {
    "prototypes": (prototypes, "sums", lambda m: m(X[:, None])),
    "lda": (lda, "sum", lambda m: m(X)),
    "ridge": (ridge, "cross", lambda m: m(X)),
    "statistics": (statistics, "sum", lambda m: m.whiten(X).means),  # type: ignore[operator, union-attr]
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_of_the_sums_as_they_are(name: str) -> None:
    make, buffer, answer = CASES[name]
    one = make()
    before = answer(one)
    values = one.get_buffer(buffer)
    values.mul_(torch.linspace(0.5, 1, values.shape[-1], dtype=values.dtype))
    fresh = make()
    fresh.load_state_dict(copy.deepcopy(one.state_dict()))
    assert not torch.equal(answer(one), before)
    assert torch.equal(answer(one), answer(fresh))


def test_averaged_gates() -> None:
    one = gate()
    average = AveragedModel(one, use_buffers=True)
    for _ in range(3):
        average.update_parameters(one)
    assert torch.equal(average.module(X), one(X))


def test_a_state_of_before_with_bool_flags() -> None:
    one, other = gate(), SynapseGate(5, gate="ridge", features=8)
    old = one.state_dict() | {"ready": one.ready.bool()}
    for assign in (False, True):
        other.load_state_dict(old, assign=assign)
        assert torch.equal(other(X), one(X))
