"""The beginning and the end of an item are all or nothing, wherever they are interrupted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.learners import METHODS, MLP_METHODS, load_learner, make_learner
from flexkern.streams import Experience
from helpers import tiny_vit
from helpers.learner_state import fingerprint, interrupted, lines_of
from helpers.mlp_blobs import CLASSES, QUICK, SIZE, blobs

GATES: dict[str, dict[str, Any]] = {
    "mlp": {"gate": "mlp", "hidden": 4},
    "mlp, replay": {"gate": "mlp", "hidden": 4, "negatives": "replay", "threshold": "quantile", "keep": 4},
    "energy": {"gate": "energy"},
    "knn": {"gate": "knn", "threshold": "adaptive"},
    "mahalanobis": {"gate": "mahalanobis"},
    "likelihood_ratio": {"gate": "likelihood_ratio"},
    "ridge": {"gate": "ridge", "features": 16},
    "oracle": {"gate": "oracle"},
}
VIT: dict[str, dict[str, Any]] = {
    **{f"artsy, {name}": {"gate": gate} for name, gate in GATES.items()},
    "artsy, experts": {"head": "experts", "evidence": "class+mean", "gate": GATES["ridge"]},
    "artsy, sum": {"combine": "sum", "gate": GATES["mlp"]},
    "ranpac": {"features": 16},
    **{method: {} for method in METHODS if method not in ("artsy", "ranpac")},
}
MLP: dict[str, dict[str, Any]] = {
    **{method: QUICK.get(method, {}) for method in MLP_METHODS},
    "metaplastic, gated": {"output_gate": "frequency"},
    "metaplastic, reserve": {"silent_fraction": 0.5, "threshold": 0.5, "prune": 1e-4},
    "metaplastic, fused": {"fused_step": True, "gate": "step"},
}


@pytest.fixture(scope="module")
def backbone() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


pytestmark = pytest.mark.usefixtures("one_thread")


def short(experience: Experience, count: int = 24) -> Experience:
    # Half of each class.
    rows = torch.cat([(experience.train_labels == c).nonzero().flatten()[: count // 2]
                      for c in experience.train_labels.unique()])  # fmt: skip
    return dataclasses.replace(
        experience, train_inputs=experience.train_inputs[rows], train_labels=experience.train_labels[rows]
    )


def before_the_end(learner: Any, experience: Experience) -> Any:
    """Learns all epochs of an experience; what ends it fails at once."""
    end = learner._end

    def fail(*_: Any) -> None:
        raise MemoryError

    learner._end = fail
    with pytest.raises(MemoryError):
        learner.learn(experience, epochs=1)
    learner._end = end
    del learner._end
    return learner


def check_every_interrupt(
    learner: Any, experience: Experience, again: Callable[[Any], Any], points: int, errors: Any
) -> None:
    """Interrupts the learning of an experience at some of its lines; each time, nothing or all was done."""
    straight, lines = again(learner), list[int]()
    x = experience.test_inputs
    with lines_of(lines):
        straight.learn(experience, epochs=1)
    before, after = fingerprint(learner), fingerprint(straight)
    assert before != after
    undone = 0
    # An oracle has to be told.
    told = {"task": torch.zeros(len(x), dtype=torch.int64)} if learner.family == "vit" else {}
    answers = learner.logits(x, **told)
    for number, line in enumerate(np.unique(np.linspace(0, lines[0] - 1, points).astype(int)).tolist()):
        stopped, error = again(learner), errors[number % len(errors)]
        where = ""  # some lines may fail: they have another way
        try:
            with interrupted(line, error):
                stopped.learn(experience, epochs=1)
        except error as raised:
            where = str(raised)
        now = fingerprint(stopped)
        assert now in (before, after) if where else now == after, where
        if now == after:
            continue
        undone += 1
        assert torch.equal(stopped.logits(x, **told), answers), where
        stopped.learn(experience, epochs=1)
        assert fingerprint(stopped) == after, where
    assert undone > points // 3


ERRORS = (KeyboardInterrupt, MemoryError, RuntimeError)


@pytest.mark.parametrize("name", MLP)
def test_the_end_of_an_item_on_a_perceptron(name: str, tmp_path: Path) -> None:
    stream = blobs(2, per_class=16)
    learner = MLP_METHODS[name.split(",")[0]]((SIZE,), CLASSES, widths=(8, 6), lr=0.05, **MLP[name])
    learner.learn(stream[0], epochs=1)
    before_the_end(learner, stream[1])
    check_every_interrupt(learner, stream[1], copy.deepcopy, 40, ERRORS)


@pytest.mark.parametrize("name", VIT)
def test_the_end_of_a_task_on_a_transformer(name: str, backbone: Any, tmp_path: Path) -> None:
    given = [short(e) for e in tiny_vit.stream()][:2]
    method = name.split(",")[0]
    options = {"epochs": 1, "batch_size": 24, **({"rank": 2} if method in ("artsy", "ease") else {})}
    learner = make_learner(method, backbone, **options, **VIT[name])
    learner.learn(given[0])
    before_the_end(learner, given[1])
    path = tmp_path / "learner.safetensors"
    learner.save(path)
    again = lambda _: load_learner(path, backbone=backbone)  # noqa: E731 - and so saving and loading works too
    assert fingerprint(again(learner)) == fingerprint(learner)
    check_every_interrupt(learner, given[1], again, 16, ERRORS)


@pytest.mark.parametrize("name", ["artsy, mlp", "finetune", "joint", "simplecil"])
def test_the_beginning_of_a_task(name: str, backbone: Any, tmp_path: Path) -> None:
    """The first lines of an experience: of its checks, and of what it makes room for."""
    given = [short(e) for e in tiny_vit.stream()][:2]
    method = name.split(",")[0]
    options = {"epochs": 1, "batch_size": 24, **({"rank": 2} if method == "artsy" else {})}
    learner = make_learner(method, backbone, **options, **VIT[name])
    learner.learn(given[0])
    path = tmp_path / "learner.safetensors"
    learner.save(path)
    straight, before = load_learner(path, backbone=backbone), fingerprint(learner)
    lines = list[int]()
    with lines_of(lines), straight._undo():
        straight._check(given[1])
        straight._take_up(given[1], 1)
    straight = load_learner(path, backbone=backbone)
    straight.learn(given[1])
    after = fingerprint(straight)
    for line in np.unique(np.linspace(0, lines[0] - 1, 16).astype(int)).tolist():
        stopped = load_learner(path, backbone=backbone)
        with pytest.raises(KeyboardInterrupt) as raised, interrupted(line, KeyboardInterrupt):
            stopped.learn(given[1])
        assert fingerprint(stopped) == before or stopped._begun is not None, str(raised.value)
        stopped.learn(given[1])
        assert fingerprint(stopped) == after, str(raised.value)


def test_a_second_interrupt_while_it_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = blobs(2, per_class=16)
    learner = MLP_METHODS["si"]((SIZE,), CLASSES, widths=(8, 6))
    learner.learn(stream[0], epochs=1)
    before_the_end(learner, stream[1])
    before = fingerprint(learner)
    from flexkern.nn.undo import Undo

    put_back, calls = Undo.put_back, []

    def once_more(self: Undo) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        put_back(self)

    monkeypatch.setattr(Undo, "put_back", once_more)
    monkeypatch.setattr(learner.optimizer, "consolidate", _fail)
    with pytest.raises(OSError, match="disk"):
        learner.learn(stream[1], epochs=1)
    monkeypatch.undo()
    assert len(calls) == 2
    assert fingerprint(learner) == before


def _fail() -> None:
    raise OSError("disk")


@pytest.mark.parametrize("name", ["metaplastic", "metaplastic, fused", "si", "replay"])
def test_stopped_in_the_middle_of_an_epoch(name: str) -> None:
    """Sound, and goes on; a checkpoint from before gives the bits of a run without the stop."""
    stream = blobs(2, per_class=16)
    learner = MLP_METHODS[name.split(",")[0]](
        (SIZE,), CLASSES, widths=(8, 6), lr=0.05, batch_size=8, **MLP[name],
        **({"strength": 0.1} if name == "si" else {}),
    )  # fmt: skip
    straight = copy.deepcopy(learner)
    step, taken = learner.optimizer.step, []

    def stop() -> Any:
        taken.append(None)
        if len(taken) == 7:  # of four in each epoch
            raise KeyboardInterrupt
        return step()

    learner.optimizer.step = stop
    with pytest.raises(KeyboardInterrupt):
        learner.learn(stream[0], epochs=3)
    del learner.optimizer.step
    assert learner._progress()["epochs_done"] == 1
    assert learner.predict(stream[0].test_inputs).shape == stream[0].test_labels.shape
    losses = []
    learner.learn(stream[0], epochs=3, progress=losses.append)
    assert [p.epoch for p in losses] == [2, 3]
    assert learner.items_learned == 1
    straight.learn(stream[0], epochs=3)
    assert fingerprint(learner) != fingerprint(straight)
    learner.learn(stream[1], epochs=30)
    assert learner.evaluate(stream[:2]).accuracies[1] > 0.8


def test_adapters_stopped_in_the_middle_of_an_epoch(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [short(e) for e in tiny_vit.stream()][:2]
    learner = make_learner("artsy", backbone, epochs=3, batch_size=8, rank=2, gate=GATES["mlp"])
    learner.learn(given[0])
    expected = learner.logits(given[0].test_inputs)
    taken, step = [], torch.optim.SGD.step

    def stop(self: Any, *args: Any) -> Any:
        taken.append(None)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(given[1])
    # It answers as before the task, without dropout.
    assert torch.equal(learner.logits(given[0].test_inputs), expected)
    learner.learn(given[1])
    assert learner.classes_seen == 4
    assert learner._training is None
