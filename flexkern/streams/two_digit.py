"""Two-digit items: the stream of the metaplasticity paper (arXiv 2407.07133) and its released code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import flag
from flexkern.streams.base import Experience, Stream
from flexkern.streams.shown import inputs_shown

__all__ = ["TwoDigitItems", "compose", "two_digit_items", "two_digit_stream", "wrong_labels"]

CLASSES = tuple((i, j) for i in range(10) for j in range(i + 1, 10))  # 45 pairs of two different digits
# What a random generator is for: the first number of its seed, so that no two uses share random numbers.
_ORDER, _SPLIT, _TRAIN, _TEST, _OTHERS, _OTHERS_AS_RELEASED = range(6)


def compose(left: Tensor, right: Tensor) -> Tensor:
    """Digits side by side in the middle of a square canvas: two [n, h, w] to [n, 2h, 2w], same dtype.

    28 x 28 digits give 56 x 56 images, as in the release.
    """
    n, h, w = left.shape
    canvas = torch.zeros(n, 2 * h, 2 * w, dtype=left.dtype)
    top = h // 2
    canvas[:, top : top + h, :w] = left
    canvas[:, top : top + h, w:] = right
    return canvas


def wrong_labels(own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels in a random order in which no image keeps its own, each label used as often as before.

    Places that got their own label swap with random places until none is left.

    Args:
        own: the true labels; none may be on more than half of the images, or no such order exists.
    """
    if np.unique(own, return_counts=True)[1].max(initial=0) * 2 > own.size:
        raise ValueError(
            "no order gives every image a wrong label: one label is on more than half of the images"
        )
    labels = rng.permutation(own)
    while (clash := np.flatnonzero(labels == own)).size:
        for i in clash:
            j = rng.integers(own.size)
            if labels[j] != own[i] and labels[i] != own[j]:
                labels[i], labels[j] = labels[j], labels[i]
    return labels


class TwoDigitItems:
    """The images of each two-digit item once, from which the items' training sets are put together.

    A training set has the item's own images and, with wrong labels, images that are the other items' own. A
    :class:`Stream` holds them twice; here they are gathered when a set is asked for. And features can stand in
    place of images (:meth:`map`), computed once for each.

    Args:
        names: of the items, in the order of the stream.
        train, tests: for each item its own training and test inputs, [n, ...] and [m, ...]; the same n for all.
        seed: chooses the others' images and shuffles their labels.
        as_released: the others' images and labels as in the paper's code. The images are the first ones of
            each other item. Of the k labels that they may get, each goes to ``count // k`` of an item's
            ``count`` images, and the rest draw theirs with replacement: an item's wrong labels are spread
            evenly, but not all labels are used equally often. And each time that an item is shown, all this is
            dealt out anew.
    """

    def __init__(
        self,
        names: Sequence[str],
        train: Sequence[Tensor],
        tests: Sequence[Tensor],
        seed: int,
        as_released: bool = False,
    ) -> None:
        self.names, self.train, self.tests, self.seed = tuple(names), tuple(train), tuple(tests), seed
        self.as_released = as_released

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        own = f"{len(self.train[0])} own training and {len(self.tests[0])} test inputs"
        return f"<TwoDigitItems: {len(self)} items, each with {own} of {inputs_shown(self.train[0])}>"

    def map(self, function: Callable[[Tensor], Tensor]) -> TwoDigitItems:
        """The same items with ``function(inputs)`` in place of inputs, for example their features."""
        train, tests = ([function(x) for x in of] for of in (self.train, self.tests))
        return TwoDigitItems(self.names, train, tests, self.seed, self.as_released)

    def head(self, items: int) -> TwoDigitItems:
        """The first ``items`` of them (at least 3): the shorter stream of the same seed."""
        if not 3 <= items <= len(self):
            raise ValueError(f"items must be in [3, {len(self)}], got {items}")
        return self.select(range(items))

    def select(self, numbers: Sequence[int]) -> TwoDigitItems:
        """These items (at least 3), in this order, with the labels 0, 1, ...

        Raises:
            ValueError: if there are fewer, or one of them twice or not here.
        """
        if len(numbers) < 3 or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(self))):
            raise ValueError(
                f"numbers must be at least 3 different ones in [0, {len(self)}), got {list(numbers)}"
            )
        names, train, tests = ([of[i] for i in numbers] for of in (self.names, self.train, self.tests))
        return TwoDigitItems(names, train, tests, self.seed, self.as_released)  # type: ignore[arg-type]

    def experience(self, number: int, turn: int = 0) -> Experience:
        """Item ``number``: its own inputs and those of others with shuffled wrong labels.

        Args:
            number: of the item.
            turn: how often it was shown before; of consequence only with ``as_released``.
        """
        own = self.train[number]
        if self.as_released:
            others, other_labels = _others_as_released(self.train, number, self.seed, turn)
        else:
            others, other_labels = _others(self.train, number, self.seed)
        return dataclasses.replace(
            self.test(number),
            train_inputs=torch.cat([own, others]),
            train_labels=torch.cat([torch.full((len(own),), number), other_labels]),
        )

    def test(self, number: int) -> Experience:
        """Item ``number`` with its test inputs and no training inputs."""
        test = self.tests[number]
        labels = torch.full((len(test),), number)
        return Experience(self.names[number], number, test[:0], labels[:0], test, labels)

    def stream(self) -> Stream:
        """All items as a stream."""
        return Stream([self.experience(i) for i in range(len(self))], classes=len(self))


def two_digit_items(
    images: Tensor,
    labels: Tensor,
    *,
    items: int = 10,
    train_per_item: int = 2000,
    test_per_item: int = 1000,
    seed: int,
    test_fraction: float = 0.25,
    test_images: Tensor | None = None,
    test_labels: Tensor | None = None,
    as_released: bool = False,
) -> TwoDigitItems:
    """Two-digit items, composed from images of single digits.

    There are 45 classes, the pairs i < j. ``items`` of them, chosen and ordered by the seed, make the
    stream; the label of an item is its place in it. An item's training set is ``train_per_item`` images of
    it, rightly labelled, and ``round(train_per_item / (items - 1))`` images of each other item of the stream
    with shuffled wrong labels: never their own, never the item's. Its test images are of that item only.
    Training and test images are composed from different digit images. No composite occurs twice in a
    class's training images, nor in its test images.

    The same arguments give the same bits; no global random state is read or changed. A longer stream of
    the same seed begins with the same classes and test images.

    Args:
        images: [n, height, width], uint8 (0..255) or float (0..1); stays in its dtype.
        labels: [n], integers 0..9.
        items: 3 to 45; from 3 on a wrong label exists that is not the item's.
        train_per_item, test_per_item: images of an item.
        seed: any integer >= 0.
        test_fraction: part of each digit's images that is kept for test images.
        test_images, test_labels: a test split of its own (MNIST); then all of ``images`` is for training.
        as_released: as the paper's code does it where that is not what is said above: composites are drawn
            with replacement, so some may occur twice, and the others' images and labels are as
            :class:`TwoDigitItems` says.

    Raises:
        TypeError: if images or labels are no tensors, or ``as_released`` is no truth value.
        ValueError: if an argument is outside its range, a digit is missing, or there are too few images of a
            digit for so many different composites.
    """
    _check_images(images, labels, "images", "labels")
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels go together: pass both or neither")
    if not 3 <= items <= len(CLASSES):
        raise ValueError(f"items must be in [3, {len(CLASSES)}], got {items}")
    for name, value in (("train_per_item", train_per_item), ("test_per_item", test_per_item)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    as_released = flag(as_released, "as_released")

    if test_images is not None and test_labels is not None:
        _check_images(test_images, test_labels, "test_images", "test_labels")
        if test_images.shape[1:] != images.shape[1:] or test_images.dtype != images.dtype:
            raise ValueError(
                f"test_images must be like images ({images.dtype}, {tuple(images.shape[1:])} each), "
                f"got {test_images.dtype}, {tuple(test_images.shape[1:])}"
            )
        train_digits, test_digits = _by_digit(images, labels), _by_digit(test_images, test_labels)
    else:
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
        train_digits, test_digits = _split(_by_digit(images, labels), test_fraction, seed)

    order = np.random.default_rng([_ORDER, seed]).permutation(len(CLASSES))[:items]
    train, test = (
        [_composites(digits, c, count, name, [purpose, seed, int(c)], replace=as_released) for c in order]
        for digits, count, name, purpose in (
            (train_digits, train_per_item, "train_per_item", _TRAIN),
            (test_digits, test_per_item, "test_per_item", _TEST),
        )
    )
    return TwoDigitItems([f"{CLASSES[c][0]} {CLASSES[c][1]}" for c in order], train, test, seed, as_released)


def two_digit_stream(images: Tensor, labels: Tensor, **options: Any) -> Stream:
    """The stream of :func:`two_digit_items`, with the same arguments."""
    return two_digit_items(images, labels, **options).stream()


def _others(train: Sequence[Tensor], target: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of all items but the target, and their shuffled wrong labels."""
    rng = np.random.default_rng([_OTHERS, seed, target])
    each = _of_each_other(train)
    numbers = [i for i in range(len(train)) if i != target]
    images = [train[i][torch.from_numpy(rng.choice(len(train[i]), each, replace=False))] for i in numbers]
    return torch.cat(images), torch.from_numpy(wrong_labels(np.repeat(numbers, each), rng))


def _others_as_released(train: Sequence[Tensor], target: int, seed: int, turn: int) -> tuple[Tensor, Tensor]:
    """The same as the paper's code has them, but for a slip: there, the rest may be told its own label."""
    rng = np.random.default_rng([_OTHERS_AS_RELEASED, seed, target, turn])
    each = _of_each_other(train)
    numbers = [i for i in range(len(train)) if i != target]
    images, labels = [], []
    for i in numbers:
        wrong = np.array([n for n in numbers if n != i])
        dealt = np.repeat(wrong, each // len(wrong))
        images.append(train[i][torch.from_numpy(rng.permutation(each))])
        labels.append(np.concatenate([dealt, rng.choice(wrong, each % len(wrong))]))
    return torch.cat(images), torch.from_numpy(np.concatenate(labels))


def _of_each_other(train: Sequence[Tensor]) -> int:
    """How many images of each other item an item's training set has."""
    return math.floor(len(train[0]) / (len(train) - 1) + 0.5)  # the release rounds halves up


def _composites(
    digits: list[Tensor], c: int, count: int, name: str, seed: list[int], *, replace: bool
) -> Tensor:
    """``count`` images of class ``c``; different ones, unless drawn with replacement."""
    left, right = (digits[d] for d in CLASSES[c])
    pairs = len(left) * len(right)
    if count > pairs and not replace:
        raise ValueError(
            f"{name} is {count}, but {len(left)} images of digit {CLASSES[c][0]} and {len(right)} of digit "
            f"{CLASSES[c][1]} give only {pairs} different images: ask for fewer, or pass more digit images"
        )
    chosen = torch.from_numpy(np.random.default_rng(seed).choice(pairs, count, replace=replace))
    return compose(left[chosen // len(right)], right[chosen % len(right)])


def _by_digit(images: Tensor, labels: Tensor) -> list[Tensor]:
    return [images[labels == d] for d in range(10)]


def _split(digits: list[Tensor], test_fraction: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Each digit's images in two disjoint parts, training and test, at least one image each."""
    train, test = [], []
    for d, images in enumerate(digits):
        if len(images) < 2:
            raise ValueError(f"images: digit {d} needs at least 2 images to be split, there are {len(images)}")
        order = torch.from_numpy(np.random.default_rng([_SPLIT, seed, d]).permutation(len(images)))
        count = min(max(round(test_fraction * len(images)), 1), len(images) - 1)
        test.append(images[order[:count]])
        train.append(images[order[count:]])
    return train, test


def _check_images(images: Tensor, labels: Tensor, images_name: str, labels_name: str) -> None:
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"{images_name} and {labels_name} must be tensors (torch.from_numpy makes one of an array)"
        )
    if images.ndim != 3:
        raise ValueError(f"{images_name} must be [n, height, width], got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"{images_name} must be uint8 (0..255) or floating (0..1), got {images.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{labels_name} must be one a image: {tuple(labels.shape)} for {len(images)} images")
    if labels.is_floating_point() or set(labels.unique().tolist()) != set(range(10)):
        raise ValueError(f"{labels_name} must be integers and name every digit 0..9")
