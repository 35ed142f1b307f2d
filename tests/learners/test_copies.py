"""A learner that is copied in the middle of a stream goes on as the original, and apart from it."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flexkern.learners import METHODS, MLP_METHODS, ArtsyViT, MetaplasticMLP, make_learner
from flexkern.learners.vit.training import Recipe
from helpers import tiny_vit
from helpers.mlp_blobs import CLOSED_FORM, QUICK, blobs

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda learner: pickle.loads(pickle.dumps(learner))}


def saved(learner: Any) -> Any:
    content = io.BytesIO()
    torch.save(learner, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


def in_a_thread(learner: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(copy.deepcopy(learner)))
    thread.start()
    thread.join()
    return found[0]


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


class StoppedError(Exception):
    pass


def stop(_: Any) -> None:
    raise StoppedError


def check_in_the_middle(learner: Any, stream: Any, trained: bool = True) -> None:
    """Copies of all kinds, made after an item's first epoch of two, end it to the bits of the original."""
    learner.learn(stream[0], epochs=1)
    if trained:
        with pytest.raises(StoppedError):
            learner.learn(stream[1], epochs=2, progress=stop)
    x, before = stream[0].test_inputs, state(learner)
    others = [copied(learner) for copied in (*COPIES.values(), saved, in_a_thread)]
    for other in others:
        assert torch.equal(other.predict(x), learner.predict(x))
        other.learn(stream[1], epochs=2)
        assert same(state(learner), before)
    learner.learn(stream[1], epochs=2)
    for other in others:
        assert same(state(other), state(learner))
        assert torch.equal(other.logits(x), learner.logits(x))


@pytest.mark.parametrize("name", MLP_METHODS)
def test_in_the_middle_of_an_item(name: str) -> None:
    stream = blobs(2, per_class=20)
    learner = MLP_METHODS[name](stream.input_shape, stream.classes, widths=(12, 8), **QUICK.get(name, {}))
    check_in_the_middle(learner, stream, trained=name not in CLOSED_FORM)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_in_the_middle_of_a_task(name: str) -> None:
    options: dict[str, Any] = {"features": 50} if name == "ranpac" else {}
    learner = make_learner(name, tiny_vit.backbone(), batch_size=32, **options)
    check_in_the_middle(learner, tiny_vit.stream(), trained=name not in ("ranpac", "simplecil", "lda"))
