"""Images out of anything that has a length and an index: torchvision's and Hugging Face's data sets, arrays."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import flag, whole_number
from flexkern.streams.dataset_facts import (
    IMAGE_KEYS,
    LABEL_KEYS,
    identity_in,
    labels_said,
    names_said,
    path_of,
)
from flexkern.streams.image_source import ImageSource, ahead
from flexkern.streams.labelled import MOST_CLASSES, Images, Reading
from flexkern.streams.pictures import WHITE, check_size, decode, pillow, rgb, square

__all__ = ["DatasetSource", "images_of"]


def images_of(
    dataset: Any,
    *,
    size: int | None = None,
    lazy: bool = False,
    background: Sequence[int] = WHITE,
    workers: int | None = None,
) -> Images:
    """All images and labels of a data set: uint8 [n, 3, height, width], in memory or decoded when needed.

    Args:
        dataset: one of

            - a map-style data set (``len(dataset)``, ``dataset[i]``) of pairs (image, label), as torchvision's
              are, without a random transform; class names are taken from its ``classes``;
            - one of rows with an image ("image" or "img") and a label ("label", "labels" or "fine_label"), as
              Hugging Face's are; names are taken from its ``features``;
            - a ``torch.utils.data.TensorDataset``, or a pair, of all images and all labels.

            An image is a Pillow image (taken as it is meant: :func:`flexkern.streams.pictures.rgb`), a mapping
            with "bytes" or "path" (as Hugging Face's that are not decoded), a tensor [height, width] or
            [channels, height, width], or an array [height, width] or [height, width, channels], of 1 or 3
            channels, or 4 with transparency: uint8, or floating in [0, 1].
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
            Needed where images are of different sizes, and where ``lazy``.
        lazy: whether ``images`` is a source (:class:`flexkern.streams.ImageSource`) whose worker processes ask
            the data set when images are needed. Labels are read now: from the data set's column or its
            ``targets`` or ``labels``, which decodes nothing, and where it has none, from all its rows.
        background: red, green and blue behind transparent pixels, 0 to 255.
        workers: processes that decode, of a source; 0: none; None: one for each processor, at most 8.

    Raises:
        TypeError: if it is not such a data set, or an image, a label or an argument is of another kind.
        ValueError: if it is empty, images are of different sizes, an image cannot be decoded, or a value is
            outside its range (labels: 0 ... 131071).
        ImportError: if ``size`` is given and Pillow is not installed.
    """
    size = size if size is None else whole_number(size, "size")
    if flag(lazy, "lazy") and size is None:
        raise ValueError("size: pass size=, the pixels of each side; lazy=True needs it")
    reading = Reading.checked(size or 1, background, "raise", lazy, workers, 0)
    source = _map_style(dataset)
    if lazy:
        images: Any = DatasetSource(source, reading)
        labels = _labels_of(source, workers)
        images[0], images[-1]  # what is wrong with all of them is said now
    else:
        images, labels = _collect(source, size, reading.background)
    return Images(images, labels, _names(dataset, int(labels.max()) + 1))


def _map_style(dataset: Any) -> Any:
    """The data set with an index and a length.

    Raises:
        TypeError, ValueError: if it has none, or holds nothing.
    """
    if isinstance(dataset, Images):
        source: Any = _Pairs(*dataset[:2])
    elif isinstance(dataset, torch.utils.data.TensorDataset):
        if len(dataset.tensors) != 2:
            raise ValueError(
                f"dataset: a TensorDataset must hold images and labels, got {len(dataset.tensors)} tensors"
            )
        source = _Pairs(*dataset.tensors)
    elif isinstance(dataset, tuple) and len(dataset) == 2 and all(hasattr(part, "shape") for part in dataset):
        source = _Pairs(*dataset)
    else:
        source = dataset
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, Mapping):
        hint = "; take one of its splits" if isinstance(source, Mapping) else ""
        raise TypeError(
            f"dataset must be map-style, with len(dataset) and dataset[i], got {type(dataset).__name__}{hint}"
        )
    if not len(source):
        raise ValueError("dataset holds no images")
    return source


class _Pairs:
    """Images and labels, each in one tensor or array, as a map-style data set."""

    def __init__(self, images: Any, labels: Any) -> None:
        if len(images) != len(labels):
            raise ValueError(f"dataset: there are {len(images)} images and {len(labels)} labels")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.labels[i]


def _collect(source: Any, size: int | None, background: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    images = torch.empty(0)
    labels = torch.empty(len(source), dtype=torch.int64)
    for i in range(len(source)):
        image, label = _row(source, i)
        pixels = _pixels(image, i, size, background)
        if i == 0:
            images = torch.empty((len(source), 3, *pixels.shape[:2]), dtype=torch.uint8)
        elif tuple(pixels.shape[:2]) != tuple(images.shape[2:]):
            first, other = (f"{s[1]} x {s[0]}" for s in (images.shape[2:], pixels.shape[:2]))
            raise ValueError(
                f"dataset: image {i} is {other} and image 0 is {first}; pass size= to bring all to one size"
            )
        images[i] = torch.from_numpy(pixels).permute(2, 0, 1)  # one channel becomes three
        labels[i] = _label(label, i)
    return images, labels


class DatasetSource(ImageSource):
    """Images of a map-style data set.

    Args:
        dataset: as of :func:`images_of`.
        reading: how they are read.
    """

    def __init__(self, dataset: Any, reading: Reading) -> None:
        super().__init__(reading.size, reading.workers)
        self.dataset, self.background = dataset, reading.background

    def __len__(self) -> int:
        return len(self.dataset)

    def decode(self, i: int) -> np.ndarray:
        pixels = _pixels(_row(self.dataset, i)[0], i, self.size, self.background)
        return pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2)

    def name(self, i: int) -> str:
        return path_of(self.dataset, i) or f"image {i} of the data set"

    def identity(self, i: int) -> str:
        """A file's path, bytes and time, or a Hugging Face data set's fingerprint; else of the pixels."""
        said = identity_in(self.dataset, i)
        if said is None:
            said = hashlib.blake2b(self.decode(i).tobytes(), digest_size=16).hexdigest()
        return f"{said} {self.size} {self.background}"


def _row(source: Any, i: int) -> tuple[Any, Any]:
    try:
        row = source[i]
    except (OSError, ValueError, SyntaxError) as error:  # of Pillow's, if the data set decodes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"dataset: image {i}: {error}") from error
    return _pair(row, i)


def _labels_of(source: Any, workers: int | None) -> Tensor:
    """The labels of a data set, int64 [n]: those that it says, if its rows have the same, or its rows'."""
    said = labels_said(source)
    if said is not None and len(said) == len(source):
        labels = torch.tensor([_label(label, i) for i, label in enumerate(said)])
        if all(_label(_row(source, i)[1], i) == labels[i] for i in (0, len(source) - 1)):
            return labels
    numbers = list(range(len(source)))
    rows = [numbers[i : i + 64] for i in range(0, len(source), 64)]
    return torch.cat(list(ahead(functools.partial(_labels_at, source), rows, workers)))


def _labels_at(source: Any, rows: list[int]) -> Tensor:
    return torch.tensor([_label(_row(source, i)[1], i) for i in rows])


def _pair(row: Any, i: int) -> tuple[Any, Any]:
    if isinstance(row, Mapping):
        found = [next((row[k] for k in keys if k in row), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if found[0] is None or found[1] is None:
            raise TypeError(
                f"dataset: row {i} must have an image ({', '.join(IMAGE_KEYS)}) and a label "
                f"({', '.join(LABEL_KEYS)}), it has {', '.join(map(str, row))}"
            )
        return found[0], found[1]
    if isinstance(row, (tuple, list)) and len(row) == 2:
        return row[0], row[1]
    raise TypeError(
        f"dataset: row {i} must be a pair (image, label) or have named fields, got {type(row).__name__}"
    )


def _pixels(image: Any, i: int, size: int | None, background: tuple[int, int, int]) -> np.ndarray:
    """uint8 [height, width, 1 or 3]."""
    if isinstance(image, Mapping) and (image.get("bytes") or image.get("path")):
        content = image.get("bytes")
        file = io.BytesIO(content) if content else image["path"]
        return decode(file, f"dataset: image {i}", size=size, background=background)
    if hasattr(image, "convert"):  # Pillow's
        return _of_pillow(image, i, size, background)
    if isinstance(image, Tensor):
        array = image.numpy(force=True)
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise TypeError(
            f"dataset: image {i} must be a Pillow image, a tensor or an array, got {type(image).__name__}"
        )
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"dataset: image {i} must be [height, width] or have 1 or 3 channels, or 4 with transparency (a "
            f"tensor's come first, an array's last), got shape {tuple(image.shape)}"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(
                f"dataset: image {i} is floating and must be in [0, 1], got {array.min()} to {array.max()}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise TypeError(f"dataset: image {i} must be uint8 or floating, got {array.dtype}")
    if size is None and array.shape[2] != 4:
        return np.array(array)  # a copy, which torch may write to
    if array.shape[2] == 1:
        array = array.repeat(3, 2)
    return _of_pillow(pillow().fromarray(np.ascontiguousarray(array)), i, size, background)


def _of_pillow(image: Any, i: int, size: int | None, background: tuple[int, int, int]) -> np.ndarray:
    """The pixels, which may be read from a file only now."""
    try:
        check_size(*image.size)
        return np.array(rgb(image, background)) if size is None else square(image, size, background)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever Pillow's readers stumble over
        name = getattr(image, "filename", "")
        raise ValueError(f"dataset: image {i}{f', {name!r},' if name else ''}: {error}") from error


def _label(label: Any, i: int) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or number != label:
        raise TypeError(f"dataset: the label of image {i} must be a whole number >= 0, got {label!r}")
    if number >= MOST_CLASSES:  # a list of names has one for each
        raise ValueError(f"dataset: the label of image {i} must be under {MOST_CLASSES}, got {number}")
    return number


def _names(dataset: Any, count: int) -> list[str]:
    """The classes' names where the data set says them, else their numbers."""
    if isinstance(dataset, Images):
        return list(dataset.names)
    names = names_said(dataset)
    return names if len(names) >= count else [str(c) for c in range(count)]
