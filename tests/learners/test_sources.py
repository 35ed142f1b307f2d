"""Learning from images that are decoded when they are needed: the bits of the tensor, and no process left."""

from __future__ import annotations

import dataclasses
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import METHODS, MLP_METHODS, BatchProgress, Progress, load_learner, make_learner
from flexkern.learners.vit.simplecil import SimpleCIL
from flexkern.nn import RidgeHead
from flexkern.streams import Experience
from helpers import tiny_vit
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLASSES, CLOSED_FORM, QUICK, SIZE, blobs

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, dict[str, Any]] = {
    **{method: {} for method in METHODS},
    "artsy": {"rank": 2, "gate": {"gate": "mlp", "hidden": 4}},
    "ease": {"rank": 2},
    "ranpac": {"features": 16},
    "artsy, experts": {
        "rank": 2, "head": "experts", "evidence": "class+mean", "gate": {"gate": "ridge", "features": 16},
    },
    "artsy, sum": {"rank": 2, "combine": "sum", "gate": {"gate": "oracle"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


@pytest.fixture(scope="module")
def items() -> list[Experience]:
    """Two tasks of 96 images, more than are decoded without workers."""
    found = []
    for e in tiny_vit.stream()[:2]:
        twice = torch.cat([e.train_inputs, e.train_inputs.flip(3)])
        found.append(dataclasses.replace(e, train_inputs=twice, train_labels=e.train_labels.repeat(2)))
    return found


def make(kind: str, backbone: nn.Module, **options: Any) -> Any:
    general = {"epochs": 2, "batch_size": 24, "images_per_pass": 30}
    return make_learner(kind.split(",")[0], backbone, **(general | KINDS.get(kind, {}) | options))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_gives_the_bits_of_its_tensor(kind: str, backbone: nn.Module, items: list[Experience]) -> None:
    workers = 2 if kind in ("artsy", "joint") else 0
    told, asked = make(kind, backbone), make(kind, backbone)
    lazy = [tiny_vit.of_source(e, workers=workers) for e in items]
    torch.manual_seed(5)
    expected = torch.rand(1)
    for item in items:
        told.learn(item)
    torch.manual_seed(5)
    for item in lazy:
        asked.learn(item)
    assert torch.equal(torch.rand(1), expected)  # nobody drew from the caller's generator
    assert fingerprint(asked) == fingerprint(told)
    assert (asked.evaluate(lazy).confusion == told.evaluate(items).confusion).all()
    x, source = items[0].test_inputs, lazy[0].test_inputs
    task = torch.zeros(len(x), dtype=torch.int64)
    for ask in ("logits", "predict", "probabilities"):
        assert torch.equal(getattr(asked, ask)(source, task=task), getattr(told, ask)(x, task=task))
    for ask in ("spaces", "means"):
        if hasattr(asked, ask):
            assert torch.equal(getattr(asked, ask)(source), getattr(told, ask)(x))


@pytest.mark.parametrize("kind", ["artsy", "finetune", "joint"])
def test_stopped_in_the_middle_it_goes_on_to_the_bit(
    kind: str, backbone: nn.Module, items: list[Experience], tmp_path: Path
) -> None:
    straight, stopped = make(kind, backbone), make(kind, backbone)
    lazy = [tiny_vit.of_source(e, workers=0) for e in items]
    for item in items:
        straight.learn(item)
    stopped.learn(lazy[0])

    def stop(now: Progress) -> None:
        stopped.save(tmp_path / "learner")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stopped.learn(lazy[1], progress=stop)
    loaded = load_learner(tmp_path / "learner", backbone=backbone)
    loaded.learn(lazy[1])
    assert fingerprint(loaded) == fingerprint(straight)


@pytest.mark.parametrize("doing", ["training", "taking in", "answering"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_a_sound_learner_and_no_process(
    doing: str, error: type[BaseException], backbone: nn.Module, items: list[Experience]
) -> None:
    learner = make("artsy", backbone)
    learner.learn(items[0])
    x = items[0].test_inputs
    before, expected = fingerprint(learner), learner.logits(x)

    def stop(now: BatchProgress) -> None:
        if now.doing == doing and now.done > 24:
            raise error("stop")

    lazy = tiny_vit.of_source(items[1], workers=2)
    # What was raised is held on to, with all frames, as an interactive session does.
    ask = partial(learner.predict, lazy.train_inputs) if doing == "answering" else partial(learner.learn, lazy)
    with pytest.raises(error, match="stop") as held:
        ask(watch=stop)
    assert not multiprocessing.active_children()
    assert torch.equal(learner.logits(x), expected)
    assert (fingerprint(learner) == before) == (doing == "answering")
    learner.learn(lazy)
    assert learner.classes_seen == 4
    assert held.value is not None


def test_an_image_that_cannot_be_decoded_is_named(backbone: nn.Module, items: list[Experience]) -> None:
    learner, twin = make("simplecil", backbone), make("simplecil", backbone)
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"^image 77: no image$"):
            learner.learn(tiny_vit.of_source(items[0], workers=workers, broken=77))
        assert not multiprocessing.active_children()
        assert learner.classes_seen == learner.items_learned == 0
    for one in (learner, twin):
        one.learn(items[0])
    assert fingerprint(learner) == fingerprint(twin)


def test_nothing_is_decoded_at_the_door(backbone: nn.Module, items: list[Experience]) -> None:
    learner = make("simplecil", backbone)
    every = tiny_vit.of_source(items[1], broken=0)
    with pytest.raises(ValueError, match=r"classes from 0 on"):
        learner.learn(every)
    learner.learn(items[0])
    with pytest.raises(ValueError, match=r"test_labels of stream\[1\].* at least 0"):
        learner.evaluate([items[0], dataclasses.replace(every, test_labels=every.test_labels - 9)])


def test_joint_training_keeps_what_was_decoded(backbone: nn.Module, items: list[Experience]) -> None:
    learner = make("joint", backbone, epochs=1)
    learner.learn(tiny_vit.of_source(items[0]))
    assert torch.equal(learner.kept.images, items[0].train_inputs)


def test_sums_are_those_of_one_update(backbone: nn.Module, items: list[Experience]) -> None:
    """However large a pass is, the head gets the same rows at once."""
    found = []
    for at_once in (5, 7, 96, 200):
        learner = make("ranpac", backbone, images_per_pass=96)
        learner.head.rows_at_once = 7
        original = learner._test_batches

        def split(images: Any, labels: Tensor, original: Any = original, at_once: int = at_once) -> Any:
            for x, y in original(images, labels):
                yield from zip(x.split(at_once), y.split(at_once), strict=True)

        learner._run = lambda network, x: torch.stack([x.flatten(1).mean(1) + i for i in range(24)], 1)
        learner._test_batches = split
        learner.learn(items[0])
        found.append(learner.head)
        features = learner._run(None, next(original(items[0].train_inputs, items[0].train_labels))[0])
    once = RidgeHead(24, features=16, seed=0)
    once.rows_at_once = 7  # type: ignore[misc]
    once.update(features, items[0].train_labels)
    for head in found:
        assert torch.equal(head.gram, once.gram)
        assert torch.equal(head.cross, once.cross)


class OfBefore(SimpleCIL):
    """Written for tensors, when there was nothing else."""

    method = "of before"

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        for x, y in self._test_batches(images.flip(3), labels):
            self.prototypes.update(self._run(self._parts.features, x).unsqueeze(1), y)


def test_a_method_written_for_tensors(backbone: nn.Module, items: list[Experience]) -> None:
    learner = OfBefore(backbone)
    for item in items:
        learner.learn(item)
    assert learner.evaluate(items).accuracies.mean() > 0.5


# ------------------------------------------------------------------ who watches


def test_a_watch_is_told_of_each_batch(backbone: nn.Module, items: list[Experience]) -> None:
    learner, told = make("artsy", backbone), list[BatchProgress]()
    learner.learn(items[0], watch=told.append)
    training = [BatchProgress("training", 0, epoch, 2, 24 * n, 96) for epoch in (1, 2) for n in (1, 2, 3, 4)]
    assert told == [*training, *(BatchProgress("taking in", 0, 0, 2, n, 96) for n in (30, 60, 90, 96))]
    told.clear()
    learner.learn(items[1])
    learner.evaluate(items, watch=told.append)
    assert told == [BatchProgress("answering", 2, 0, 0, n, 40) for n in (20, 40)]
    for ask in (learner.predict, learner.probabilities):
        told.clear()
        ask(items[0].train_inputs, watch=told.append)
        assert told == [BatchProgress("answering", 2, 0, 0, n, 96) for n in (30, 60, 90, 96)]
        with pytest.raises(TypeError, match="watch must be callable or None, got 3"):
            ask(items[0].train_inputs, watch=3)
    with pytest.raises(TypeError, match="watch must be callable"):
        learner.learn(items[1], watch="bar")


@pytest.mark.parametrize("method", MLP_METHODS)
def test_a_watch_of_a_perceptron(method: str) -> None:
    stream, told = blobs(2, per_class=16), list[BatchProgress]()
    options = QUICK.get(method, {})
    learner = MLP_METHODS[method]((SIZE,), CLASSES, widths=(6, 5), batch_size=20, **options)
    learner.learn(stream[0], epochs=2, watch=told.append)
    assert [(t.doing, t.epoch, t.done, t.total) for t in told] == (
        [("taking in", 0, 32, 32)]
        if method in CLOSED_FORM
        else [("training", epoch, done, 32) for epoch in (1, 2) for done in (20, 32)]
    )
    told.clear()
    learner.evaluate(stream, watch=told.append)
    assert (told[-1].doing, told[-1].done, told[-1].total) == ("answering", 64, 64)


def test_a_watch_may_ask_and_draw(backbone: nn.Module, items: list[Experience]) -> None:
    """What it does changes no bit, and it is not told of its own questions."""
    quiet, watched, other = (make(kind, backbone) for kind in ("artsy", "artsy", "simplecil"))
    for learner in (quiet, watched):
        learner.learn(items[0])
    answers, inner = quiet.logits(items[0].test_inputs), list[BatchProgress]()

    def nosy(now: BatchProgress) -> None:
        torch.rand(3)
        if now.doing == "training" and now.done == 48:
            assert torch.equal(watched.logits(items[0].test_inputs), answers)  # without dropout
            watched.predict(items[0].test_inputs, watch=inner.append)
            if not other.classes_seen:
                other.learn(items[0])

    quiet.learn(items[1])
    watched.learn(items[1], watch=nosy)
    assert fingerprint(watched) == fingerprint(quiet)
    assert {now.doing for now in inner} == {"answering"}
