"""What an evaluation has beside accuracies: the same, answer by answer, from :meth:`logits` and by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexkern.features import BackboneFeatures
from flexkern.learners import METHODS, MLP_METHODS, MetaplasticMLP, make_learner
from flexkern.learners.judged import Judged
from flexkern.metrics import Evaluation
from flexkern.streams import Experience, Stream


def experience(number: int, labels: Sequence[int], tested: Sequence[int]) -> Experience:
    rng = np.random.default_rng(number)

    def images(n: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, 256, (n, 3, 16, 16), dtype=np.uint8))

    y, z = torch.tensor(labels), torch.tensor(tested)
    return Experience(f"e{number}", number, images(len(y)), y, images(len(z)), z)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    pytest.importorskip("transformers")
    from flexkern.backbones import random_backbone

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return random_backbone(
            "small", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=16,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stream() -> Stream:
    first = experience(0, [0, 1, 2] * 4, [0, 1, 2, 2, 1, 0, 0])
    second = experience(1, [3, 4] * 6, [4, 3, 3])
    return Stream([first, second], 5)


def by_hand(learner: Any, e: Experience, top: int) -> tuple[float, float, float]:
    task = {"task": torch.full_like(e.test_labels, e.number)} if learner.family == "vit" else {}
    logits = learner.logits(e.test_inputs, **task)
    own = e.test_labels.unique().tolist()
    right, masked, among = [], [], []
    for row, truth in zip(logits.tolist(), e.test_labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        right.append(order[0] == truth)
        masked.append(next((c for c in order if c in own), None) == truth)
        among.append(truth in order[:top])
    return float(np.mean(right)), float(np.mean(masked)), float(np.mean(among))


@pytest.mark.parametrize("name", METHODS)
def test_of_methods_on_a_transformer(name: str, stream: Stream, tiny: nn.Module) -> None:
    options: dict[str, Any] = {"epochs": 1, "flip": 0.0} | ({"features": 20} if name == "ranpac" else {})
    learner = make_learner(name, tiny, **options)
    learner.learn(stream[0])
    check(learner, stream)
    learner.learn(stream[1])
    check(learner, stream)


@pytest.mark.parametrize("name", MLP_METHODS)
def test_of_methods_on_a_perceptron(name: str, stream: Stream) -> None:
    learner = MLP_METHODS[name](stream.input_shape, stream.classes, widths=(8, 8))
    learner.learn(stream[0])
    check(learner, stream)


def check(learner: Any, stream: Stream) -> None:
    for top in (1, 2, 5):
        found = learner.evaluate(stream, top=top)
        accuracies, confusion = found
        expected = np.array([by_hand(learner, e, top) for e in stream]).T
        np.testing.assert_array_equal([accuracies, found.masked, found.top_accuracies], expected)
        assert found.top == top
        assert (found.masked >= accuracies).all()
        if top == 1:
            np.testing.assert_array_equal(found.top_accuracies, accuracies)
        counts = confusion.sum(1)
        for c, share in enumerate(found.per_class):
            assert share == confusion[c, c] / counts[c] if counts[c] else np.isnan(share)
        assert found.macro == pytest.approx(np.mean([confusion[c, c] / counts[c] for c in range(5)]))


@pytest.mark.parametrize("kept", [False, True])
def test_inputs_pass_the_network_once(kept: bool, stream: Stream, tiny: nn.Module, tmp_path: Any) -> None:
    seen = []
    features = BackboneFeatures(tiny)
    learner = MetaplasticMLP(
        stream.input_shape, 5, features=features, features_cache=tmp_path if kept else None
    )
    features.register_forward_hook(lambda module, given, found: seen.append(len(found)))
    learner.evaluate(stream)
    assert sum(seen) == 10


def test_a_top_that_is_none(stream: Stream) -> None:
    learner = MetaplasticMLP(stream.input_shape, 5, widths=(4, 4))
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        learner.evaluate(stream, top=0)
    with pytest.raises(TypeError, match="top must be"):
        learner.evaluate(stream, top=2.5)  # type: ignore[arg-type]


def test_equal_logits_missing_classes_and_nan() -> None:
    judged = Judged(torch.tensor([1, 3, 0, 2, 2]), top=2)
    nan = torch.nan
    judged(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.2]]))
    judged(torch.tensor([[nan, 0.0, 9.0], [0.0, nan, nan]]))
    # Answers: 0, 0, 1, 0, 1. Second: 0 and 1; 0 and 1; 1 and 2; 0 and 2; 1 and 2. Its class 3 has no logit.
    assert judged.shares() == (0.0, 0.0, 3 / 5)
    assert judged.confusion(4).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_a_class_that_is_never_answered_is_not_right_by_chance() -> None:
    never = -torch.inf
    judged = Judged(torch.tensor([2, 2, 3]), top=4)
    judged(torch.tensor([[1.0, 0.0, never, never]] * 2 + [[0.0, 0.0, never, 1.0]]))
    assert judged.shares() == (1 / 3, 1 / 3, 1 / 3)


def test_classes_that_nobody_has_learned() -> None:
    judged = Judged(torch.tensor([7, 8]), top=9)
    judged(torch.zeros(2, 3))
    assert judged.shares() == (0.0, 0.0, 0.0)


def test_many_logits_are_compared_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels, logits = torch.from_numpy(rng.integers(0, 7, 50)), torch.from_numpy(rng.normal(size=(50, 7)))
    whole = Judged(labels, 3)
    whole(logits)
    monkeypatch.setattr("flexkern.learners.judged._AT_ONCE", 20)
    parts = Judged(labels, 3)
    parts(logits)
    assert parts.shares() == whole.shares()
    np.testing.assert_array_equal(parts.confusion(7), whole.confusion(7))


def test_an_evaluation_is_a_tuple_of_two_whatever_it_has() -> None:
    confusion = np.array([[3, 1], [2, 2]])
    plain = Evaluation(np.array([0.5]), confusion)
    assert plain.masked is plain.top is plain.top_accuracies is None
    rich = Evaluation(np.array([0.5]), confusion, masked=np.array([0.75]), top=2, top_accuracies=np.ones(1))
    for one in (
        rich,
        pickle.loads(pickle.dumps(rich)),
        copy.deepcopy(rich),
        rich._replace(confusion=confusion),
    ):
        accuracies, counts = one
        assert (accuracies[0], counts.tolist(), len(one)) == (0.5, confusion.tolist(), 2)
        assert one.masked is not None
        assert (one.masked[0], one.top) == (0.75, 2)
        assert one.per_class.tolist() == [0.75, 0.5]
        assert one.macro == 0.625
    assert rich._replace(top=1).top == 1
