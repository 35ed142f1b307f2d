"""What Python shows of streams, images, learners and results: a line that says what it is, and no pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flexkern import metrics, nn, streams
from flexkern.features import Pixels, RandomConvolutions
from flexkern.learners import METHODS, MLP_METHODS, MetaplasticMLP, make_learner
from flexkern.streams import Experience, Images, Stream
from flexkern.streams.digits import Digits

LONGEST = 320


def experience(number: int = 0, names: tuple[str, ...] = ()) -> Experience:
    inputs, labels = torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8), torch.arange(50) % 5
    return Experience(f"item {number}", number, inputs, labels, inputs[:20], labels[:20], names)


def stream() -> Stream:
    return Stream([experience(i) for i in range(3)], 5)


def matrix() -> metrics.AccuracyMatrix:
    return metrics.AccuracyMatrix([[0.9, 0.2, 0.1], [0.5, 0.8, 0.1]])


IMAGES = torch.zeros(400, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.arange(400) % 20
SHOWN: dict[str, tuple[Any, list[str]]] = {
    "experience": (experience(), ["Experience 0 'item 0'", "50 training", "20 test", "[3, 16, 16] uint8"]),
    "names": (experience(1, ("cat", "dog", "cow", "hen", "z" * 80)), ["5 classes: 'cat', 'dog', 'cow', ..."]),
    "stream": (stream(), ["Stream of 3 experiences, class-incremental, 5 classes: 150 training"]),
    "online": (streams.online(stream(), batch_size=10), ["OnlineStream", "of class-incremental, 10 at a time"]),
    "parts": (streams.online(stream(), batch_size=10).parts(0), ["5 parts of <Experience 0", "10 at a time"]),
    "images": (Images(IMAGES, LABELS, [f"class {i}" for i in range(20)]),
               ["400 of [3, 8, 8] uint8", "20 classes: 'class 0', "]),
    "digits": (Digits(IMAGES[:, 0], LABELS), ["400 of [8, 8] uint8"]),
    "matrix": (matrix(), ["2 of 3 items learned", "last 65.0%", "average 77.5%", "forgetting 40.0%"]),
    "no matrix": (metrics.AccuracyMatrix(), ["no item learned"]),
    "evaluation": (metrics.Evaluation(np.linspace(0, 1, 200), np.eye(100, dtype=np.int64)),
                   ["mean accuracy 50.0% over 200 experiences (0.0% to 100.0%)", "100 classes"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_short(name: str) -> None:
    value, parts = SHOWN[name]
    text = repr(value)
    assert len(text) <= LONGEST, text
    assert "\n" not in text
    assert "tensor(" not in text
    for part in parts:
        assert part in text, text


def test_two_digit_items() -> None:
    pytest.importorskip("sklearn")
    digits = streams.bundled_digits()
    made = streams.two_digit_items(*digits, items=4, train_per_item=40, test_per_item=10, seed=0)
    assert (
        repr(made) == "<TwoDigitItems: 4 items, each with 40 own training and 10 test inputs of [16, 16] uint8>"
    )


@pytest.mark.parametrize("method", MLP_METHODS)
def test_perceptrons(method: str) -> None:
    kind = MLP_METHODS[method]
    plain = repr(kind((3, 4), 5))
    assert plain == f"<{kind.__name__} {method!r} on [3, 4] inputs, 0 items learned, 5 classes>"
    text = repr(kind((3, 4), 5, widths=(8, 9), seed=7))
    assert text.endswith("; widths=[8, 9], seed=7>")


@pytest.mark.parametrize("method", METHODS)
def test_transformers(method: str) -> None:
    pytest.importorskip("transformers")
    learner = make_learner(method, "small", epochs=3, seed=4)
    text = repr(learner)
    assert text.startswith(f"<{type(learner).__name__} ")
    for part in ("on backbone 'small'", "0 items learned", "epochs=3", "seed=4"):
        assert part in text, text
    assert "momentum" not in text  # a default
    assert len(text) <= LONGEST + 100


def test_a_learner_says_how_far_it_is() -> None:
    learner = MetaplasticMLP((3, 16, 16), 5, widths=(4, 4), features=Pixels(), silent_fraction=0.25)
    of = stream()
    learner.learn(of[0], epochs=1)
    text = repr(learner)
    for part in ("on Pixels", "1 item learned", "widths=[4, 4]", "silent_fraction=0.25"):
        assert part in text, text

    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        learner.learn(of[1], epochs=2, progress=stop)
    assert "1 item learned, 'item 1' begun" in repr(learner)


def test_a_learner_whose_constructor_failed_can_be_shown() -> None:
    assert "MetaplasticMLP object at" in repr(MetaplasticMLP.__new__(MetaplasticMLP))


@pytest.mark.parametrize(
    "make",
    # Made in the test: as long as a layer with silent synapses is there, optimizers look at each step.
    [lambda: nn.LDAHead(8), lambda: nn.RidgeHead(8, features=0), lambda: nn.SilentLinear(40, 50, silent=0.5),
     lambda: nn.AdapterBank(4, 8, rank=2), lambda: nn.FeatureStatistics(8),
     lambda: RandomConvolutions(4, grid=2)],
    ids=["LDAHead", "RidgeHead", "SilentLinear", "AdapterBank", "FeatureStatistics", "RandomConvolutions"],
)  # fmt: skip
def test_modules(make: Callable[[], torch.nn.Module]) -> None:
    text = repr(make())
    assert "=" in text
    assert len(text) <= LONGEST


def test_every_public_class_of_streams_and_results_is_looked_at() -> None:
    looked_at = {type(value).__name__ for value, _ in SHOWN.values()} | {"TwoDigitItems", "ImageSource"}
    for module in (streams, metrics):
        public = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
        assert public <= looked_at
