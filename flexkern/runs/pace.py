"""How fast a learner is, from a piece of its work that is small beside the whole."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.learners.vit.memory_plan import bytes_of_modules
from flexkern.streams import Experience

__all__ = ["LEAST", "SHARE", "Pace", "images_trained", "network_mib", "pace", "pace_of_parts", "some"]

LEAST = 2.0
"""Seconds that a learner may be tried, however short its work is."""
SHARE = 0.1
"""Of the work that is estimated, where few tries take longer than that."""
_FIRST = 16  # images of the first piece, about
_ENOUGH = 3  # tries: one warms up, and two tell what is of an item and what of its images
_ENOUGH_PARTS = 10
_ASKED = 64  # images that are answered after some parts


class Pace(NamedTuple):
    """Seconds of a learner.

    item: for each item, whatever its size. once: for each image of an item. epoch: for each image in each
    epoch. answer: for each image that is answered.
    """

    item: float = 0.0
    once: float = 0.0
    epoch: float = 0.0
    answer: float = 0.0

    def seconds(self, *, items: int, images: int, passes: int, answers: int) -> float:
        """Of so many items with so many images in all, and so many passes over each."""
        return items * self.item + images * (self.once + passes * self.epoch) + answers * self.answer


class _Try(NamedTuple):
    """Images that were learned, and the seconds: of all but the epochs, and of one epoch."""

    images: int
    once: float
    epoch: float


def images_trained(learner: Any, sizes: Sequence[int]) -> list[int]:
    """How many images each item is trained with; ``sizes``: how many are its own."""
    return np.cumsum(sizes).tolist() if getattr(learner, "trains_on_all", False) else list(sizes)


def network_mib(learner: Any) -> float:
    """MiB of the weights of all networks that a learner has, the frozen ones too."""
    modules = [value for value in vars(learner).values() if isinstance(value, nn.Module)]
    return bytes_of_modules(modules) / 2**20


def pace(
    learner: Any,
    experience: Experience,
    epochs: int,
    whole: Callable[[Pace], float],
    prepare: Callable[[Experience], Experience] = lambda piece: piece,
) -> Pace:
    """The pace of a learner on an item.

    Copies of it learn more and more images of the item, in two epochs at most, for about :data:`LEAST` seconds;
    where that is not enough for three of them, for as long as three take, but no longer than :data:`SHARE` of
    the whole. The last one answers. What grows with the number of items is not in it.

    Args:
        learner: that has learned nothing of the item, and is left as it is.
        experience: the item.
        epochs: in which it would be learned.
        whole: the seconds of all the work, at a pace.
        prepare: makes of a piece what is learned, and does not count.

    Raises:
        ValueError, RuntimeError: if the item cannot be learned, or there is too little memory.
    """
    begin, images, tries = time.perf_counter(), _FIRST, list[_Try]()
    while True:
        before, piece = time.perf_counter(), some(experience, images)
        is_whole = len(piece.train_labels) == len(experience.train_labels)
        images *= 2
        piece, tried = prepare(piece), copy.deepcopy(learner)  # to make a new one may take seconds
        try:
            tries.append(_tried(tried, piece, min(epochs, 2)))
        except ValueError:  # too few images for it
            if is_whole:
                raise
            continue
        now = time.perf_counter()
        # The next one takes twice as long, and then come answers.
        until = now + 3 * (now - before) - begin
        if (is_whole and len(tries) > 1) or until > _budget(whole, _fitted(tries), len(tries) >= _ENOUGH):
            break
    return _fitted(tries)._replace(
        answer=_answering(tried, _tested(piece, piece.train_labels, len(piece.test_labels)))
    )


def pace_of_parts(
    learner: Any, parts: Sequence[Experience], experience: Experience, whole: Callable[[Pace], float]
) -> Pace:
    """The pace of a learner on an experience that comes in parts, each an item.

    It learns the first of them, for about :data:`LEAST` seconds or until they are ten, but no longer than
    :data:`SHARE` of the whole.

    Args:
        learner: that has learned nothing of it.
        parts: of the experience.
        experience: that they are of; what it tests is answered.
        whole: as of :func:`pace`.
    """
    begin, seconds, known = time.perf_counter(), list[float](), list[Tensor]()
    found = Pace()
    for part in parts:
        seconds.append(_timed(learner, partial(learner.learn, part, epochs=1)))
        known.append(part.train_labels)
        counted = seconds[1:] or seconds  # the first one warms up
        found = Pace(item=sum(counted) / len(counted))
        until = time.perf_counter() + found.item - begin
        if until > _budget(whole, found, len(seconds) >= _ENOUGH_PARTS):
            break
    return found._replace(answer=_answering(learner, _tested(experience, torch.cat(known), _ASKED)))


def _tested(experience: Experience, known: Tensor, most: int) -> Experience:
    """At most so many of what an experience tests, of classes that are known; else of what it trains."""
    for part in ("test", "train"):
        labels = getattr(experience, f"{part}_labels")
        rows = torch.isin(labels, known).nonzero().flatten()[: max(most, 1)]
        if len(rows):
            break
    inputs = getattr(experience, f"{part}_inputs")[rows]
    return dataclasses.replace(experience, test_inputs=inputs, test_labels=labels[rows])


def _budget(whole: Callable[[Pace], float], found: Pace, enough: bool) -> float:
    return LEAST if enough else max(LEAST, SHARE * whole(found))


def _tried(learner: Any, piece: Experience, epochs: int) -> _Try:
    ends: list[float] = []  # of epochs

    def after_epoch(_: object) -> None:
        _wait(learner)
        ends.append(time.perf_counter())

    begin = time.perf_counter()
    learner.learn(piece, epochs=epochs, progress=after_epoch)
    _wait(learner)
    end = time.perf_counter()
    # Of a single epoch nobody knows what was before it: as if it were all.
    epoch = 0.0 if not ends else ends[-1] - (ends[-2] if len(ends) > 1 else begin)
    return _Try(len(piece.train_labels), max(end - begin - len(ends) * epoch, 0.0), epoch)


def _fitted(tries: Sequence[_Try]) -> Pace:
    """What explains them best; the first one warms up."""
    counted = list(tries[1:]) or list(tries)
    images, once = (np.array([getattr(one, name) for one in counted]) for name in ("images", "once"))
    last = counted[-1]
    each, item = last.once / last.images, 0.0
    if len(set(images)) > 1:
        slope, intercept = np.polyfit(images, once, 1)
        if slope <= 0:
            each, item = 0.0, float(once.mean())
        elif intercept > 0:
            each, item = float(slope), float(intercept)
    return Pace(item, each, last.epoch / last.images)


def _answering(learner: Any, tested: Experience) -> float:
    """Seconds for each image that is answered."""
    _timed(learner, partial(learner.evaluate, [_head(tested)]))  # warms up
    return _timed(learner, partial(learner.evaluate, [tested])) / len(tested.test_labels)


def _head(experience: Experience) -> Experience:
    return dataclasses.replace(
        experience, test_inputs=experience.test_inputs[:1], test_labels=experience.test_labels[:1]
    )


def some(experience: Experience, images: int) -> Experience:
    """About so many images of an experience, as many of each class; all of a class that has fewer."""
    changes: dict[str, Any] = {}
    for part in ("train", "test"):
        labels: Tensor = getattr(experience, f"{part}_labels")
        classes = labels.unique()
        each = max(images // max(len(classes), 1), 1)
        rows = torch.cat([(labels == c).nonzero().flatten()[:each] for c in classes] or [labels[:0]])
        changes[f"{part}_inputs"] = getattr(experience, f"{part}_inputs")[rows]
        changes[f"{part}_labels"] = labels[rows]
    return dataclasses.replace(experience, **changes)


def _timed(learner: Any, work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    _wait(learner)
    return time.perf_counter() - begin


def _wait(learner: Any) -> None:
    if getattr(learner, "device", torch.device("cpu")).type == "cuda":
        torch.cuda.synchronize()
