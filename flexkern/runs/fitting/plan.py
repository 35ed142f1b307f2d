"""What a fit would do, and about how long it would take; nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from flexkern.files import check_writable
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.runs.fitting.fit_config import FitConfig
from flexkern.runs.fitting.fit_rows import method_of
from flexkern.runs.fitting.preparing import check_fits, memory_of, prepared
from flexkern.runs.fitting.run import MOST_TEST, MOST_TRAIN
from flexkern.runs.pace import Pace, images_trained, pace
from flexkern.runs.start import path_given
from flexkern.streams import Experience
from flexkern.streams.image_source import ImageSource

__all__ = ["Plan", "plan"]


class Plan(NamedTuple):
    """A fit that would be.

    record: as of a fit, before it goes on. tasks: classes of each that is left, images to learn, and to test.
    method, device, epochs: of the learner. memory: that it takes at its fullest moment. images_mib: of the
    images that are kept decoded at once, at most. images_seconds: until all images are decoded as often as they
    are; seconds: for the rest, None if that could not be measured, ``why`` not.
    """

    record: dict[str, Any]
    tasks: list[tuple[int, int, int]]
    method: str
    device: str
    epochs: int
    memory: MemoryPlan
    images_mib: float
    images_seconds: float
    seconds: float | None
    why: str = ""


def plan(config: FitConfig, *, restart: bool = False, observe: Callable[[str], None] = lambda _: None) -> Plan:
    """Looks at all that a fit looks at before it begins, but that all images can be decoded, and measures the
    learner on some images of the first task, as :mod:`flexkern.runs.pace` does it.

    Args:
        config, restart: of a fit.
        observe: told what is done.

    Raises:
        TypeError, ValueError, OSError: as a fit.
    """
    config.check()
    out = path_given(config.out, "out")
    check_writable(out)
    observe("looking at the images")
    found = prepared(config, out, restart=restart)
    if not found.begun:
        check_fits(found)
    learner, done = found.learner, len(found.record["tasks"])
    left = range(done, len(found.tasks))
    epochs = config.epochs or int(learner.default_epochs)
    trained = images_trained(learner, [len(e.train_labels) for e in found.tasks])
    tests = [len(e.test_labels) for e in found.before], [len(e.test_labels) for e in found.tasks]

    def whole(found: Pace) -> float:
        return found.seconds(
            items=len(left),
            images=sum(trained[i] for i in left),
            passes=epochs,
            answers=sum(sum(tests[0]) + sum(tests[1][: i + 1]) for i in left),
        )

    first = found.tasks[0]
    decoding = _Decoding(in_memory=first.train_inputs.shape.numel() <= MOST_TRAIN)
    seconds: float | None = 0.0
    why = ""
    if left:
        observe("measuring")
        fresh = found.make() if found.begun else learner
        try:
            seconds = whole(pace(fresh, first, epochs, whole, decoding.decoded))
        except (ValueError, RuntimeError) as error:  # too few images for it, or too little memory
            seconds, why = None, str(error)
    # Each once, and before that once more to find out whether it can be.
    images = sum(tests[0]) + sum(tests[1])
    if decoding.in_memory:  # else they are decoded in each epoch, and that is measured with it
        images += sum(len(found.tasks[i].train_labels) for i in left)
    if not found.begun and config.broken == "raise":
        images += sum(map(len, found.sources))
    return Plan(
        found.record,
        [(len(e.class_names), len(e.train_labels), len(e.test_labels)) for e in (found.tasks[i] for i in left)],
        method_of(found.record),
        str(learner.device),
        epochs,
        memory_of(found),
        _kept(found.tasks, found.before) / 2**20,
        images * decoding.each if left else 0.0,
        seconds,
        why,
    )


class _Decoding:
    """Decodes what a fit would decode once, and knows the seconds for an image.

    Args:
        in_memory: whether a task's images are kept decoded while it is learned, and not those of tests alone.
    """

    def __init__(self, *, in_memory: bool) -> None:
        self.in_memory, self.each = in_memory, 0.0

    def decoded(self, piece: Experience) -> Experience:
        begin, parts, count = time.perf_counter(), dict[str, Any](), 0
        for part in ("train", "test") if self.in_memory else ("test",):
            images = getattr(piece, f"{part}_inputs")
            parts[f"{part}_inputs"] = images.tensor() if isinstance(images, ImageSource) else images
            count += len(images)
        self.each = (time.perf_counter() - begin) / max(count, 1)
        return dataclasses.replace(piece, **parts)


def _kept(tasks: list[Experience], before: list[Experience]) -> int:
    """Bytes of the images that are kept decoded at once, at most."""
    train = [e.train_inputs.shape.numel() for e in tasks]
    tests = [e.test_inputs.shape.numel() for e in (*before, *tasks)]
    return max((b for b in train if b <= MOST_TRAIN), default=0) + min(sum(tests), MOST_TEST)
