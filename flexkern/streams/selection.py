"""Which classes and images of a data set take part in a stream, and in which order the classes come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import whole_number
from flexkern.spec.argument import shown
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images

__all__ = [
    "check_images",
    "class_order",
    "classes_in_order",
    "label_list",
    "listed_once",
    "names_apart",
    "rows_by_class",
    "rows_of",
    "title_of",
]

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


def classes_in_order(
    train: Images, test: Images, order: Sequence[int] | None, classes: Sequence[int] | None, seed: int
) -> list[int]:
    """Labels of ``train`` in the order of learning: ``order`` itself, or ``classes`` as the seed says.

    Raises:
        TypeError, ValueError: naming the argument, if it is wrong, or the images, if they do not fit together.
    """
    seed = whole_number(seed, "seed", least=0)
    if order is not None and classes is not None:
        raise ValueError("order and classes exclude each other: order says which classes take part")
    for name, images in (("train", train), ("test", test)):
        check_images(images, name)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        raise ValueError(f"test: its images must be of the size of the training images, got {shapes}")
    if order is not None:
        chosen = label_list(order, "order")
    elif classes is not None:
        chosen = class_order(label_list(classes, "classes"), seed)
    else:
        chosen = class_order(train.labels.unique().tolist(), seed)
    _check_order(chosen, "order" if classes is None else "classes", train)
    return chosen


def label_list(classes: Any, name: str) -> list[int]:
    """Labels that a caller gives, as a list of ints.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    given = classes.tolist() if hasattr(classes, "tolist") else classes
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of labels, got {shown(classes)}")
    return [whole_number(c, f"{name}[{i}]", least=None) for i, c in enumerate(given)]


def check_images(images: Any, name: str) -> None:
    """Raises TypeError or ValueError, naming them, unless these are labelled images."""
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


def names_apart(names: Sequence[str], order: Sequence[int]) -> list[str]:
    """Of the classes in their order, no two alike: to a name that two have, the label is added."""
    found = [(names[c] if 0 <= c < len(names) else "") or str(c) for c in order]
    counts = Counter(found)
    return [f"{name} ({c})" if counts[name] > 1 else name for name, c in zip(found, order, strict=True)]


def title_of(names: Sequence[str]) -> str:
    """What an experience of these classes is called."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more"


def rows_by_class(
    train: Images,
    test: Images,
    order: Sequence[int],
    train_per_class: int | None,
    test_per_class: int | None,
    seed: int,
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of each class the numbers of its training and of its test images, rising; so many, chosen by the seed.

    Raises:
        TypeError, ValueError: naming the argument, or the class that has none or too few.
    """
    counts = [
        per_class if per_class is None else whole_number(per_class, f"{part}_per_class")
        for part, per_class in (("train", train_per_class), ("test", test_per_class))
    ]
    return (
        rows_of(train, order, counts[0], "train", [_TRAIN, seed]),
        rows_of(test, order, counts[1], "test", [_TEST, seed]),
    )


def rows_of(
    images: Images, order: Sequence[int], per_class: int | None, part: str, seed: Sequence[int]
) -> dict[int, np.ndarray]:
    """Of each class the numbers of its images, rising.

    Raises:
        ValueError: naming ``part`` and the class, if it has none or too few.
    """
    labels = images.labels.numpy(force=True)
    by_class = np.argsort(labels, kind="stable")  # image numbers, class after class, rising within a class
    starts = np.searchsorted(labels[by_class], np.array(order))
    ends = np.searchsorted(labels[by_class], np.array(order), side="right")
    rows = {}
    for c, start, end in zip(order, starts, ends, strict=True):
        of_class = by_class[start:end]
        if not of_class.size:
            raise ValueError(f"{part}: there are no images of class {c}")
        if per_class is not None and per_class > of_class.size:
            raise ValueError(f"{part}_per_class is {per_class}, but class {c} has {of_class.size} images")
        if per_class is not None:
            chosen = np.random.default_rng([*seed, c]).choice(of_class.size, per_class, replace=False)
            of_class = of_class[np.sort(chosen)]
        rows[c] = of_class
    return rows


def listed_once(names: Any, what: str, kind: str) -> list[Any]:
    """A list of ``kind`` ("texts"), at least one and none twice.

    Raises:
        TypeError, ValueError: naming ``what``.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{what} must be a list of {kind}, got {shown(names)}")
    given = list(names)
    if not given:
        raise ValueError(f"{what} must name at least one")
    for i, name in enumerate(given):
        if name in given[:i]:
            raise ValueError(f"{what}[{i}]: {shown(name)} is there twice")
    return given
