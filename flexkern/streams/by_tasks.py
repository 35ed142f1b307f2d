"""Experiences of the classes that somebody names, some at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import nearest, whole_number
from flexkern.streams.base import Experience
from flexkern.streams.class_incremental import title_of
from flexkern.streams.packs import Images

__all__ = ["by_tasks", "numbers_of"]


def by_tasks(
    train: Images,
    test: Images,
    tasks: Sequence[Sequence[str]],
    *,
    first_class: int = 0,
    first_number: int = 0,
) -> list[Experience]:
    """An experience for each task, with the images of the classes that are named, in that order.

    For a learner that goes on with new classes, ``first_class`` is its ``classes_seen`` and ``first_number``
    its ``items_learned``; for one that begins, they are 0. Classes that no task names take no part. A source's
    images are not decoded.

    Args:
        train, test: labelled images with the names of their classes, as
            :func:`flexkern.streams.image_folders` gives them.
        tasks: names of classes; each class at most once, each task with one at least.
        first_class: the number of the first class.
        first_number: that of the first experience.

    Raises:
        TypeError: if tasks are no lists of names.
        ValueError: naming the task, if a class is not known, or twice there; or naming the class, if it has no
            images.
    """
    first_class = whole_number(first_class, "first_class", least=0)
    first_number = whole_number(first_number, "first_number", least=0)
    numbers = numbers_of(tasks, train.names)
    experiences = []
    for i, classes in enumerate(numbers):
        names = tuple(train.names[c] for c in classes)
        parts = [_part(images, part, classes, names, first_class)
                 for images, part in ((train, "train"), (test, "test"))]  # fmt: skip
        experiences.append(
            Experience(title_of(names), first_number + i, *parts[0], *parts[1], class_names=names)
        )
        first_class += len(classes)
    return experiences


def numbers_of(tasks: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """The classes of each task as numbers of ``names``.

    A name is found in another of Unicode's spellings too: a file system may have "ü" as two characters.

    Raises:
        TypeError, ValueError: as :func:`by_tasks`.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a list of lists of names of classes, got {tasks!r}")
    known = {name: i for i, name in enumerate(names)}
    plain = {unicodedata.normalize("NFC", name): i for i, name in enumerate(names)}
    seen: dict[int, int] = {}
    numbers: list[list[int]] = []
    for t, task in enumerate(tasks):
        if isinstance(task, str) or not isinstance(task, Iterable):
            raise TypeError(f"tasks[{t}] must be a list of names of classes, got {task!r}")
        numbers.append([])
        for name in task:
            if not isinstance(name, str):
                raise TypeError(f"tasks[{t}] must be names of classes, got {name!r}")
            number = known.get(name, plain.get(unicodedata.normalize("NFC", name)))
            if number is None:
                raise ValueError(
                    f"tasks[{t}]: there is no class {name!r}{nearest(name, names) or _some(names)}"
                )
            if number in seen:
                where = "twice" if seen[number] == t else f"in tasks[{seen[number]}] too"
                raise ValueError(f"tasks[{t}]: class {name!r} is there {where}; a class is learned once")
            seen[number] = t
            numbers[-1].append(number)
        if not numbers[-1]:
            raise ValueError(f"tasks[{t}] names no class; leave it out")
    if not numbers:
        raise ValueError("tasks names no task")
    return numbers


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"; there are {shown}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _part(
    images: Images, part: str, classes: Sequence[int], names: Sequence[str], first: int
) -> tuple[Any, Tensor]:
    labels = images.labels.numpy()
    rows = [np.flatnonzero(labels == c) for c in classes]
    for name, of_class in zip(names, rows, strict=True):
        if not len(of_class):
            raise ValueError(f"{part}: there are no images of class {name!r}")
    renumbered = np.repeat(np.arange(first, first + len(classes)), [len(r) for r in rows])
    return images.images[torch.from_numpy(np.concatenate(rows))], torch.from_numpy(renumbered)
