"""Labelled images from files: NumPy archives of arrays or of encoded images, and folders of images."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Images", "image_folder", "image_folders", "image_pack", "square"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
_ENCODINGS = ("webp", "jpg", "png")
_TEST_NAMES = ("test", "val", "validation")  # of the folder beside "train"


class Images(NamedTuple):
    """Images, uint8 [n, 3, height, width] in 0..255, their labels, int64 [n], and the classes' names."""

    images: Tensor
    labels: Tensor
    names: list[str]


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        ImportError: if Pillow is not installed, saying what to install.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "encoded images need Pillow, which is not installed: pip install 'flexkern[vit]'", name="PIL"
        ) from error
    return Image


def _decode(source: Any) -> np.ndarray:
    with pillow().open(source) as image:
        return np.asarray(image.convert("RGB"))


def _to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, height, width] or [n, height, width, channels] as [n, 3, height, width]."""
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise ValueError(
            "images must be uint8 [n, height, width] or [n, height, width, 1 or 3], got "
            f"{images.dtype} {images.shape}"
        )
    tensor = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
    return tensor.expand(-1, 3, -1, -1).contiguous()


def image_pack(path: str | os.PathLike[str]) -> tuple[Images, Images]:
    """Training and test images from a NumPy archive.

    Args:
        path: an ``.npz`` with y_train and y_test and, for each part, either the pixels (``x_train`` uint8
            [n, height, width] or [n, height, width, channels]) or encoded images of one size, end to end
            (``x_train_jpg``, ``x_train_png`` or ``x_train_webp`` as bytes, image i from ``off[i]`` to
            ``off[i + 1]`` by the array ``x_train_off``, or that of the bytes' name with ``_off``). ``names`` or
            ``fine_names`` may name the classes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such an archive, or an array is missing or does not fit.
        ImportError: if images are encoded and Pillow is not installed.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"path: no image archive at {name!r} (an .npz)")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"path: {name!r} is not a NumPy archive (an .npz)")
    with np.load(path, allow_pickle=False) as archive:
        parts = [_part(archive, part, name) for part in ("train", "test")]
        listed = [key for key in ("names", "fine_names") if key in archive.files]
        names = [str(n) for n in archive[listed[0]]] if listed else None
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        sizes = " and ".join(f"{x.shape[3]} x {x.shape[2]}" for x, _ in parts)
        raise ValueError(f"path: {name!r} has training and test images of different sizes: {sizes}")
    count = 1 + max(int(labels.max()) for _, labels in parts)
    if names is not None and len(names) < count:
        raise ValueError(f"path: {name!r} names {len(names)} classes but has labels up to {count - 1}")
    train, test = (Images(*part, names or [str(c) for c in range(count)]) for part in parts)
    return train, test


def _part(archive: Any, part: str, path: str) -> tuple[Tensor, Tensor]:
    if f"y_{part}" not in archive.files:
        raise ValueError(f"path: {path!r} has no y_{part}; it holds {archive.files}")
    y = archive[f"y_{part}"]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or (y.size and y.min() < 0):
        raise ValueError(
            f"path: y_{part} in {path!r} must be a list of whole numbers >= 0, got {y.dtype} {y.shape}"
        )
    encoded = [f"x_{part}_{kind}" for kind in _ENCODINGS if f"x_{part}_{kind}" in archive.files]
    if f"x_{part}" in archive.files:
        images = archive[f"x_{part}"]
    elif encoded:
        images = _decoded(archive, part, encoded[0], path)
    else:
        raise ValueError(f"path: {path!r} has no x_{part}, nor encoded images of it; it holds {archive.files}")
    if len(y) != len(images) or not len(images):
        raise ValueError(f"path: {path!r} has {len(images)} images and {len(y)} labels in {part}")
    return _to_tensor(images), torch.from_numpy(y.astype(np.int64))


def _decoded(archive: Any, part: str, name: str, path: str) -> np.ndarray:
    """uint8 [n, height, width, 3] from encoded images, end to end."""
    listed = [key for key in (f"{name}_off", f"x_{part}_off") if key in archive.files]
    if not listed:
        raise ValueError(f"path: {path!r} has {name} but no x_{part}_off to say where each image begins")
    content, offsets = archive[name].tobytes(), archive[listed[0]].tolist()
    if not offsets or offsets[0] < 0 or offsets[-1] > len(content) or offsets != sorted(offsets):
        raise ValueError(
            f"path: {listed[0]} in {path!r} must rise from 0 to {len(content)}, the bytes of {name}"
        )
    sources = (io.BytesIO(content[a:b]) for a, b in itertools.pairwise(offsets))
    return _stack((_decode(source) for source in sources), len(offsets) - 1, f"path: {name} in {path!r}")


def _stack(images: Iterable[np.ndarray], count: int, what: str) -> np.ndarray:
    """``count`` images of one size, written into one array as they come: there is never a list of them."""
    stacked = np.empty((0,), np.uint8)
    for i, image in enumerate(images):
        if i == 0:
            stacked = np.empty((count, *image.shape), np.uint8)
        elif image.shape != stacked.shape[1:]:
            first, other = (f"{shape[1]} x {shape[0]}" for shape in (stacked.shape[1:], image.shape))
            raise ValueError(
                f"{what}: all images must be of one size; the first is {first}, number {i} is {other}"
            )
        stacked[i] = image
    return stacked


def image_folder(path: str | os.PathLike[str], *, size: int, names: Sequence[str] | None = None) -> Images:
    """Images of a folder that has one folder a class, in alphabetical order.

    Args:
        path: the folder.
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
        names: the classes, in the order of their labels, where another folder decides it (that of the training
            images). Default: all folders in ``path``, in alphabetical order.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images, or a class none.
        ImportError: if Pillow is not installed.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"path: no folder at {os.fspath(path)!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if names is None else list(names)
    if not names:
        raise ValueError(f"path: {os.fspath(path)!r} must hold one folder a class; it has none")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        of_class = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not of_class:
            folder = os.fspath(root / name)
            raise ValueError(f"path: {folder!r} holds no images ({', '.join(sorted(_SUFFIXES))})")
        files += of_class
        labels += [label] * len(of_class)
    return _read(files, labels, names, size)


def image_folders(path: str | os.PathLike[str], *, size: int) -> tuple[Images, Images]:
    """Training and test images of a folder that holds the two parts.

    Each part has one folder a class (:func:`image_folder`). TinyImageNet is read as it is distributed: its
    ``val`` has all images in one folder, and ``val_annotations.txt`` says the class of each.

    Args:
        path: holds a folder ``train`` and one ``test``, ``val`` or ``validation``.
        size: of the images, see :func:`image_folder`.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a class has no images.
        ImportError: if Pillow is not installed.
    """
    root = Path(path)
    there = [name for name in _TEST_NAMES if (root / name).is_dir()]
    if not (root / "train").is_dir() or not there:
        allowed = " or ".join(map(repr, _TEST_NAMES))
        raise FileNotFoundError(f"path: {os.fspath(path)!r} must hold a folder 'train' and a folder {allowed}")
    train = image_folder(root / "train", size=size)
    # TinyImageNet's "test" has no labels, so its "val" goes first.
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return train, image_folder(root / there[0], size=size, names=train.names)
    numbers = {name: label for label, name in enumerate(train.names)}
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    unknown = sorted(
        {row[1] if len(row) > 1 else row[0] for row in rows if len(row) < 2 or row[1] not in numbers}
    )
    if unknown or not rows:
        raise ValueError(
            f"path: {os.fspath(annotations)!r} must name an image and its class per line, separated by a tab; "
            f"there is no class {', '.join(unknown[:3]) or 'in it'}"
        )
    files = [root / "val" / "images" / row[0] for row in rows]
    return train, _read(files, [numbers[row[1]] for row in rows], train.names, size)


def _read(files: Sequence[Path], labels: Sequence[int], names: Sequence[str], size: int) -> Images:
    image = pillow()

    def read(file: Path) -> np.ndarray:
        with image.open(file) as opened:
            return square(opened.convert("RGB"), size)

    images = _stack((read(file) for file in files), len(files), "path")
    return Images(_to_tensor(images), torch.tensor(labels), list(names))


def square(image: Any, size: int) -> np.ndarray:
    """The middle of a Pillow image whose shorter side is resized to ``size`` pixels, bicubic, as an array."""
    factor = size / min(image.size)
    width, height = (max(round(side * factor), size) for side in image.size)
    resized = image.resize((width, height), pillow().Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))
