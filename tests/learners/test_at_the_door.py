"""What a learner refuses before it begins, and what it answers where there is little to answer from."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern.learners import (
    METHODS,
    MLP_METHODS,
    ArtsyViT,
    MetaplasticMLP,
    NotLearnedError,
    load_learner,
    make_learner,
)  # fmt: skip
from flexkern.streams import Experience
from helpers import mlp_blobs, tiny_vit
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLASSES, SIZE, blobs

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 48}
OPTIONS: dict[str, dict[str, Any]] = {"artsy": {"rank": 2}, "ease": {"rank": 2}, "ranpac": {"features": 16}}
GATES: dict[str, dict[str, Any]] = {
    "energy": {"gate": "energy"},
    "knn": {"gate": "knn"},
    "mahalanobis": {"gate": "mahalanobis", "gating": "soft", "k": 1},
    "likelihood_ratio": {"gate": "likelihood_ratio"},
    "mlp": {"gate": "mlp", "hidden": 4, "theta": 0.9},
    "ridge": {"gate": "ridge", "features": 16, "gating": "topk"},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    """Each method on a transformer, after its first task."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    backbone, given = tiny_vit.backbone(), tiny_vit.stream()
    made = {}
    for method in METHODS:
        made[method] = make_learner(method, backbone, **QUICK, **OPTIONS.get(method, {}))
        made[method].learn(given[0])
    return made


IMAGES = tiny_vit.stream()[0].test_inputs
WRONG_IMAGES: list[tuple[str, Any, type[Exception], str]] = [
    ("int64", IMAGES.long(), TypeError, r"got torch.int64; .*pass .to\(torch.uint8\)"),
    ("int32", IMAGES.int(), TypeError, r"got torch.int32; .*pass .to\(torch.uint8\)"),
    ("0 to 255", IMAGES.float(), ValueError, r"values are 0 to 255; .*pass images / 255"),
    ("over 1", IMAGES.double() / 255 + 0.05, ValueError, r"pass .clamp\(0, 1\)"),
    ("normalised", IMAGES.float() / 127.5 - 1, ValueError, r"before they are normalised"),
    ("nan", (IMAGES / 255).index_fill(0, torch.tensor(3), math.nan), ValueError, "NaN and infinite"),
    ("inf", (IMAGES / 255).half().index_fill(0, torch.tensor(3), math.inf), ValueError, "NaN and infinite"),
    ("grey", IMAGES[:, :1], ValueError, r"got \(20, 1, 16, 16\); .*expand"),
    ("one", IMAGES[0], ValueError, r"got \(3, 16, 16\); .*unsqueeze\(0\)"),
    ("channels last", IMAGES.permute(0, 2, 3, 1), ValueError, r"permute\(0, 3, 1, 2\)"),
    ("array", IMAGES.numpy(), TypeError, "got ndarray; torch.from_numpy"),
    ("list", IMAGES[:1].tolist(), TypeError, "got list"),
    ("bool", IMAGES > 9, TypeError, r"got torch.bool; .float\(\)"),
    ("complex", IMAGES.to(torch.complex64), TypeError, "got torch.complex64"),
    ("no pixels", IMAGES[..., :0], ValueError, r"got \(20, 3, 16, 0\)"),
    ("sparse", (IMAGES / 255).to_sparse(), TypeError, "dense"),
]


@pytest.mark.parametrize(
    ("images", "error", "message"), [w[1:] for w in WRONG_IMAGES], ids=[w[0] for w in WRONG_IMAGES]
)
def test_images_are_checked_everywhere(
    images: Any, error: type[Exception], message: str, learned: dict[str, Any]
) -> None:
    for method, learner in learned.items():
        before = fingerprint(learner) if method in ("artsy", "simplecil") else None
        for ask in (learner.predict, learner.logits, *(
            getattr(learner, name) for name in ("spaces", "means") if hasattr(learner, name)
        )):  # fmt: skip
            with pytest.raises(error, match=r"^(x|images) must be"):
                ask(images)
            with pytest.raises(error, match=message):
                ask(images)
        if isinstance(images, Tensor) and images.dim() == 4 and len(images) == 20:
            first, labels = tiny_vit.stream()[1], torch.arange(2, 4).repeat(10)
            item = Experience("new", 1, images, labels, images, labels)
            with pytest.raises(error, match=r"experience: its train_inputs must be"):
                learner.learn(item)
            with pytest.raises(error, match=r"test_inputs of stream\[1\], 'new' must be"):
                learner.evaluate([first, item])
        assert before is None or fingerprint(learner) == before


def test_images_of_all_kinds_that_are_right(learned: dict[str, Any]) -> None:
    learner = learned["simplecil"]
    expected = learner.logits(IMAGES)
    for images in (IMAGES / 255, (IMAGES / 255).double(), IMAGES.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(learner.logits(images), expected)
    for dtype in (torch.float16, torch.bfloat16):
        assert learner.logits((IMAGES / 255).to(dtype)).isfinite().all()


def test_inputs_of_a_perceptron_are_checked() -> None:
    stream = blobs(2, per_class=8)
    x = stream[0].test_inputs
    nan = x.clone()
    nan[3, 3] = math.nan
    huge = x.double()
    huge[0, 0] = 1e300
    for method in MLP_METHODS.values():
        learner = method((SIZE,), CLASSES, widths=(6, 6))
        before = fingerprint(learner)
        for wrong, error, message in (
            (x.long(), TypeError, "x must be floating-point or uint8, got torch.int64"),
            (x > 0, TypeError, "x must be floating-point or uint8, got torch.bool"),
            (x.to(torch.complex64), TypeError, "x must be floating-point"),
            (nan, ValueError, "x must be finite"),
            (huge, ValueError, "x must be finite in float32"),
            (x[0], ValueError, r"x must be \[n, 20\], got \(20,\)"),
            (x.tolist(), TypeError, "x must be a tensor .* got list"),
            (x.numpy(), TypeError, "x must be a tensor .* got ndarray"),
            (x.to_sparse(), TypeError, "x must be a dense tensor"),
        ):
            for ask in (learner.predict, learner.logits):
                with pytest.raises(error, match=message):
                    ask(wrong)
            if isinstance(wrong, Tensor) and wrong.shape == x.shape:
                with pytest.raises(error, match="experience: its train_inputs must be"):
                    learner.learn(Experience("a", 0, wrong, stream[0].test_labels, x, stream[0].test_labels))
                with pytest.raises(error, match=r"test_inputs of stream\[0\], 'a' must be"):
                    learner.evaluate(
                        [Experience("a", 0, x, stream[0].test_labels, wrong, stream[0].test_labels)]
                    )
        with pytest.raises(ValueError, match=r"test_labels of stream\[0\], 'a' must be in \[0, 6\)"):
            learner.evaluate([Experience("a", 0, x, stream[0].test_labels, x, stream[0].test_labels + 9)])
        assert fingerprint(learner) == before
        for right in (x.half(), x.double(), x.abs().to(torch.uint8)):
            assert learner.logits(right).dtype is torch.float32


# --------------------------------------------------------------------------- nothing to answer from


@pytest.mark.parametrize("method", METHODS)
def test_before_anything_is_learned(method: str, learned: dict[str, Any]) -> None:
    given = tiny_vit.stream()
    learner = make_learner(method, learned[method].backbone, **QUICK, **OPTIONS.get(method, {}))
    for ask in (
        lambda: learner.predict(IMAGES), lambda: learner.logits(IMAGES), lambda: learner.predict(IMAGES[:0]),
        lambda: learner.evaluate(given), lambda: learner.evaluate(given[:1]),
    ):  # fmt: skip
        with pytest.raises(NotLearnedError, match="has not learned a class yet; learn an experience first"):
            ask()


def test_a_perceptron_answers_from_the_start() -> None:
    stream = blobs(3, per_class=8)
    for method in MLP_METHODS.values():
        learner = method((SIZE,), CLASSES, widths=(6, 6))
        assert learner.evaluate(stream).confusion.sum() == 48


@pytest.mark.parametrize("method", [*METHODS, *(f"mlp {name}" for name in MLP_METHODS)])
def test_no_inputs(method: str, learned: dict[str, Any]) -> None:
    if method.startswith("mlp"):
        stream: Any = blobs(2, per_class=8)
        name = method.split()[1]
        learner: Any = MLP_METHODS[name]((SIZE,), CLASSES, widths=(6, 6), **mlp_blobs.QUICK.get(name, {}))
        learner.learn(stream[0], epochs=1)
        classes, first = CLASSES, stream[0]
    else:
        learner, first, classes = learned[method], tiny_vit.stream()[0], 2
    for empty in (first.test_inputs[:0], first.test_inputs[:0].double()):
        logits, answers = learner.logits(empty), learner.predict(empty)
        assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (0, classes))
        assert (answers.dtype, tuple(answers.shape)) == (torch.int64, (0,))
    nothing = dataclasses.replace(first, test_inputs=first.test_inputs[:0], test_labels=first.test_labels[:0])
    with pytest.raises(ValueError, match=r"stream\[1\], '.*' has no test inputs, so it has no accuracy"):
        learner.evaluate([first, nothing])
    with pytest.raises(ValueError, match="stream has no experiences"):
        learner.evaluate([])
    with pytest.raises(TypeError, match=r"got Experience; for one experience pass \[experience\]"):
        learner.evaluate(first)
    with pytest.raises(TypeError, match=r"stream\[0\] must be an Experience, got str"):
        learner.evaluate(["first"])
    nobody = dataclasses.replace(
        first, train_inputs=first.train_inputs[:0], train_labels=first.train_labels[:0]
    )
    with pytest.raises(ValueError, match="experience"):
        learner.learn(nobody)
    for wrong in ("first", None, (first.train_inputs, first.train_labels)):
        with pytest.raises(TypeError, match=r"experience must be a flexkern\.streams\.Experience"):
            learner.learn(wrong)
    for epochs, error in (
        (0, ValueError),
        (-1, ValueError),
        ("2", TypeError),
        (1.5, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="epochs must be"):
            learner.learn(first, epochs=epochs)
    with pytest.raises(TypeError, match="progress must be callable"):
        learner.learn(first, progress=3)


def test_no_inputs_through_an_extractor() -> None:
    from flexkern.features import RandomConvolutions

    learner = MLP_METHODS["metaplastic"]((8, 8), 3, widths=(6, 6), features=RandomConvolutions(4, grid=2))
    assert learner.logits(torch.zeros(0, 8, 8)).shape == (0, 3)

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) / 0

    learner = MLP_METHODS["metaplastic"]((8, 8), 3, widths=(6, 6), features=Broken())
    x, y = torch.ones(4, 8, 8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="extractor gives infinite or NaN features"):
        learner.learn(Experience("a", 0, x, y, x, y))
    assert learner._begun is None


@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize("gate", GATES)
def test_no_open_synapse(gate: str, combine: str, learned: dict[str, Any]) -> None:
    """E0 answers where no synapse opens, be it for all images of a pass or for some."""
    given = tiny_vit.stream()
    learner = make_learner(
        "artsy", learned["artsy"].backbone, **QUICK, rank=2, gate=GATES[gate], combine=combine, base_weight=0.0
    )
    assert isinstance(learner, ArtsyViT)
    for item in given[:2]:
        learner.learn(item)
    usual, opening = learner.logits(IMAGES), learner.gate.open
    try:
        learner.gate.open = torch.zeros_like  # type: ignore[method-assign]
        shut = learner.logits(IMAGES)
        learner.gate.open = lambda e: opening(e).index_fill(0, torch.tensor([0, 3]), 0.0)  # type: ignore[method-assign]
        some = learner.logits(IMAGES)
    finally:
        del learner.gate.open
    assert shut.shape == usual.shape
    rows = torch.arange(len(IMAGES)) % len(IMAGES)
    closed = (rows == 0) | (rows == 3)
    torch.testing.assert_close(some[closed], shut[closed], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some[~closed], usual[~closed], rtol=1e-4, atol=1e-5)
    # That of E0: the nearest mean of its own features tells the classes apart, and so not one class for all.
    assert len(shut.argmax(1).unique()) > 1
    if combine == "concat":
        assert (shut.argmax(1) == given[0].test_labels).float().mean() > 0.5


# --------------------------------------------------------------------------- what the end would refuse


def few(count: int, classes: int = 2, first: int = 0) -> Experience:
    item = tiny_vit.stream()[first // 2]
    rows = torch.cat([(item.train_labels == first + c).nonzero().flatten()[:count] for c in range(classes)])
    return dataclasses.replace(item, train_inputs=item.train_inputs[rows], train_labels=item.train_labels[rows])


@pytest.mark.parametrize(
    ("gate", "item", "message"),
    [
        ({"gate": "mlp"}, few(1), "2 samples of 2 classes; some class needs two samples"),
        ({"gate": "none"}, few(1), "2 samples of 2 classes; some class needs two samples"),
        ({"gate": "oracle"}, few(1), "some class needs two samples"),
        ({"gate": "energy"}, few(20, classes=1), "at least 2 classes a task for this gate, got 1"),
        ({"gate": "knn"}, few(3), "6 samples of 2 classes, too few to hold 20% of each class out"),
        ({"gate": "ridge", "features": 8}, few(4), "too few to hold 20%"),
        ({"gate": "mlp", "threshold": "quantile", "holdout": 0.9}, few(10), "too few to hold 90%"),
        ({"gate": "mahalanobis", "shrinkage": 0.0}, few(10), "too few for a covariance of 24 dimensions"),
    ],
)
def test_too_little_for_the_gate(
    gate: dict[str, Any], item: Experience, message: str, learned: dict[str, Any]
) -> None:
    """Refused before the first epoch, and the next experience is learned as if nothing had been."""
    make = lambda: make_learner("artsy", learned["artsy"].backbone, **QUICK, rank=2, gate=gate)  # noqa: E731
    learner, epochs = make(), list[Any]()
    before = fingerprint(learner)
    with pytest.raises(ValueError, match=f"experience: '0' cannot be learned: .*{message}"):
        learner.learn(item, progress=epochs.append)
    assert not epochs
    assert fingerprint(learner) == before
    if gate["gate"] == "mlp" and "holdout" not in gate:
        good, twin = few(20), make()
        for one in (learner, twin):
            one.learn(good)
        assert fingerprint(learner) == fingerprint(twin)


def test_features_that_have_no_covariance_undo_the_end(learned: dict[str, Any]) -> None:
    """Equal images get through the door; the gate refuses their features, and nothing is lost."""
    item = few(20)
    alike = dataclasses.replace(item, train_inputs=item.train_inputs[:1].expand(40, -1, -1, -1))
    learner = make_learner("artsy", learned["artsy"].backbone, **QUICK, rank=2, gate={"gate": "mahalanobis"})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="covariance"):
            learner.learn(alike)
        assert (learner.items_learned, learner.classes_seen, learner.gate.tasks) == (0, 0, 0)
        assert learner.prototypes.classes == 0
        with pytest.raises(NotLearnedError):
            learner.predict(IMAGES)
    copied = copy.deepcopy(learner)
    assert fingerprint(copied) == fingerprint(learner)


def test_joint_training_keeps_images_of_one_kind(tmp_path: Path) -> None:
    learner = make_learner("joint", tiny_vit.backbone(), epochs=1, batch_size=8)
    first, second = tiny_vit.stream()[:2]
    learner.learn(first)
    as_floats = replace(
        second, train_inputs=second.train_inputs.float() / 255, test_inputs=second.test_inputs / 255
    )
    learner.learn(as_floats)
    assert learner.kept.images.dtype is torch.uint8
    assert torch.equal(learner.kept.images[-len(second.train_labels) :], second.train_inputs)
    learner.save(tmp_path / "joint")
    again = load_learner(tmp_path / "joint", backbone=learner.backbone)
    assert torch.equal(again.logits(first.test_inputs), learner.logits(first.test_inputs))
    images, labels = torch.zeros(4, 3, 40, 40, dtype=torch.uint8), torch.tensor([4, 4, 5, 5])
    larger = Experience("larger", 2, images, labels, images, labels)
    with pytest.raises(ValueError, match=r"its images are \(3, 40, 40\), and those that are kept"):
        learner.learn(larger)
    assert learner._begun is None


def test_inference_mode_is_refused_and_loading_in_it_is_not(tmp_path: Path) -> None:
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    item = Experience("item", 0, x, y, x, y)
    learner = MetaplasticMLP((4,), 3, widths=(8, 8))
    learner.save(tmp_path / "one")
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="inside of torch"):
            learner.learn(item)
        with pytest.raises(RuntimeError, match="inside of torch"):
            MetaplasticMLP((4,), 3)
        loaded = MetaplasticMLP.load(tmp_path / "one")
        loaded.predict(x)
    for one in (learner, loaded):
        one.learn(item)
    assert torch.equal(loaded.logits(x), learner.logits(x))


def test_an_autocast_of_the_caller_changes_no_bit() -> None:
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    item = Experience("item", 0, x, y, x, y)
    plain, cast = MetaplasticMLP((4,), 3, widths=(8, 8)), MetaplasticMLP((4,), 3, widths=(8, 8))
    plain.learn(item)
    with torch.autocast("cpu", torch.bfloat16):
        cast.learn(item)
        answers = cast.logits(x)
    assert answers.dtype is torch.float32
    assert torch.equal(answers, plain.logits(x))


def test_a_label_of_an_evaluation_has_a_bound(learned: dict[str, Any]) -> None:
    first = tiny_vit.stream()[0]
    odd = replace(first, test_labels=torch.full_like(first.test_labels, 2**40))
    with pytest.raises(ValueError, match=r"test_labels of stream\[0\], .* must be under 30,000"):
        learned["simplecil"].evaluate([odd])


def test_what_an_experience_is_called(tmp_path: Path) -> None:
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    for name in (3, None, b"item", ("a",)):
        with pytest.raises(TypeError, match="name must be a string"):
            Experience(name, 0, x, y, x, y)  # type: ignore[arg-type]
    for number in (-1, "0", 0.5, True):
        with pytest.raises((TypeError, ValueError), match="number must be"):
            Experience("item", number, x, y, x, y)  # type: ignore[arg-type]
    assert type(Experience("item", np.int64(1), x, y, x, y).number) is int  # type: ignore[arg-type]
