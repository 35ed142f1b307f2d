"""Class-incremental streams: a data set's classes, some at a time (B0-IncN, Bm-IncN)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import whole_number
from flexkern.spec.argument import shown
from flexkern.streams.base import Experience, Stream
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images

__all__ = ["class_incremental", "class_order", "title_of"]

_TRAIN, _TEST = range(2)  # first number of a generator's seed, so that the two draw different numbers
_SHOWN = 10  # an experience of more classes than this is named by its first ones


def class_order(classes: Sequence[int], seed: int = 1993) -> list[int]:
    """The order in which classes are learned: NumPy's legacy ``RandomState(seed).permutation``.

    It is what PILOT, EASE and their predecessors do. Seed 1993 and 100 classes: it begins 68, 56, 78, 8, 23.

    Raises:
        TypeError, ValueError: if the seed is no whole number under 2**32.
    """
    seed = whole_number(seed, "seed", least=0, most=2**32 - 1)
    return [classes[i] for i in np.random.RandomState(seed).permutation(len(classes))]


def class_incremental(
    train: Images,
    test: Images,
    *,
    increment: int,
    base: int = 0,
    order: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 1993,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> Stream:
    """A stream whose experiences each bring new classes, and training and test images of them only.

    B0-IncN has ``base=0``: N classes in each experience. Bm-IncN has ``base=m``: m classes first, then N at a
    time. If the rest does not divide by N, the last experience has fewer.

    **Labels are renumbered**: the class that is learned first is 0, and so on, so that the classes seen so far
    are always 0 to k - 1: ``stream.class_names[label]`` is the name of one of them, ``train.names[label]`` is
    that of another class. Two classes that the data set gives one name have their own labels added to it. All
    images that take part are copied once, and the experiences' inputs are parts of that copy; of a source
    nothing is decoded, and the inputs are sources.

    Args:
        train, test: labelled images, as :func:`flexkern.streams.image_folders` and ``image_pack`` give them, or
            :func:`flexkern.streams.images_of` for any other data set; in memory or sources.
        increment: classes of an experience, at least 1.
        base: classes of the first experience; 0: as many as in the others.
        order: labels in the order of learning. Only these classes take part.
        classes: labels that take part, in an order that the seed decides (:func:`class_order`). Default: all
            that ``train`` has images of.
        seed: of the order, and of the choice of images.
        train_per_class, test_per_class: so many images of each class, chosen by the seed. Default: all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an argument is outside its range, or a class has no, or too few, images.
    """
    increment = whole_number(increment, "increment")
    base = whole_number(base, "base", least=0)
    seed = whole_number(seed, "seed", least=0)
    if train_per_class is not None:
        train_per_class = whole_number(train_per_class, "train_per_class")
    if test_per_class is not None:
        test_per_class = whole_number(test_per_class, "test_per_class")
    if order is not None and classes is not None:
        raise ValueError("order and classes exclude each other: order says which classes take part")
    for name, images in (("train", train), ("test", test)):
        _check_images(images, name)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        raise ValueError(f"test: its images must be of the size of the training images, got {shapes}")
    if order is not None:
        chosen = _numbers(order, "order")
    elif classes is not None:
        chosen = class_order(_numbers(classes, "classes"), seed)
    else:
        chosen = class_order(train.labels.unique().tolist(), seed)
    _check_order(chosen, "order" if classes is None else "classes", train)
    if base > len(chosen):
        raise ValueError(f"base is {base}, but only {len(chosen)} classes take part")

    parts = [
        _Part(train, chosen, train_per_class, "train", [_TRAIN, seed]),
        _Part(test, chosen, test_per_class, "test", [_TEST, seed]),
    ]
    named = _class_names(train.names, chosen)
    bounds = _bounds(len(chosen), base, increment)
    experiences = []
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        names = tuple(named[first:end])
        train_part, test_part = (part.of(first, end) for part in parts)
        experiences.append(Experience(title_of(names), number, *train_part, *test_part, class_names=names))
    return Stream(experiences, classes=len(chosen))


def _numbers(classes: Any, name: str) -> list[int]:
    given = classes.tolist() if hasattr(classes, "tolist") else classes
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of labels, got {shown(classes)}")
    return [whole_number(c, f"{name}[{i}]", least=None) for i, c in enumerate(given)]


def _check_images(images: Any, name: str) -> None:
    if not all(hasattr(images, part) for part in ("images", "labels", "names")):
        raise TypeError(
            f"{name} must be labelled images, got {type(images).__name__}; flexkern.streams.images_of makes "
            "them of a data set"
        )
    x, y = images.images, images.labels
    if not isinstance(x, (Tensor, ImageSource)) or not len(x.shape):
        raise TypeError(f"{name}: its images must be a tensor [n, ...] or a source of images, got {shown(x)}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}: its labels must be int64 [{len(x)}], one for each image, got {got}")
    if y.numel() and int(y.min()) < 0:
        raise ValueError(f"{name}: its labels must be at least 0, got {int(y.min())}; leave out what has none")


def _check_order(order: Sequence[int], name: str, train: Images) -> None:
    if not order:
        raise ValueError(f"{name} must name at least one class")
    if len(set(order)) < len(order):
        twice = next(c for i, c in enumerate(order) if c in order[:i])
        raise ValueError(f"{name} must name each class once, got {twice} twice")
    missing = sorted(set(order) - set(train.labels.unique().tolist()))
    if missing:
        raise ValueError(f"{name}: there are no training images of class {', '.join(map(str, missing[:5]))}")


def _class_names(names: Sequence[str], order: Sequence[int]) -> list[str]:
    """Of the classes in their order, no two alike: to a name that two have, the label is added."""
    found = [(names[c] if 0 <= c < len(names) else "") or str(c) for c in order]
    counts = Counter(found)
    return [f"{name} ({c})" if counts[name] > 1 else name for name, c in zip(found, order, strict=True)]


def _bounds(classes: int, base: int, increment: int) -> list[int]:
    """Where the classes of each experience begin, and where the last one's end."""
    first = min(base or increment, classes)
    return [0, *range(first, classes, increment), classes]


def title_of(names: Sequence[str]) -> str:
    """What an experience of these classes is called."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more"


class _Part:
    """Images and new labels, class after class in the order of learning, and where each class begins."""

    def __init__(
        self, images: Images, order: Sequence[int], per_class: int | None, part: str, seed: list[int]
    ) -> None:
        labels = images.labels.numpy(force=True)
        by_class = np.argsort(labels, kind="stable")  # image numbers, class after class, rising within a class
        starts = np.searchsorted(labels[by_class], np.array(order))
        ends = np.searchsorted(labels[by_class], np.array(order), side="right")
        rows = []
        for c, start, end in zip(order, starts, ends, strict=True):
            of_class = by_class[start:end]
            if not of_class.size:
                raise ValueError(f"{part}: there are no images of class {c}")
            if per_class is not None and per_class > of_class.size:
                raise ValueError(f"{part}_per_class is {per_class}, but class {c} has {of_class.size} images")
            if per_class is not None:
                chosen = np.random.default_rng([*seed, c]).choice(of_class.size, per_class, replace=False)
                of_class = of_class[np.sort(chosen)]
            rows.append(of_class)
        sizes = [r.size for r in rows]
        self.starts = [0, *np.cumsum(sizes).tolist()]
        self.images = images.images[torch.from_numpy(np.concatenate(rows))]
        self.labels = torch.from_numpy(np.repeat(np.arange(len(order)), sizes))

    def of(self, first: int, end: int) -> tuple[Tensor | ImageSource, Tensor]:
        """Images and labels of the classes that are learned as number ``first`` to ``end`` - 1: views."""
        here = slice(self.starts[first], self.starts[end])
        return self.images[here], self.labels[here]
