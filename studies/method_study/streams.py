"""The streams of the method study: each by a path, a seed and its setting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flexkern.streams import Experience, Images, Stream, class_incremental, image_pack, mnist
from flexkern.streams.domain_incremental import domain_incremental
from flexkern.streams.domains import corrupted_domains, digit_domains
from flexkern.streams.image_source import batches
from flexkern.streams.two_digit import compose
from studies.method_study.characters import characters, small_enough
from studies.method_study.settings import Setting

__all__ = ["STREAMS", "StreamKind"]

_CHOSEN, _SPLIT, _COMPOSED = range(3)  # first number of a generator's seed


@dataclass(frozen=True)
class StreamKind:
    """A family of streams.

    Args:
        name: for files and the command line.
        title: for tables.
        data: the command-line option that gives its path.
        make: the stream of a path, a seed, the backbone's image size and a setting.
        again: its classes come again in each task, so that there is nothing in being told the task.
    """

    name: str
    title: str
    data: str
    make: Callable[[str, int, int, Setting], Stream]
    again: bool = False


@functools.lru_cache(maxsize=1)
def _pack(path: str) -> tuple[Images, Images]:
    return image_pack(path)


@functools.lru_cache(maxsize=1)
def _digits(path: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train, test = mnist(path)
    return (train.images, train.labels), (test.images, test.labels)


def cifar100(path: str, seed: int, size: int, setting: Setting) -> Stream:
    """CIFAR-100's classes from ``first_class`` on: the embedded backbone has seen those before 50."""
    train, test = _pack(path)
    chosen = range(setting.first_class, setting.first_class + setting.classes)
    return class_incremental(
        train, test, increment=setting.increment, classes=chosen, seed=1993 + seed,
        train_per_class=setting.train_per_class, test_per_class=setting.test_per_class,
    )  # fmt: skip


def few_shot_characters(path: str, seed: int, size: int, setting: Setting) -> Stream:
    """Characters of any alphabet, chosen and ordered by the seed; so are the drawings for training and test."""
    images = characters(path, size)
    chosen = np.random.default_rng([_CHOSEN, seed]).permutation(len(images.names))[: setting.classes].tolist()
    train: list[int] = []
    test: list[int] = []
    for label in chosen:
        rows = torch.nonzero(images.labels == label).squeeze(1).numpy()
        rows = np.random.default_rng([_SPLIT, seed, label]).permutation(rows)
        first = setting.train_per_class or len(rows) // 2
        train += rows[:first].tolist()
        test += rows[first:][: setting.test_per_class].tolist()
    parts = [Images(images.images[rows], images.labels[rows], images.names) for rows in (train, test)]
    return class_incremental(*parts, increment=setting.increment, order=chosen)


def two_digit_numbers(path: str, seed: int, size: int, setting: Setting) -> Stream:
    """00 to 99, two digits of MNIST side by side: so many of the hundred, chosen and ordered by the seed."""
    chosen = np.random.default_rng([_CHOSEN, seed]).permutation(100)[: setting.classes].tolist()
    counts = (setting.train_per_class or 100, setting.test_per_class or 40)
    parts = []
    for part, ((images, labels), count) in enumerate(zip(_digits(path), counts, strict=True)):
        of_digit = [torch.nonzero(labels == digit).squeeze(1).numpy() for digit in range(10)]
        pictures = []
        for number in chosen:
            rng = np.random.default_rng([_COMPOSED, seed, part, number])
            left, right = (rng.choice(of_digit[digit], count) for digit in divmod(number, 10))
            pair = compose(images[left], images[right])[:, None].expand(-1, 3, -1, -1)
            pictures.append(small_enough(pair, size))
        numbers = torch.tensor(chosen).repeat_interleave(count)
        parts.append(Images(torch.cat(pictures), numbers, [f"{n:02d}" for n in range(100)]))
    return class_incremental(*parts, increment=setting.increment, order=chosen)


def corrupted_cifar100(path: str, seed: int, size: int, setting: Setting) -> Stream:
    """Some classes of CIFAR-100, in one look after the other; the seed chooses classes, images and order."""
    parts = []
    chosen = np.random.default_rng([_CHOSEN, seed]).permutation(50)[: setting.classes] + setting.first_class
    for part, (images, count) in enumerate(
        zip(_pack(path), (setting.train_per_class, setting.test_per_class), strict=True)
    ):
        rows: list[int] = []
        for label in chosen.tolist():
            of_class = torch.nonzero(images.labels == label).squeeze(1).numpy()
            rng = np.random.default_rng([_COMPOSED, seed, part, label])
            # Each look has images of its own, as far as there are so many.
            rows += rng.permutation(of_class)[: len(LOOKS) * (count or len(of_class))].tolist()
        parts.append(Images(images.images[rows], images.labels[rows], images.names))
    return domain_incremental(
        corrupted_domains(parts[0], parts[1], LOOKS, seed=seed), order="shuffled", seed=seed,
        train_per_class=setting.train_per_class, test_per_class=setting.test_per_class,
    )  # fmt: skip


def digits_in_looks(path: str, seed: int, size: int, setting: Setting) -> Stream:
    """The ten digits, of several hands and in several looks."""
    stream = domain_incremental(
        digit_domains(HANDS, mnist_path=path, seed=seed, lazy=True), order="shuffled", seed=seed,
        train_per_class=setting.train_per_class, test_per_class=setting.test_per_class,
    )  # fmt: skip
    return Stream([_decoded(item) for item in stream], stream.classes)


def _decoded(item: Experience) -> Experience:
    """With its images in memory: they are read again and again."""
    train, test = (
        torch.cat(list(batches(images, torch.arange(len(images)).split(256))))
        for images in (item.train_inputs, item.test_inputs)
    )
    return replace(item, train_inputs=train, test_inputs=test)


LOOKS = ("clean", "gaussian_noise:3", "gaussian_blur:3", "contrast:4", "inverted")
HANDS = ("mnist", "digits", "mnist:inverted", "mnist:gaussian_noise:4", "mnist:rotated:3")

STREAMS: Mapping[str, StreamKind] = {
    kind.name: kind
    for kind in (
        StreamKind("cifar100", "CIFAR-100, B0-Inc5", "cifar100", cifar100),
        StreamKind("characters", "few-shot printed characters", "characters", few_shot_characters),
        StreamKind("numbers", "two-digit numbers", "mnist", two_digit_numbers),
        StreamKind("looks", "CIFAR-100 in five looks", "cifar100", corrupted_cifar100, True),
        StreamKind("digits", "digits of two hands in five looks", "mnist", digits_in_looks, True),
    )
}
"""By name, in the order of tables."""
