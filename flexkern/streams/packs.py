"""Labelled images from a NumPy archive, of arrays or of encoded images."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from flexkern.streams.archives import MOST_BYTES, Archive
from flexkern.streams.folders import image_folder, image_folders
from flexkern.streams.labelled import MOST_CLASSES, Images
from flexkern.streams.pictures import check_bytes, decode, stack

# Folders and labelled images were here, and are found here still.
__all__ = ["MOST_CLASSES", "Images", "image_folder", "image_folders", "image_pack"]

_MOST_OF_NAMES = 64 << 20  # bytes
_ENCODINGS = ("webp", "jpg", "png")


def _to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, height, width] or [n, height, width, 1 or 3] as [n, 3, height, width]."""
    tensor = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
    return tensor.expand(-1, 3, -1, -1).contiguous()


def image_pack(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> tuple[Images, Images]:
    """Training and test images from a NumPy archive.

    All sizes are read and held against each other before anything is unpacked, and nothing in it is executed.

    Args:
        path: an ``.npz`` with y_train and y_test and, for each part, either the pixels (``x_train`` uint8
            [n, height, width] or [n, height, width, channels]) or encoded images of one size, end to end
            (``x_train_jpg``, ``x_train_png`` or ``x_train_webp`` as bytes, image i from ``off[i]`` to
            ``off[i + 1]`` by the array ``x_train_off``, or that of the bytes' name with ``_off``). ``names`` or
            ``fine_names`` may name the classes. Labels are 0 ... 131071.
        most_bytes: what the images of a part may take in memory, 3 bytes for each pixel.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such an archive, or an array is missing or does not fit; an image that cannot
            be decoded is named by its place.
        ImportError: if images are encoded and Pillow is not installed.
    """
    name = os.fspath(path)
    with Archive(path, "image archive") as archive:
        for part in ("train", "test"):
            _check_part(archive, part, most_bytes)
        listed = [key for key in ("names", "fine_names") if key in archive]
        names = _class_names(archive, listed[0]) if listed else None
        parts = [_part(archive, part, most_bytes) for part in ("train", "test")]
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        both = " and ".join(f"{x.shape[3]} x {x.shape[2]}" for x, _ in parts)
        raise ValueError(f"path: {name!r} has training and test images of different sizes: {both}")
    count = 1 + max(int(labels.max()) for _, labels in parts)
    if names is not None and len(names) < count:
        raise ValueError(f"path: {name!r} names {len(names)} classes but has labels up to {count - 1}")
    train, test = (Images(*part, names or [str(c) for c in range(count)]) for part in parts)
    return train, test


def _encoded(archive: Archive, part: str) -> tuple[str, str] | None:
    """The names of the bytes and of the offsets of a part's encoded images; None if it has pixels."""
    if f"x_{part}" in archive:
        return None
    named = [f"x_{part}_{kind}" for kind in _ENCODINGS if f"x_{part}_{kind}" in archive]
    if not named:
        raise ValueError(
            f"path: {archive.path!r} has no x_{part}, nor encoded images of it; it holds {archive.names[:20]}"
        )
    offsets = [key for key in (f"{named[0]}_off", f"x_{part}_off") if key in archive]
    if not offsets:
        raise ValueError(
            f"path: {archive.path!r} has {named[0]} but no x_{part}_off to say where each image begins"
        )
    return named[0], offsets[0]


def _check_part(archive: Archive, part: str, most: int) -> None:
    """Holds the sizes of a part's arrays against each other."""
    path = archive.path
    if f"y_{part}" not in archive:
        raise ValueError(f"path: {path!r} has no y_{part}; it holds {archive.names[:20]}")
    y = archive.header(f"y_{part}", most)
    if len(y.shape) != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"path: y_{part} in {path!r} must be a list of whole numbers >= 0, got {y.dtype} {y.shape}"
        )
    encoded = _encoded(archive, part)
    if encoded is None:
        x = archive.header(f"x_{part}", most)
        channels = x.shape[3] if len(x.shape) == 4 else 1
        if x.dtype != np.uint8 or len(x.shape) not in (3, 4) or channels not in (1, 3) or 0 in x.shape[1:]:
            raise ValueError(
                f"path: x_{part} in {path!r}: images must be uint8 [n, height, width] or [n, height, width, 1 "
                f"or 3], got {x.dtype} {x.shape}"
            )
        count = x.shape[0]
        check_bytes(count, x.shape[1], x.shape[2], most, f"path: x_{part} in {path!r}")
    else:
        bytes_, offsets = (archive.header(key, most) for key in encoded)
        if bytes_.dtype.itemsize != 1:
            raise ValueError(f"path: {encoded[0]} in {path!r} must be bytes, uint8, got {bytes_.dtype}")
        if len(offsets.shape) != 1 or offsets.dtype.kind not in "iu":
            raise ValueError(
                f"path: {encoded[1]} in {path!r} must be a list of whole numbers, got {offsets.dtype} "
                f"{offsets.shape}"
            )
        count = max(offsets.shape[0] - 1, 0)
        if count <= max(y.shape[0], 1000):
            _offsets(archive, *encoded)
    if y.shape[0] != count or not count:
        raise ValueError(f"path: {path!r} has {count} images and {y.shape[0]} labels in {part}")


def _part(archive: Archive, part: str, most: int) -> tuple[Tensor, Tensor]:
    y = archive.read(f"y_{part}", most)
    low, high = int(y.min()), int(y.max())  # before int64, which has no 2**63
    if low < 0 or high >= MOST_CLASSES:
        raise ValueError(
            f"path: y_{part} in {archive.path!r} must be a list of whole numbers >= 0 and under "
            f"{MOST_CLASSES}, got {low} to {high}"
        )
    encoded = _encoded(archive, part)
    x = archive.read(f"x_{part}", most) if encoded is None else _decoded(archive, *encoded, most)
    return _to_tensor(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))


def _decoded(archive: Archive, name: str, offsets_name: str, most: int) -> np.ndarray:
    """uint8 [n, height, width, 3] from encoded images, end to end."""
    offsets = _offsets(archive, name, offsets_name)
    content = archive.read(name, most).tobytes()
    what = f"path: {name} in {archive.path!r}"

    def images() -> Iterator[np.ndarray]:
        first: tuple[int, ...] | None = None
        for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
            image = decode(io.BytesIO(content[begin:end]), what, f"number {i}", like=first)
            first = image.shape
            yield image

    return stack(images(), len(offsets) - 1, most, what)


def _offsets(archive: Archive, name: str, offsets_name: str) -> list[int]:
    """Where each image begins, and the last one ends."""
    offsets, end = archive.read(offsets_name).tolist(), archive.header(name).nbytes
    if not offsets or offsets[0] < 0 or offsets[-1] > end or offsets != sorted(offsets):
        raise ValueError(
            f"path: {offsets_name} in {archive.path!r} must rise from 0 to {end}, the bytes of {name}"
        )
    return offsets


def _class_names(archive: Archive, key: str) -> list[str]:
    header = archive.header(key, _MOST_OF_NAMES)
    if len(header.shape) != 1 or header.dtype.kind not in "USiu":
        raise ValueError(
            f"path: {key} in {archive.path!r} must be a list of texts, got {header.dtype} {header.shape}"
        )
    if header.shape[0] > MOST_CLASSES:
        raise ValueError(
            f"path: {key} in {archive.path!r} names {header.shape[0]} classes; at most {MOST_CLASSES} are read"
        )
    try:
        found = archive.read(key, _MOST_OF_NAMES).tolist()
        return [n.decode() if isinstance(n, bytes) else str(n) for n in found]
    except (UnicodeDecodeError, SystemError) as error:  # the latter is NumPy's, of what is no character
        raise ValueError(f"path: {key} in {archive.path!r} is not UTF-8: {error}") from error
