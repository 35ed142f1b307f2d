"""A stream from the numbers of the images that each experience has: labels in the order of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flexkern.streams.base import Experience, Stream
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images
from flexkern.streams.selection import names_apart, title_of

__all__ = ["assembled", "cut"]


def assembled(
    train: Images,
    test: Images,
    coming: Sequence[Mapping[int, np.ndarray]],
    tests: Mapping[int, np.ndarray],
    scenario: str = "class-incremental",
) -> Stream:
    """The stream in which experience i has the training images ``coming[i]``.

    Labels are renumbered in the order in which classes first come (within an experience, in the mapping's), so
    that the new classes of an experience are always those from the number of classes seen before on. A class's
    test images are in the experience in which it first comes.

    Args:
        train, test: labelled images.
        coming: of each experience, of each class that comes in it, the numbers of its images; none is empty.
        tests: of each class, the numbers of its test images.
        scenario: see :class:`flexkern.streams.Stream`.
    """
    order = list(dict.fromkeys(c for classes in coming for c in classes))
    label = {c: i for i, c in enumerate(order)}
    names = names_apart(train.names, order)
    # In the order of their labels, so that names and images go with them.
    shown = [sorted(classes.items(), key=lambda item: label[item[0]]) for classes in coming]
    trains = _Cut(train.images, [[(label[c], rows) for c, rows in classes] for classes in shown])
    first = {c: i for i in reversed(range(len(coming))) for c in coming[i]}
    of_test = _Cut(
        test.images, [[(label[c], tests[c]) for c in order if first[c] == i] for i in range(len(coming))]
    )
    experiences = []
    for i, classes in enumerate(shown):
        here = tuple(names[label[c]] for c, _ in classes)
        new = [names[label[c]] for c, _ in classes if first[c] == i]
        title = title_of(here) if scenario == "class-incremental" else _numbered(i, new, len(here) - len(new))
        experiences.append(Experience(title, i, *trains.of(i), *of_test.of(i), class_names=here))
    return Stream(experiences, classes=len(order), scenario=scenario)


def _numbered(i: int, new: Sequence[str], again: int) -> str:
    """The same classes may come in two experiences, which need two names."""
    parts = [title_of(new)] * bool(new) + [f"{again} again"] * bool(again)
    return f"{i + 1}: {' + '.join(parts)}"


def cut(
    images: Tensor | ImageSource, classes: Sequence[tuple[int, np.ndarray]]
) -> tuple[Tensor | ImageSource, Tensor]:
    """The images of some classes, and their labels.

    Args:
        images: all.
        classes: of each class its label, and the numbers of its images; maybe none.
    """
    rows = np.concatenate([np.arange(0), *(rows for _, rows in classes)])
    labels = np.repeat([label for label, _ in classes], [len(rows) for _, rows in classes])
    return images[torch.from_numpy(rows)], torch.from_numpy(labels.astype(np.int64))


class _Cut:
    """Images and labels of all experiences, copied once."""

    def __init__(self, images: Tensor | ImageSource, parts: Sequence[Sequence[tuple[int, np.ndarray]]]) -> None:
        self.ends = np.cumsum([0, *(sum(len(rows) for _, rows in part) for part in parts)]).tolist()
        self.images, self.labels = cut(images, [of_class for part in parts for of_class in part])

    def of(self, i: int) -> tuple[Tensor | ImageSource, Tensor]:
        """Those of experience ``i``: views."""
        here = slice(self.ends[i], self.ends[i + 1])
        return self.images[here], self.labels[here]
