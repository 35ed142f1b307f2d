"""A stream in small parts: each image is seen once, one or a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import whole_number
from flexkern.spec.argument import shown
from flexkern.streams.base import Experience, Stream

__all__ = ["OnlineStream", "Parts", "online"]

_ORDER = 35  # first number of generators' seeds


def online(stream: Stream, *, batch_size: int = 1, seed: int = 1993) -> OnlineStream:
    """A stream whose images come one or a few at a time, each once; it is tested at its experiences' ends.

    ::

        stream = online(blurry(train, test, tasks=5), batch_size=10)
        for i, experience in enumerate(stream):
            for part in stream.parts(i):
                learner.learn(part, epochs=1)
            learner.evaluate([e for e in stream[: i + 1] if len(e.test_labels)])

    The seed decides the order of the images in each experience. **Labels are renumbered** in the order in which
    classes first come, image after image, so that the new classes of any part are those from the number of
    classes seen so far on, without gaps; the experiences of the stream that is returned have these labels too,
    and the same inputs: no image is copied or decoded.

    Args:
        stream: any stream.
        batch_size: images of a part, at least 1; the last part of an experience may have fewer.
        seed: of the order of the images, at least 0.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(stream, Stream):
        raise TypeError(f"stream must be a Stream, got {shown(stream)}")
    if isinstance(stream, OnlineStream):
        raise ValueError("stream is online already")
    batch_size = whole_number(batch_size, "batch_size")
    seed = whole_number(seed, "seed", least=0)
    orders = [np.random.default_rng([_ORDER, seed, e.number]).permutation(len(e.train_labels)) for e in stream]
    label = _by_first_time(stream, orders)
    experiences = []
    for e in stream:
        names = _renamed(e, label)
        changed = [label.to(y.device)[y] for y in (e.train_labels, e.test_labels)]
        experiences.append(replace(e, train_labels=changed[0], test_labels=changed[1], class_names=names))
    return OnlineStream(experiences, stream.classes, orders, batch_size, stream.scenario)


class OnlineStream(Stream):
    """What :func:`online` makes: the experiences of a stream, and the parts in which each comes.

    Attributes:
        scenario: "online".
        of: what the stream is that comes in parts, as "blurry".
        batch_size: images of a part.
    """

    def __init__(
        self,
        experiences: Sequence[Experience],
        classes: int,
        orders: Sequence[np.ndarray],
        batch_size: int,
        of: str,
    ) -> None:
        super().__init__(experiences, classes, scenario="online")
        self.batch_size, self.of, self._orders = batch_size, of, tuple(orders)
        self._names = self.class_names if any(e.class_names for e in self) else []

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, of {self.of}, {self.batch_size} at a time>"

    def with_experiences(self, experiences: Sequence[Experience]) -> OnlineStream:
        """The same parts of the same experiences, with other inputs: of features, for example.

        Raises:
            ValueError: if an experience has not as many training inputs as its own.
        """
        counts = [len(e.train_labels) for e in experiences]
        if counts != [len(order) for order in self._orders]:
            raise ValueError("experiences must have as many training inputs as those of this stream")
        return OnlineStream(experiences, self.classes, self._orders, self.batch_size, self.of)

    def parts(self, experience: int) -> Parts:
        """The parts of experience number ``experience``, in the order in which they come.

        Raises:
            TypeError: if it is no whole number.
            IndexError: if there is no such experience.
        """
        i = whole_number(experience, "experience", least=None)
        if not -len(self) <= i < len(self):
            raise IndexError(f"experience {i} of a stream of {len(self)}")
        i %= len(self)
        before = sum(-(-len(order) // self.batch_size) for order in self._orders[:i])
        return Parts(self[i], self._orders[i], self.batch_size, before, self._names)


class Parts(Sequence[Experience]):
    """The parts of an experience, each made when it is asked for: an :class:`Experience` without test inputs.

    ``parts[k]`` is part k, and ``parts[k:]`` those from it on: for a run that goes on. A part's number is its
    place in the whole stream, which is ``items_learned`` of a learner that has learned all before it. Its
    training inputs are a tensor of ``batch_size`` images, or a source of them.
    """

    def __init__(
        self,
        experience: Experience,
        order: np.ndarray,
        batch_size: int,
        before: int,
        names: Sequence[str],
        which: range | None = None,
    ) -> None:
        self._experience, self._order, self._batch_size, self._before = experience, order, batch_size, before
        self._names = names
        self._which = range(-(-len(order) // batch_size)) if which is None else which

    def __len__(self) -> int:
        return len(self._which)

    def __repr__(self) -> str:
        return f"<{len(self)} parts of {self._experience!r}, {self._batch_size} at a time>"

    @overload
    def __getitem__(self, index: int) -> Experience: ...
    @overload
    def __getitem__(self, index: slice) -> Parts: ...
    def __getitem__(self, index: int | slice) -> Experience | Parts:
        e = self._experience
        if isinstance(index, slice):
            return Parts(e, self._order, self._batch_size, self._before, self._names, self._which[index])
        number = self._which[index]
        begin = number * self._batch_size
        rows = torch.from_numpy(self._order[begin : begin + self._batch_size])
        labels = e.train_labels[rows.to(e.train_labels.device)]
        names = tuple(self._names[c] for c in labels.unique().tolist()) if self._names else ()
        return Experience(
            f"{e.name}, part {number + 1}",
            self._before + number,
            e.train_inputs[rows],
            labels,
            e.test_inputs[:0],
            e.test_labels[:0],
            class_names=names,
        )

    def __iter__(self) -> Iterator[Experience]:
        return (self[i] for i in range(len(self)))


def _by_first_time(stream: Stream, orders: Sequence[np.ndarray]) -> Tensor:
    """int64 [classes]: the new label of each; those of which no training image comes are the last."""
    coming = np.concatenate(
        [e.train_labels.numpy(force=True)[order] for e, order in zip(stream, orders, strict=True)]
    )
    there, first = np.unique(coming, return_index=True)
    order = there[np.argsort(first)]
    rest = np.setdiff1d(np.arange(stream.classes), there)
    label = np.empty(stream.classes, dtype=np.int64)
    label[np.concatenate([order, rest])] = np.arange(stream.classes)
    return torch.from_numpy(label)


def _renamed(experience: Experience, label: Tensor) -> tuple[str, ...]:
    """The experience's names in the order of the new labels, where it is known whose each is."""
    for labels in (experience.test_labels, experience.train_labels):  # as Stream.class_names
        classes = labels.unique().tolist()
        if len(classes) == len(experience.class_names):
            names = dict(zip(classes, experience.class_names, strict=True))
            return tuple(names[c] for c in sorted(classes, key=lambda c: int(label[c])))
    return ()
