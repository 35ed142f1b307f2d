"""A learner that is copied in the middle of a stream goes on as the original, and apart from it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flexkern.learners import ArtsyViT, MetaplasticMLP
from flexkern.learners.vit.training import Recipe
from helpers import tiny_vit
from helpers.mlp_blobs import blobs

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda learner: pickle.loads(pickle.dumps(learner))}
copies = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def state(learner: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in learner._modules().state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("fused_step", [False, True])
@copies
def test_metaplastic_mlp(copied: Callable[[Any], Any], fused_step: bool) -> None:
    stream = blobs(2, per_class=20)
    learner = MetaplasticMLP(
        stream.input_shape, stream.classes, widths=(12, 8), lr=0.05, batch_size=16, fused_step=fused_step
    )
    learner.learn(stream[0], epochs=1)
    other, before = copied(learner), state(learner)
    other.learn(stream[1], epochs=1)
    assert same(state(learner), before)
    learner.learn(stream[1], epochs=1)
    assert same(state(learner), state(other))
    assert not same(state(learner), before)


@copies
def test_artsy_vit(copied: Callable[[Any], Any]) -> None:
    stream = tiny_vit.stream()
    learner = ArtsyViT(tiny_vit.backbone(), rank=2, recipe=Recipe(epochs=1, batch_size=16), seed=3)
    short = [
        dataclasses.replace(e, train_inputs=e.train_inputs[:16], train_labels=e.train_labels[:16])
        for e in stream
    ]
    learner.learn(short[0])
    other, before = copied(learner), state(learner)
    other.learn(short[1])
    assert same(state(learner), before)
    learner.learn(short[1])
    assert same(state(learner), state(other))
    assert torch.equal(learner.predict(stream[0].test_inputs), other.predict(stream[0].test_inputs))
