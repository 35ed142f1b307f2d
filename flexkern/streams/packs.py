"""Labelled images from files: NumPy archives of arrays or of encoded images, and folders of images."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern.streams.archives import MOST_BYTES, Archive
from flexkern.streams.pictures import check_bytes, decode, stack

__all__ = ["MOST_CLASSES", "Images", "image_folder", "image_folders", "image_pack"]

MOST_CLASSES = 1 << 17
"""Labels are under this: a list of names has one for each."""
_MOST_OF_NAMES = 64 << 20  # bytes
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
_ENCODINGS = ("webp", "jpg", "png")
_TEST_NAMES = ("test", "val", "validation")  # of the folder beside "train"


class Images(NamedTuple):
    """Images, uint8 [n, 3, height, width] in 0..255, their labels, int64 [n], and the classes' names."""

    images: Tensor
    labels: Tensor
    names: list[str]


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


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int,
    names: Sequence[str] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Images:
    """Images of a folder that has one folder a class, in alphabetical order.

    Files and folders whose names begin with a dot, and folders whose names end like images, are left out.

    Args:
        path: the folder.
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
        names: the classes, in the order of their labels, where another folder decides it (that of the training
            images). Default: all folders in ``path``, in alphabetical order.
        most_bytes: what the images may take in memory, 3 bytes for each pixel.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images, or a class none, or a file is no image, naming it.
        ImportError: if Pillow is not installed.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"path: no folder at {os.fspath(path)!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if names is None:
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name))
    names = list(names)
    if not names:
        raise ValueError(f"path: {os.fspath(path)!r} must hold one folder a class; it has none")
    for name in names:
        if not name.isprintable():  # of another encoding: it could not be written into any record
            raise ValueError(f"path: a folder in {os.fspath(path)!r} has a name that is not UTF-8: {name!r}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        of_class = _images_in(root / name)
        if not of_class:
            folder = os.fspath(root / name)
            raise ValueError(f"path: {folder!r} holds no images ({', '.join(sorted(_SUFFIXES))})")
        files += of_class
        labels += [label] * len(of_class)
    return _read(files, labels, names, size, most_bytes)


def _is_hidden(name: str) -> bool:
    """As ``.ipynb_checkpoints``, and ``._0.png``, which macOS writes beside 0.png; neither is data."""
    return name.startswith(".") or name == "__MACOSX"


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _SUFFIXES
        and not any(_is_hidden(part) for part in p.relative_to(folder).parts)
        and p.is_file()
    )


def image_folders(
    path: str | os.PathLike[str], *, size: int, most_bytes: int = MOST_BYTES
) -> tuple[Images, Images]:
    """Training and test images of a folder that holds the two parts.

    Each part has one folder a class (:func:`image_folder`). TinyImageNet is read as it is distributed: its
    ``val`` has all images in one folder, and ``val_annotations.txt`` says the class of each.

    Args:
        path: holds a folder ``train`` and one ``test``, ``val`` or ``validation``.
        size, most_bytes: of the images, see :func:`image_folder`.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a class has no images, or a file is no image, naming it.
        ImportError: if Pillow is not installed.
    """
    root = Path(path)
    there = [name for name in _TEST_NAMES if (root / name).is_dir()]
    if not (root / "train").is_dir() or not there:
        allowed = " or ".join(map(repr, _TEST_NAMES))
        raise FileNotFoundError(f"path: {os.fspath(path)!r} must hold a folder 'train' and a folder {allowed}")
    train = image_folder(root / "train", size=size, most_bytes=most_bytes)
    # TinyImageNet's "test" has no labels, so its "val" goes first.
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return train, image_folder(root / there[0], size=size, names=train.names, most_bytes=most_bytes)
    files, labels = _annotated(annotations, {name: label for label, name in enumerate(train.names)})
    return train, _read(files, labels, train.names, size, most_bytes)


def _annotated(annotations: Path, numbers: dict[str, int]) -> tuple[list[Path], list[int]]:
    """The images that the file names, all in the folder ``images`` beside it, and their labels."""
    name = os.fspath(annotations)
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {name!r} is not UTF-8: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    unknown = sorted(
        {row[1] if len(row) > 1 else row[0] for row in rows if len(row) < 2 or row[1] not in numbers}
    )
    if unknown or not rows:
        raise ValueError(
            f"path: {name!r} must name an image and its class per line, separated by a tab; "
            f"there is no class {', '.join(unknown[:3]) or 'in it'}"
        )
    seen: set[str] = set()
    for file, *_ in rows:
        if file != Path(file).name or "\\" in file or "\0" in file or file == "..":
            raise ValueError(f"path: {name!r} must name files of the folder 'images' beside it, got {file!r}")
        if file in seen:
            raise ValueError(f"path: {name!r} names {file!r} twice")
        seen.add(file)
    files = [annotations.parent / "images" / row[0] for row in rows]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ValueError(f"path: {name!r} names {missing.name!r}, and there is no such file in 'images'")
    return files, [numbers[row[1]] for row in rows]


def _read(files: Sequence[Path], labels: Sequence[int], names: Sequence[str], size: int, most: int) -> Images:
    check_bytes(len(files), size, size, most, "path")
    images = (decode(file, f"path: {os.fspath(file)!r}", size=size) for file in files)
    return Images(_to_tensor(stack(images, len(files), most, "path")), torch.tensor(labels), list(names))
