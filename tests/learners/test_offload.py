"""Learners whose adapters lie in the host's memory or on disk: as those that have them all on the device."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern.learners import ArtsyViT, load_learner, make_learner
from flexkern.nn import PagedAdapterBank
from flexkern.streams import Experience, Stream
from helpers import tiny_vit

OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 32, "rank": 2, "images_per_pass": 7}
METHODS: dict[str, dict[str, Any]] = {"artsy-best": {"holdout": 0.0}, "ease": {}, "artsy": {"combine": "sum"}}


def made(method: str, **options: Any) -> Any:
    return make_learner(method, tiny_vit.backbone(), **{**OPTIONS, **METHODS[method], **options})


@pytest.fixture(scope="module")
def stream() -> Stream:
    short = [
        dataclasses.replace(
            e, train_inputs=e.train_inputs[:20], train_labels=e.train_labels[:20],
            test_inputs=e.test_inputs[:9], test_labels=e.test_labels[:9],
        )
        for e in tiny_vit.stream(10)
    ]  # fmt: skip
    return Stream(short, 10)


def learned(learner: Any, stream: Stream) -> list[Tensor]:
    found = []
    for experience in stream:
        learner.learn(experience)
        found += [learner.logits(other.test_inputs) for other in stream]
    return found


def state(learner: Any) -> dict[str, Tensor]:
    return learner._modules().state_dict()


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_of_more_tasks_than_slots(method: str, stream: Stream, tmp_path: Path) -> None:
    """To the bit; either kind loads the file of the other, in the middle of a task, and goes on as it does."""
    x, halves = stream[0].test_inputs, (Stream(stream[:4], 10), stream[4])
    whole, paged = made(method), made(method, offload="disk", resident_tasks=2)
    assert isinstance(paged.bank, PagedAdapterBank)
    assert paged.bank.resident_tasks == 2
    for a, b in zip(learned(whole, halves[0]), learned(paged, halves[0]), strict=True):
        assert torch.equal(a, b)
    for learner in (whole, paged):
        with pytest.raises(InterruptedError):
            learner.learn(halves[1], epochs=2, progress=stop)
    assert same(state(whole), state(paged))
    others = [copy.deepcopy(paged), pickle.loads(pickle.dumps(paged))]
    for name, learner in (("whole", whole), ("paged", paged)):
        learner.save(tmp_path / name)
    backbone = tiny_vit.backbone()
    others += [
        load_learner(tmp_path / "whole", backbone=backbone, offload="cpu", resident_tasks=1),
        load_learner(tmp_path / "paged", backbone=backbone, offload="none"),
        load_learner(tmp_path / "paged", backbone=backbone),
    ]
    assert [getattr(o.bank, "offload", "none") for o in others] == ["disk", "disk", "cpu", "none", "disk"]
    for learner in (whole, *others):
        learner.learn(halves[1], epochs=2)
        assert same(state(learner), state(whole))
        assert torch.equal(learner.logits(x), whole.logits(x))


def stop(_: Any) -> None:
    raise InterruptedError


def test_a_checkpoint_of_the_default_says_nothing_new(stream: Stream, tmp_path: Path) -> None:
    assert not {"offload", "resident_tasks"} & set(made("artsy").configuration())
    paged = made("artsy", offload="cpu", resident_tasks=3).configuration()
    assert (paged["offload"], paged["resident_tasks"]) == ("cpu", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "host"}, "offload must be"),
        ({"offload": "cpu", "resident_tasks": 0}, "resident_tasks must be at least 1, got 0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("artsy", **options)


@pytest.mark.slow
def test_a_thousand_tasks_in_the_memory_of_a_few() -> None:
    """What the bank has where it computes stays what it was with the first task."""
    tasks = 1000
    rng = np.random.default_rng(0)
    colours = torch.from_numpy(rng.integers(0, 256, (tasks, 3, 1, 1), dtype=np.uint8)).expand(-1, -1, 16, 16)
    learner = ArtsyViT.make(
        tiny_vit.backbone(), rank=2, epochs=1, batch_size=2, head="experts",
        gate={"gate": "lda", "gating": "topk"},
        calibration_images=0, offload="cpu", resident_tasks=4,
    )  # fmt: skip
    sizes = set()
    for task in range(tasks):
        x, y = colours[task].repeat(2, 1, 1, 1), torch.full((2,), task)
        learner.learn(Experience(str(task), task, x, y, x[:0], y[:0]))
        sizes.add(sum(t.untyped_storage().nbytes() for one in learner.bank._stacks for t in one.values()))
    assert sizes == {4 * 4 * learner.bank.parameters_per_task}
    assert len(learner.predict(colours[:64])) == 64
