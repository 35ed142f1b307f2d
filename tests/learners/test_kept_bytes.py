"""What a learner says that it keeps, against a count by hand for each method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flexkern.learners import METHODS, MLP_METHODS, make_learner
from flexkern.learners.kept_bytes import bytes_kept
from helpers import tiny_vit
from helpers.mlp_blobs import CLASSES, SIZE, blobs
from helpers.tiny_vit import PER_TASK, SIZES, TRAIN, backbone, stream

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = 2
C, W, LAYERS = TASKS * PER_TASK, SIZES["hidden_size"], SIZES["num_hidden_layers"]
RANK, FEATURES = 4, 16
BANK = 4 * LAYERS * (2 * W * RANK + RANK + W)  # bytes of a task's adapters
ROOM = 4  # tasks that a bank has room for at first
ONE_ADAPTER = {"first_session": "adapter", "rank": RANK}


def prototypes(spaces: int, width: int = W) -> int:
    """Sums in float64, counts, each class's own space, and the means that were answered with."""
    return C * spaces * width * (8 + 4) + C * spaces * 8 + C * 8


def gate(mlp: bool) -> int:
    """Ready, thresholds, slopes, offsets, the common factor, the task of each class."""
    small = TASKS * (8 + 4 + 4 + 4) + 4 + C * 8
    if not mlp:
        return small + W * W * 8  # statistics of nothing
    statistics = C * 8 + C * W * 8 + W * W * 8
    drawn = W * W * 8 + C * W * 4 + W * W * 4  # factors, and means as they are drawn around
    return small + statistics + drawn + 4 * TASKS * (64 * W + 64 + 64 + 1)


def lda(width: int, classes: int = C) -> int:
    sums = classes * 8 + classes * width * 8 + width * width * 4 + 8
    return sums + 4 * (width + width * classes + classes)  # what is solved


def selected(candidates: int) -> int:
    """Right answers and temperatures of the candidates, and how many were judged."""
    return candidates * (8 + 8) + 8


def experts() -> int:
    """Weights, the task of each class, strength and gain; and of the gate what it has without statistics."""
    return C * 2 * W * 4 + C * 8 + TASKS * (4 + 4) + TASKS * (8 + 4 + 4 + 4) + 4 + C * 8 + 8


def ranpac(features: int, width: int = W, classes: int = C) -> int:
    sums = features * features * 8 + features * classes * 8 + classes * 8 + features * 8
    return sums + 4 * (width * features + features * classes)  # the projection, and what is solved


def whole() -> int:
    return 4 * sum(p.numel() for p in backbone().parameters()) + 4 * (W * C + C)


VITS: list[tuple[str, dict[str, Any], Callable[[], int]]] = [
    ("artsy", {"rank": RANK}, lambda: ROOM * BANK + prototypes(1 + TASKS) + gate(mlp=True)),
    ("ease", {"rank": RANK}, lambda: ROOM * BANK + prototypes(1 + TASKS) + gate(mlp=False)),
    ("finetune", {}, whole),
    ("joint", {}, lambda: whole() + C * TRAIN * (3 * 16 * 16 + 8)),
    ("lda", {"layers": LAYERS, "shrinkage": "oas"}, lambda: lda(LAYERS * 2 * W) + selected(1)),
    ("lda", {"layers": 1, "shrinkage": "oas"} | ONE_ADAPTER, lambda: lda(2 * W) + selected(1) + BANK),
    ("lda", {"layers": 1}, lambda: lda(2 * W) + selected(3)),
    ("artsy-best", {"layers": 1, "rank": RANK}, lambda: ROOM * BANK + lda(2 * W) + selected(3) + experts()),
    ("ranpac", {"features": FEATURES}, lambda: ranpac(FEATURES)),
    ("ranpac", {"features": FEATURES} | ONE_ADAPTER, lambda: ranpac(FEATURES) + BANK),
    ("simplecil", {}, lambda: prototypes(1)),
    ("simplecil", {"first_session": "both", "rank": RANK}, lambda: prototypes(1, 2 * W) + BANK),
]
HIDDEN = (12, 8)
NETWORK = 4 * (SIZE * 12 + 12 + 12 * 8 + 8 + 8 * CLASSES + CLASSES)
WEIGHTS = 4 * (SIZE * 12 + 12 * 8 + 8 * CLASSES)
MLPS: list[tuple[str, dict[str, Any], int]] = [
    ("ewc", {}, 3 * NETWORK),  # anchors, Fisher information
    ("joint", {}, NETWORK + 160 * (4 * SIZE + 8)),
    ("metaplastic", {}, NETWORK + WEIGHTS),  # alpha of the item; flexibility and the anchor are drawn
    ("metaplastic", {"gate": "step"}, NETWORK + WEIGHTS),  # anchors
    ("metaplastic", {"momentum": 0.9}, 2 * NETWORK + WEIGHTS),
    ("lda", {}, lda(SIZE, 4)),  # classes of two items
    ("replay", {"memory": 30}, NETWORK + 30 * (4 * SIZE + 8) + 8),
    ("ridge", {"random_features": FEATURES}, ranpac(FEATURES, SIZE, 4)),
    ("si", {}, 4 * NETWORK),  # anchors, importance, path
]


@pytest.mark.parametrize(("method", "options", "by_hand"), VITS)
def test_on_a_transformer(method: str, options: dict[str, Any], by_hand: Callable[[], int]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    one = make_learner(method, backbone(), epochs=1, **options)
    planned = one._kept_bytes(C, TASKS)
    for item in list(stream())[:TASKS]:
        one.learn(item)
    one.predict(stream()[0].test_inputs)
    assert one.memory_bytes == by_hand()
    if method not in ("finetune", "joint"):  # of these most is the network
        assert planned["adapters"] + planned["statistics"] == pytest.approx(by_hand(), rel=0.01)


@pytest.mark.parametrize(("method", "options", "by_hand"), MLPS)
def test_on_a_perceptron(method: str, options: dict[str, Any], by_hand: int) -> None:
    given = blobs(3)
    one = MLP_METHODS[method](given.input_shape, given.classes, widths=HIDDEN, **options)
    for item in list(given)[:2]:
        one.learn(item, epochs=1)
    one.predict(given[0].test_inputs)
    assert one.memory_bytes == by_hand


def test_every_method_has_a_count() -> None:
    ours = "flexkern."  # a test of registering may have added its own
    assert {m for m in METHODS if METHODS[m].__module__.startswith(ours)} <= {method for method, *_ in VITS}
    known = {method for method, *_ in MLPS}
    assert {m for m in MLP_METHODS if MLP_METHODS[m].__module__.startswith(ours)} <= known


def test_the_gram_matrix_of_two_thousand_features_is_32_megabytes() -> None:
    """The number that was shown before, of the head's weights, said 0.2."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    one = make_learner("ranpac", tiny_vit.backbone(), features=2000)
    assert one.memory_bytes >= 2000 * 2000 * 8


def test_each_memory_once_and_what_is_given_not_at_all() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 5)
            self.kept = {"a": [torch.zeros(7), torch.zeros(0)], "b": (self.inner.weight.detach()[1:],)}
            self.register_buffer("part", torch.zeros(100)[:10])

    one = Keeps()
    assert bytes_kept(one) == 4 * (3 * 5 + 5 + 7 + 100)
    assert bytes_kept(one, given=one.inner) == 4 * (7 + 100)
    assert bytes_kept(nn.ModuleList([one, one]), [one.kept, torch.zeros(2, dtype=torch.float64)]) == (
        4 * (3 * 5 + 5 + 7 + 100) + 16
    )
