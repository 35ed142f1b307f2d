"""Labelled images, in memory or not: how those in files become them, with broken ones refused or left out."""

from __future__ import annotations

import functools
import warnings
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import choice, flag, number, whole_number
from flexkern.streams.archives import MOST_BYTES
from flexkern.streams.augment import as_bytes, as_float, center_crop, resize
from flexkern.streams.image_source import ImageSource, ahead
from flexkern.streams.pictures import WHITE, check_bytes, colour
from flexkern.streams.shown import classes_shown, inputs_shown

__all__ = ["MOST_CLASSES", "Images", "Reading", "Skipped", "resized", "settle", "split"]

MOST_CLASSES = 1 << 17
"""Labels are under this: a list of names has one for each."""
_PIECE = 64  # images that a process decodes at once
_PIECE_OF_LOOKS = 256
_FEW_LOOKS = 2048  # headers are read in the process itself, below this
_SHOWN = 3  # of what is left out
_RESIZED_AT_ONCE = 1024
_SPLIT = 15  # first number of a generator's seed


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    path: str
    why: str


class _Labelled(NamedTuple):
    # Tensor | ImageSource: as a union, all that computes with images in memory would have to ask which.
    images: Any
    labels: Tensor
    names: list[str]


class Images(_Labelled):
    """Labelled images: a tuple of three.

    Args:
        images: uint8 [n, 3, height, width] in 0..255, or an :class:`flexkern.streams.ImageSource`, whose images
            are decoded when they are needed.
        labels: int64 [n].
        names: of the classes, in the order of their labels.
        skipped: files that were left out, each with the reason.
    """

    skipped: tuple[Skipped, ...] = ()

    def __new__(
        cls, images: Tensor | ImageSource, labels: Tensor, names: list[str], skipped: Iterable[Skipped] = ()
    ) -> Images:
        made = super().__new__(cls, images, labels, names)
        made.skipped = tuple(skipped)
        return made

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} files left out" if self.skipped else ""
        what = f"{len(self.labels)} of {inputs_shown(self.images)}"
        return f"<Images: {what}, {classes_shown(self.names, self.labels)}{skipped}>"

    def _replace(self, /, **changes: Any) -> Images:
        return Images(**(self._asdict() | {"skipped": self.skipped} | changes))


class Reading(NamedTuple):
    """How images in files are read; what the readers have in common."""

    size: int
    background: tuple[int, int, int] = WHITE
    broken: str = "raise"
    lazy: bool = False
    workers: int | None = None
    most_bytes: int = MOST_BYTES

    @classmethod
    def checked(
        cls, size: Any, background: Any, broken: Any, lazy: Any, workers: Any, most_bytes: Any
    ) -> Reading:
        """From arguments as a caller gives them.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        return cls(
            whole_number(size, "size"),
            colour(background),
            choice(broken, "broken", ("raise", "skip")),
            flag(lazy, "lazy"),
            workers if workers is None else whole_number(workers, "workers", least=0),
            whole_number(most_bytes, "most_bytes", least=0),
        )


def settle(found: Images, reading: Reading, what: str) -> Images:
    """Images of a source as the caller wants them: in memory or not, broken ones refused or left out.

    Args:
        found: labelled images of a source.
        reading: says how.
        what: they are, for messages.

    Raises:
        ValueError, OSError: naming the image, if one is broken, or the class that loses all its images.
    """
    source: ImageSource = found.images
    if not reading.lazy:
        check_bytes(
            len(source), source.size, source.size, reading.most_bytes, what,
            "if there is so much memory, or lazy=True to decode them when they are needed",
        )  # fmt: skip
    skipped = list(found.skipped)
    if reading.broken == "skip":
        before = found.labels
        found, faults = _without_faults(found, reading)
        skipped += faults
        lost = sorted(set(before.tolist()) - set(found.labels.tolist()))
        if lost:
            path, why = faults[0]
            raise ValueError(
                f"{what}: no image of class {found.names[lost[0]]!r} can be read; for example {path!r}: {why}"
            )
    else:
        try:
            if reading.lazy:
                rows = _pieces(len(source), _PIECE_OF_LOOKS)
                for _ in ahead(functools.partial(_look_at, source), rows, source.workers, few=_FEW_LOOKS):
                    pass
            else:
                found = found._replace(images=source.tensor())
        except ValueError as error:
            raise ValueError(f"{error}. Remove it, or leave out what is broken with broken='skip'") from error
    if skipped:
        shown = "; ".join(f"{path!r}: {why}" for path, why in skipped[:_SHOWN])
        more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        files = f"{len(skipped)} files are" if len(skipped) > 1 else "a file is"
        warnings.warn(f"{what}: {files} left out (Images.skipped names each): {shown}{more}", stacklevel=3)
    return found._replace(skipped=tuple(skipped))


def _pieces(count: int, of: int) -> list[list[int]]:
    return [list(range(i, min(i + of, count))) for i in range(0, count, of)]


def _look_at(source: ImageSource, rows: list[int]) -> None:
    for i in rows:
        source.look(i)


def _without_faults(found: Images, reading: Reading) -> tuple[Images, list[Skipped]]:
    """The images that can be decoded, each decoded once; in memory unless they are wanted when needed."""
    source: ImageSource = found.images
    rows = _pieces(len(source), _PIECE)
    pixels = torch.empty((0 if reading.lazy else len(source), *source.shape[1:]), dtype=torch.uint8)
    sound: list[int] = []
    faults: list[Skipped] = []
    work = functools.partial(_sound, source, keep=not reading.lazy)
    for of_piece, (taken, why) in zip(rows, ahead(work, rows, source.workers), strict=True):
        right = [i for i in of_piece if i not in why]
        if taken is not None:
            pixels[len(sound) : len(sound) + len(right)] = taken
        sound += right
        faults += [Skipped(source.name(i), words) for i, words in why.items()]
    if not faults:
        return found if reading.lazy else found._replace(images=pixels), faults
    images = source[sound] if reading.lazy else pixels[: len(sound)]
    return found._replace(images=images, labels=found.labels[sound]), faults


def _sound(source: ImageSource, rows: list[int], keep: bool) -> tuple[Tensor | None, dict[int, str]]:
    """The pixels of those that can be decoded, if they are to be kept, and what is wrong with the others."""
    taken: list[Tensor] = []
    why: dict[int, str] = {}
    for i in rows:
        try:
            pixels = source.take([i])
        except (ValueError, OSError) as error:
            why[i] = str(error).removeprefix(f"path: {source.name(i)!r}: ")
        else:
            taken += [pixels] * keep
    return (torch.cat(taken) if taken else None), why


def split(found: Images, test_share: Any, seed: Any) -> tuple[Images, Images]:
    """Training and test images: a share of each class is for tests, at least one image, and not all of them.

    Which ones is decided by the seed, the name of the class and the order of its images.

    Raises:
        TypeError, ValueError: naming the argument, or a class with a single image.
    """
    share = number(test_share, "test_share", 0, 1, above=True, below=True)
    seed = whole_number(seed, "seed", least=0)
    labels = found.labels.numpy()
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], np.arange(len(found.names)), side="right")
    test = np.zeros(len(labels), dtype=bool)
    for name, rows in zip(found.names, np.split(by_class, ends[:-1]), strict=True):
        if len(rows) < 2:
            raise ValueError(
                f"test_share: class {name!r} needs at least 2 images to be split, it has {len(rows)}; "
                "add some, or leave the class out"
            )
        rng = np.random.default_rng([_SPLIT, seed, zlib.crc32(name.encode("utf-8", "surrogateescape"))])
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        test[rng.choice(rows, count, replace=False)] = True

    def part(chosen: np.ndarray, skipped: tuple[Skipped, ...]) -> Images:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Images(found.images[rows], found.labels[rows], list(found.names), skipped)

    return part(~test, found.skipped), part(test, ())


def resized(found: Images, size: int, what: str) -> Images:
    """Images in memory whose shorter side is ``size`` pixels, bicubic, and the middle of them.

    Args:
        found: images in memory, or a source, which has to have that size.
        size: pixels of each side.
        what: they are, for messages.

    Raises:
        ValueError: if a source has another size, or these are no images.
    """
    images = found.images
    if isinstance(images, ImageSource):
        if images.size != size:
            raise ValueError(
                f"{what}: images that are decoded when needed are {images.size} pixels wide; read them with "
                f"size={size}"
            )
        return found
    if images.dim() != 4:
        raise ValueError(f"{what}: size is for images [n, channels, height, width], got {tuple(images.shape)}")
    if tuple(images.shape[2:]) == (size, size):
        return found

    def piece(x: Tensor) -> Tensor:
        y = center_crop(resize(as_float(x), size), size)
        return as_bytes(y) if x.dtype == torch.uint8 else y

    return found._replace(images=torch.cat([piece(x) for x in images.split(_RESIZED_AT_ONCE)]))
