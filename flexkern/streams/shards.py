"""Labelled images in tar shards, as WebDataset writes them: an index first, then each image from its place."""

from __future__ import annotations

import glob
import io
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from flexkern.plain import whole_number
from flexkern.streams.archives import MOST_BYTES
from flexkern.streams.file_source import Texts
from flexkern.streams.file_tables import class_names
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import MOST_CLASSES, Images, Reading, settle
from flexkern.streams.pictures import SUFFIXES, WHITE, decode, look
from flexkern.streams.tar_index import Member, members

__all__ = ["ShardSource", "image_shards"]

_MOST_OF_IMAGE = 1 << 28  # bytes of an encoded image
_MOST_OF_LABEL = 1 << 16
_JSON_KEYS = ("label", "cls", "class")


def image_shards(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int,
    names: Sequence[str] | None = None,
    lazy: bool = True,
    broken: str = "raise",
    background: Sequence[int] = WHITE,
    workers: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> Images:
    """Labelled images in tar archives on the disk, as WebDataset writes them.

    Files whose names are alike up to the first dot are one sample: ``0001.jpg`` and ``0001.cls``. The image's
    ending is one that :func:`flexkern.streams.image_folder` reads (``.jpg``, ``.png`` and others). The label
    is the text of ``.cls``, or what ``.json`` has as "label", "cls" or "class": a number, 0 to 131071, or the
    name of a class. What else a sample has is not looked at.

    The archives' headers are walked once, which unpacks nothing; then each image is read from its place, in any
    order, by worker processes.

    Args:
        paths: one archive, or a list of them; a text may have wildcards (``train-*.tar``) or one range
            (``train-{000..127}.tar``). They must not be compressed: each image is read alone.
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
        names: the classes, in the order of their labels. Default: where labels are names, those that there are,
            in alphabetical order; else numbers.
        lazy: whether images are decoded when they are needed; else they are in memory.
        broken, background, workers, most_bytes: as of :func:`flexkern.streams.image_folder`.

    Raises:
        FileNotFoundError: if there is no such archive.
        TypeError, ValueError: if an argument is wrong, or an archive is no such tar, is compressed or damaged,
            or has links, or a sample has no label or two images, naming it.
        ImportError: if Pillow is not installed.
    """
    reading = Reading.checked(size, background, broken, lazy, workers, most_bytes)
    given = None if names is None else class_names(names)
    found = _paths(paths)
    places, keys = array("q"), []
    labels: list[str | int] = []
    for shard, path in enumerate(found):
        for image, label in _samples(path):
            places.extend((shard, image.offset, image.length))
            keys.append(image.name)
            labels.append(label)
    what = f"paths: {found[0]!r}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
    if not keys:
        raise ValueError(f"{what} hold no images ({', '.join(sorted(SUFFIXES))})")
    numbers, classes = _numbered(labels, given, what)
    source = ShardSource(found, np.frombuffer(places, np.int64).reshape(-1, 3), keys, reading)
    return settle(Images(source, torch.tensor(numbers), classes), reading, what)


class ShardSource(ImageSource):
    """Images in tar archives, each read from its place.

    Args:
        paths: of the archives.
        places: int64 [n, 3]: of each image the number of its archive, where it begins there, and its bytes.
        keys: the images' names there.
        reading: how they are read.
    """

    def __init__(self, paths: Sequence[str], places: np.ndarray, keys: Sequence[str], reading: Reading) -> None:
        super().__init__(reading.size, reading.workers)
        self.background = reading.background
        self.paths = [os.path.abspath(path) for path in paths]
        self._given = list(paths)
        self._places, self._keys = places, Texts(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def _file(self, i: int) -> io.BytesIO:
        shard, offset, length = self._places[i].tolist()
        with open(self.paths[shard], "rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) < length:
            raise ValueError(f"{self._what(i)}: the archive is shorter than it was")
        return io.BytesIO(content)

    def _what(self, i: int) -> str:
        return f"paths: {self.name(i)!r}"

    def decode(self, i: int) -> np.ndarray:
        return decode(self._file(i), self._what(i), size=self.size, background=self.background)

    def look(self, i: int) -> None:
        look(self._file(i), self._what(i), size=self.size)

    def name(self, i: int) -> str:
        """The archive's path, as it was given, and the image's name in it."""
        return f"{self._given[int(self._places[i, 0])]}/{self._keys[i]}"

    def identity(self, i: int) -> str:
        """The archive's path, bytes and time, the place in it, and what else decides the pixels."""
        shard, offset, length = self._places[i].tolist()
        status = os.stat(self.paths[shard])
        archive = f"{self.paths[shard]} {status.st_size} {status.st_mtime_ns}"
        return f"{archive} {offset} {length} {self.size} {self.background}"


def _paths(paths: Any) -> list[str]:
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if not isinstance(given, Sequence) or not all(isinstance(path, (str, os.PathLike)) for path in given):
        raise TypeError(
            f"paths must be the path of a tar archive or a list of them, got {type(paths).__name__}"
        )
    found: list[str] = []
    for path in map(os.fspath, given):
        named = _range(path)
        here = named if len(named) > 1 or os.path.exists(path) else sorted(glob.glob(path))
        missing = next((one for one in here or [path] if not os.path.isfile(one)), None)
        if missing is not None:
            raise FileNotFoundError(f"paths: no tar archive at {missing!r}")
        found += here
    if not found:
        raise ValueError("paths must name at least one tar archive")
    twice = next((path for path, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"paths: {twice!r} is named twice")
    return found


def _range(path: str) -> list[str]:
    """``a{08..10}b`` as a08b, a09b, a10b; anything else as it is."""
    match = re.fullmatch(r"([^{}]*)\{(\d{1,9})\.\.(\d{1,9})\}([^{}]*)", path)
    if match is None or os.path.exists(path):
        return [path]
    before, first, last, after = match.groups()
    if int(last) - int(first) >= 1_000_000:
        raise ValueError(f"paths: {path!r} names more than a million archives")
    return [f"{before}{i:0{len(first)}d}{after}" for i in range(int(first), int(last) + 1)]


def _samples(path: str) -> Iterator[tuple[Member, str | int]]:
    """The images of an archive, and their labels."""
    images: dict[str, Member] = {}
    said: dict[str, dict[str, Member]] = {}
    for member in members(path):
        folder, _, base = member.name.rpartition("/")
        start, _, suffix = base.partition(".")
        key, suffix = f"{folder}/{start}" if folder else start, f".{suffix.lower()}"
        if not start:  # hidden
            continue
        if suffix in SUFFIXES:
            if key in images:
                two = f"{images[key].name!r} and {member.name!r}"
                raise ValueError(f"paths: {path!r} has two images of one sample, {two}")
            if member.length > _MOST_OF_IMAGE:
                raise ValueError(
                    f"paths: {member.name!r} in {path!r} has {member.length} bytes; at most {_MOST_OF_IMAGE} "
                    "are read"
                )
            images[key] = member
        elif suffix in (".cls", ".json"):
            if suffix in said.setdefault(key, {}):
                raise ValueError(f"paths: {path!r} has {member.name!r} twice")
            said[key][suffix] = member
    with open(path, "rb") as file:
        for key, image in images.items():
            yield image, _label(file, said.get(key, {}), f"paths: {image.name!r} in {path!r}")


def _label(file: Any, said: dict[str, Member], what: str) -> str | int:
    if not said:
        raise ValueError(f"{what} has no label: a file .cls or .json of the same name beside it")
    suffix = ".cls" if ".cls" in said else ".json"
    member = said[suffix]
    if member.length > _MOST_OF_LABEL:
        raise ValueError(f"{what}: its {suffix} has {member.length} bytes; at most {_MOST_OF_LABEL} are read")
    file.seek(member.offset)
    try:
        text = file.read(member.length).decode().strip()
        if suffix == ".json":
            value = json.loads(text)
            key = next((k for k in _JSON_KEYS if k in value), None) if isinstance(value, dict) else None
            if key is None:
                raise ValueError(f"it has none of {', '.join(_JSON_KEYS)}")
            value = value[key]
        else:
            value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: its {suffix} cannot be read: {error}") from error
    if isinstance(value, str) and value and value.isprintable():
        return value
    try:
        return whole_number(value, "it", least=0, most=MOST_CLASSES - 1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: its {suffix} must be a number or a name of a class: {error}") from None


def _numbered(labels: list[str | int], names: list[str] | None, what: str) -> tuple[list[int], list[str]]:
    """Labels as numbers, and the names of the classes."""
    texts = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    if texts and numbers:
        raise ValueError(
            f"{what}: labels must be all numbers or all names, and there are {min(numbers)} and {min(texts)!r}"
        )
    if numbers:
        if names is not None and max(numbers) >= len(names):
            raise ValueError(f"names: there are {len(names)}, and labels up to {max(numbers)}")
        return [int(label) for label in labels], names or [str(c) for c in range(max(numbers) + 1)]
    classes = sorted(texts) if names is None else names
    unknown = sorted(texts - set(classes))
    if unknown:
        raise ValueError(f"names: class {unknown[0]!r} is none of them: {', '.join(classes[:10])}")
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"{what}: there are {len(classes)} classes; at most {MOST_CLASSES} are read")
    place = {name: number for number, name in enumerate(classes)}
    return [place[str(label)] for label in labels], classes
