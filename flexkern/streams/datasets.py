"""Images out of anything that has a length and an index: torchvision's and Hugging Face's data sets, arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.streams.labelled import MOST_CLASSES, Images
from flexkern.streams.pictures import check_size, pillow, rgb, square

__all__ = ["images_of"]

_IMAGE_KEYS = ("image", "img")
_LABEL_KEYS = ("label", "labels", "fine_label")


def images_of(dataset: Any, *, size: int | None = None) -> Images:
    """All images and labels of a data set, in memory: uint8 [n, 3, height, width].

    Args:
        dataset: one of

            - a map-style data set (``len(dataset)``, ``dataset[i]``) of pairs (image, label), as torchvision's
              are, without a random transform; class names are taken from its ``classes``;
            - one of rows with an image ("image" or "img") and a label ("label", "labels" or "fine_label"), as
              Hugging Face's are; names are taken from its ``features``;
            - a ``torch.utils.data.TensorDataset``, or a pair, of all images and all labels.

            An image is a Pillow image, a tensor [height, width] or [channels, height, width], or an array
            [height, width] or [height, width, channels], of 1 or 3 channels: uint8, or floating in [0, 1].
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
            Needed where images are of different sizes.

    Raises:
        TypeError: if it is not such a data set, or an image or a label is of another kind.
        ValueError: if it is empty, images are of different sizes, an image cannot be decoded, or a value is
            outside its range (labels: 0 ... 131071).
        ImportError: if ``size`` is given and Pillow is not installed.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
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
    images, labels = _collect(source, size)
    return Images(images, labels, _names(dataset, int(labels.max()) + 1))


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


def _collect(source: Any, size: int | None) -> tuple[Tensor, Tensor]:
    images = torch.empty(0)
    labels = torch.empty(len(source), dtype=torch.int64)
    for i in range(len(source)):
        image, label = _pair(source[i], i)
        pixels = _pixels(image, i, size)
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


def _pair(row: Any, i: int) -> tuple[Any, Any]:
    if isinstance(row, Mapping):
        found = [next((row[k] for k in keys if k in row), None) for keys in (_IMAGE_KEYS, _LABEL_KEYS)]
        if found[0] is None or found[1] is None:
            raise TypeError(
                f"dataset: row {i} must have an image ({', '.join(_IMAGE_KEYS)}) and a label "
                f"({', '.join(_LABEL_KEYS)}), it has {', '.join(map(str, row))}"
            )
        return found[0], found[1]
    if isinstance(row, (tuple, list)) and len(row) == 2:
        return row[0], row[1]
    raise TypeError(
        f"dataset: row {i} must be a pair (image, label) or have named fields, got {type(row).__name__}"
    )


def _pixels(image: Any, i: int, size: int | None) -> np.ndarray:
    """uint8 [height, width, 1 or 3]."""
    if hasattr(image, "convert"):  # Pillow's
        return _of_pillow(lambda: square(image, size) if size is not None else rgb(image), image, i)
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
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(
            f"dataset: image {i} must be [height, width] or have 1 or 3 channels (a tensor's come first, an "
            f"array's last), got shape {tuple(image.shape)}"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(
                f"dataset: image {i} is floating and must be in [0, 1], got {array.min()} to {array.max()}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise TypeError(f"dataset: image {i} must be uint8 or floating, got {array.dtype}")
    if size is not None:
        made = pillow().fromarray(np.ascontiguousarray(array.repeat(3 // array.shape[2], 2)))
        return _of_pillow(lambda: square(made, size), made, i)
    return np.array(array)  # a copy, which torch may write to


def _of_pillow(pixels: Callable[[], Any], image: Any, i: int) -> np.ndarray:
    """The pixels, which may be read from a file only now."""
    try:
        check_size(*image.size)
        return np.array(pixels())
    except ImportError:
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
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        key = next((k for k in _LABEL_KEYS if k in features), None)
        names = getattr(features[key], "names", None) if key is not None else None
    if names is None or len(names) < count:
        return [str(c) for c in range(count)]
    return [str(name) for name in names]
