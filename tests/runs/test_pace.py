"""A learner's pace, from a piece of its work: right where time is known, and short beside the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flexkern.runs import pace as module
from flexkern.runs.pace import LEAST, Pace, images_trained, pace, pace_of_parts, some
from flexkern.streams import Experience


class Clock:
    """Time that passes only where a learner says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Learner:
    """Takes as long as its pace says."""

    def __init__(self, clock: Clock, at: Pace, *, least: int = 1, trains: bool = True) -> None:
        self.clock, self.at, self.least, self.trains = clock, at, least, trains
        self.learned: list[int] = []
        self.copies: list[Learner] = []

    def __deepcopy__(self, _: Any) -> Learner:
        self.copies.append(Learner(self.clock, self.at, least=self.least, trains=self.trains))
        return self.copies[-1]

    def learn(
        self, experience: Experience, *, epochs: int, progress: Callable[[Any], None] | None = None
    ) -> None:
        images = len(experience.train_labels)
        if images < self.least:
            raise ValueError(f"too few images: {images}")
        self.learned.append(images)
        self.clock.now += self.at.item + images * self.at.once
        for _ in range(epochs if self.trains else 0):
            self.clock.now += images * self.at.epoch
            if progress is not None:
                progress(None)

    def evaluate(self, stream: list[Experience]) -> None:
        self.clock.now += sum(len(e.test_labels) for e in stream) * self.at.answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def item(images: int, classes: int = 4) -> Experience:
    labels = torch.arange(images) % classes
    return Experience(
        "one", 0, torch.zeros(images, 3, 2, 2), labels, torch.zeros(min(images, 40), 3, 2, 2), labels[:40]
    )


def whole(found: Pace) -> float:
    return found.seconds(items=10, images=10 * 2000, passes=20, answers=4000)


@pytest.mark.parametrize(
    "at",
    [
        Pace(item=0.05, once=0.001, epoch=0.002, answer=0.003),
        Pace(item=0.4, once=0.0, epoch=0.0, answer=0.001),  # a matrix is inverted at the end
        Pace(item=0.0, once=0.02, epoch=0.05, answer=0.01),
        Pace(item=1e-5, once=1e-6, epoch=1e-6, answer=1e-6),
    ],
)
def test_a_pace_is_found_in_a_tenth_of_the_whole(clock: Clock, at: Pace) -> None:
    learner = Learner(clock, at, trains=at.epoch > 0)
    found = pace(learner, item(2000), 20, whole)
    assert found == pytest.approx(at, rel=0.01, abs=1e-9)
    assert clock.now <= max(LEAST, 0.1 * whole(at)) * 1.01
    assert clock.now <= LEAST * 1.01 or len(learner.copies) <= 3
    assert not learner.learned


def test_too_few_images_for_it_are_more_the_next_time(clock: Clock) -> None:
    at = Pace(once=0.001, epoch=0.001, answer=0.001)
    found = pace(Learner(clock, at, least=100), item(400), 5, whole)
    assert found == pytest.approx(at)
    with pytest.raises(ValueError, match="too few images: 80"):
        pace(Learner(clock, at, least=100), item(80), 5, whole)


def test_what_is_prepared_does_not_count(clock: Clock) -> None:
    at = Pace(once=0.001, answer=0.001)

    def prepare(piece: Experience) -> Experience:
        clock.now += 0.01 * len(piece.train_labels)
        return piece

    assert pace(Learner(clock, at, trains=False), item(400), 1, whole, prepare) == pytest.approx(at)
    assert clock.now < 10


def test_parts_of_an_online_stream(clock: Clock) -> None:
    parts = [item(10) for _ in range(60)]
    for seconds, learned in ((0.001, 60), (0.1, 20), (1.0, 6)):  # all, for two seconds, a tenth
        one, before = Learner(clock, Pace(item=seconds, answer=0.001)), clock.now
        found = pace_of_parts(
            one, parts, parts[0], lambda p: p.seconds(items=60, images=0, passes=1, answers=0)
        )
        assert found == pytest.approx(one.at)
        assert len(one.learned) == pytest.approx(learned, abs=1)
        assert clock.now - before <= max(LEAST, 6) + 0.1


def test_joint_training_learns_all_again() -> None:
    assert images_trained(SimpleNamespace(), [3, 4, 5]) == [3, 4, 5]
    assert images_trained(SimpleNamespace(trains_on_all=True), [3, 4, 5]) == [3, 7, 12]


def test_some_images_of_each_class() -> None:
    e = item(100, classes=10)
    piece = some(e, 20)
    assert piece.train_labels.bincount().tolist() == [2] * 10
    assert piece.test_labels.bincount().tolist() == [2] * 10
    assert len(some(e, 1).train_labels) == 10
    assert len(some(e, 1000).train_labels) == 100
    assert len(some(e, 1000).test_labels) == 40


def test_time_is_waited_for() -> None:
    """And the real clock."""
    found = pace(Slow(), item(8), 1, whole)
    assert found.once * 8 + found.item == pytest.approx(0.02, rel=0.5)


class Slow(Learner):
    def __init__(self) -> None:
        super().__init__(Clock(), Pace())

    def __deepcopy__(self, _: Any) -> Slow:
        return Slow()

    def learn(
        self, experience: Experience, *, epochs: int, progress: Callable[[Any], None] | None = None
    ) -> None:
        time.sleep(0.02)
