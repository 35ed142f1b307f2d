"""Probabilities: softmax of the logits at one temperature, which training images decide, and nothing else."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.learners import METHODS, MLP_METHODS, checkpoint, load_learner, make_learner
from flexkern.nn.temperature import fit_log_temperature
from helpers import tiny_vit
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLASSES, QUICK, SIZE, blobs

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, dict[str, Any]] = {"artsy": {"rank": 2}, "ease": {"rank": 2}, "ranpac": {"features": 16}}


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


def make(method: str, backbone: nn.Module, **options: Any) -> Any:
    return make_learner(method, backbone, **({"epochs": 1} | OPTIONS.get(method, {}) | options))


def noisy(temperature: float, n: int = 40_000, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn at this temperature of theirs."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(torch.softmax(logits.double() / temperature, 1), 1, generator=generator)
    return logits, labels[:, 0]


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 4.0])
def test_the_temperature_that_drew_the_labels_is_found(temperature: float) -> None:
    logits, labels = noisy(temperature)
    found = fit_log_temperature(logits, labels)
    assert found is not None
    # By the draws alone one in a few hundred of them tells anything where they are surest.
    assert math.exp(found) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_other_temperature_is_likelier(scale: float) -> None:
    logits, labels = noisy(0.5, n=100)
    logits = logits * scale
    found = fit_log_temperature(logits, labels)
    assert found is not None
    smooth = functional.one_hot(labels, 5).double() * (1 - 1 / 102 - 1 / 408) + 1 / 408

    def loss(t: float) -> float:
        return float(functional.cross_entropy(logits.double() / math.exp(t), smooth))

    assert loss(found) <= min(loss(found + step) for step in np.linspace(-3, 3, 61))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)),
        (torch.tensor([[1.0, math.nan]]), torch.tensor([0])),
        (torch.tensor([[1.0, -math.inf]]), torch.tensor([0])),
    ],
)
def test_nothing_to_fit(logits: Tensor, labels: Tensor) -> None:
    assert fit_log_temperature(logits, labels) is None


def test_all_right_all_wrong_and_all_alike_are_finite() -> None:
    labels = torch.arange(4) % 2
    right = functional.one_hot(labels, 2).float()
    for logits in (right, -right, torch.ones(4, 2)):
        found = fit_log_temperature(logits, labels)
        assert found is not None
        assert abs(found) < 12
    sure = fit_log_temperature(right, labels)
    assert sure is not None
    # (n + 1) / (n + 2) of the weight, 5 in 6.
    assert float(torch.softmax(right[0].double() / math.exp(sure), 0)[0]) == pytest.approx(5 / 6, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_all_methods(method: str, backbone: nn.Module, tmp_path: Path) -> None:
    learner = make(method, backbone)
    assert learner.temperature == 1
    items = tiny_vit.stream()
    for item in items[:2]:
        learner.learn(item)
    x = torch.cat([item.test_inputs for item in items[:2]])
    logits, found = learner.logits(x), learner.probabilities(x)
    assert (found.dtype, found.shape) == (torch.float32, logits.shape)
    torch.testing.assert_close(found, torch.softmax(logits / learner.temperature, 1))
    assert torch.equal(found.argmax(1), learner.predict(x))
    assert learner.probabilities(x[:0]).shape == (0, 4)
    # Fitted, but where training fits the scale of its logits itself, or the head has a temperature of its own.
    assert (learner.temperature == 1) == (method in ("finetune", "joint", "lda", "artsy-best"))
    learner.save(tmp_path / "learner")
    again = load_learner(tmp_path / "learner", backbone=backbone)
    assert again.temperature == learner.temperature
    assert torch.equal(again.probabilities(x), found)


def test_flat_cosines_become_probabilities(backbone: nn.Module) -> None:
    learner = make("simplecil", backbone)
    items = tiny_vit.stream()
    for item in items:
        learner.learn(item)
    x, y = torch.cat([e.test_inputs for e in items]), torch.cat([e.test_labels for e in items])
    right = float((learner.predict(x) == y).float().mean())
    sure = float(learner.probabilities(x).amax(1).mean())
    flat = float(torch.softmax(learner.logits(x), 1).amax(1).mean())
    assert abs(sure - right) < 0.25
    assert abs(flat - right) > 0.5


@pytest.mark.parametrize("method", ["artsy", "simplecil"])
def test_it_changes_nothing_else(method: str, backbone: nn.Module) -> None:
    items = tiny_vit.stream()[:2]
    fitted, plain, few = (make(method, backbone, calibration_images=n) for n in (512, 0, 7))
    for learner in (fitted, plain, few):
        for item in items:
            learner.learn(item)
    assert plain.temperature == 1
    assert len({learner.temperature for learner in (fitted, plain, few)}) == 3
    assert few._calibration[1] == 14
    assert fitted._calibration[1] == sum(len(item.train_labels) for item in items)
    x = items[0].test_inputs
    for learner in (plain, few):
        assert torch.equal(learner.logits(x), fitted.logits(x))
    with pytest.raises(ValueError, match="calibration_images must be at least 0"):
        make(method, backbone, calibration_images=-1)


def test_a_task_counts_by_its_images(backbone: nn.Module) -> None:
    """The mean of the logarithms, as the tasks' own fits give them."""
    items = tiny_vit.stream()[:2]
    learner = make("simplecil", backbone)
    logarithms, counts = [], []
    for number, item in enumerate(items):
        if number:
            item = copy.copy(item)
            object.__setattr__(item, "train_inputs", item.train_inputs[:20])
            object.__setattr__(item, "train_labels", item.train_labels[:20])
        learner.learn(item)
        fitted = fit_log_temperature(learner.logits(item.train_inputs), item.train_labels)
        assert fitted is not None
        logarithms.append(fitted)
        counts.append(len(item.train_labels))
    expected = np.average(logarithms, weights=counts)
    assert math.log(learner.temperature) == pytest.approx(expected, abs=1e-9)


def test_what_diverged_leaves_the_temperature_as_it_was(backbone: nn.Module) -> None:
    learner = make("simplecil", backbone)
    items = tiny_vit.stream()
    learner.learn(items[0])
    before, original = learner._calibration, learner._logits
    learner._logits = lambda images, task: original(images, task) * math.nan
    learner.learn(items[1])
    assert learner._calibration == before


def test_an_earlier_files_temperature_is_1_and_goes_on(backbone: nn.Module, tmp_path: Path) -> None:
    """A checkpoint without names, sizes and temperatures, as versions before wrote it."""
    learner, items = make("simplecil", backbone), tiny_vit.stream()
    learner.learn(items[0])
    learner.save(tmp_path / "learner")
    tensors, record = checkpoint.read(tmp_path / "learner")
    for name in ("class_names", "decoded_size", "calibration"):
        del record["progress"][name]
    del record["configuration"]["calibration_images"]
    checkpoint.write(tmp_path / "learner", tensors, record)
    old = load_learner(tmp_path / "learner", backbone=backbone)
    assert (old.temperature, old.class_names, old.decoded_size) == (1, ["0", "1"], None)
    x = items[0].test_inputs
    assert torch.equal(old.logits(x), learner.logits(x))
    for one in (old, learner):
        one.learn(items[1])
    assert torch.equal(old.logits(x), learner.logits(x))
    assert old.temperature != 1
    old.save(tmp_path / "again")
    assert fingerprint(load_learner(tmp_path / "again", backbone=backbone)) == fingerprint(old)


@pytest.mark.parametrize("method", MLP_METHODS)
def test_a_perceptrons_logits_are_probabilities_as_they_are(method: str) -> None:
    stream = blobs(2, per_class=8)
    learner = MLP_METHODS[method]((SIZE,), CLASSES, widths=(6, 5), **QUICK.get(method, {}))
    learner.learn(stream[0], epochs=1)
    x = stream[0].test_inputs
    assert learner.temperature == 1
    assert torch.equal(learner.probabilities(x), torch.softmax(learner.logits(x), 1))
    assert learner.probabilities(x[:0]).shape == (0, CLASSES)
