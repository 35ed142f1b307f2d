"""Where digit images come from: scikit-learn's bundled ones, or an MNIST archive that the user names."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexkern.streams.archives import Archive
from flexkern.streams.shown import inputs_shown

__all__ = ["Digits", "bundled_digits", "mnist"]


class Digits(NamedTuple):
    """Digit images, uint8 [n, height, width] in 0..255, and their labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        return f"<Digits: {len(self.labels)} of {inputs_shown(self.images)}>"


def bundled_digits() -> Digits:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (no download).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), test part.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the bundled digits come with scikit-learn, which is not installed: pip install 'flexkern[cli]'",
            name="sklearn",
        ) from error
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)  # the pixels are whole numbers 0..16
    return Digits(torch.from_numpy(images), torch.from_numpy(data.target.astype(np.int64)))


def mnist(path: str | os.PathLike[str]) -> tuple[Digits, Digits]:
    """Training and test images of MNIST from a NumPy archive.

    Args:
        path: an ``.npz`` with x_train, y_train, x_test and y_test (the layout that Keras made common).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if arrays are missing or have the wrong shape.
    """
    with Archive(path, "MNIST archive") as archive:
        missing = [n for n in ("x_train", "y_train", "x_test", "y_test") if n not in archive]
        if missing:
            raise ValueError(
                f"path: {archive.path!r} has no {', '.join(missing)}; it holds {archive.names[:20]}"
            )
        for p in ("train", "test"):
            x, y = (archive.header(f"{of}_{p}") for of in "xy")
            whole = y.dtype.kind in "iu"
            if len(x.shape) != 3 or x.dtype != np.uint8 or y.shape != x.shape[:1] or not whole:
                raise ValueError(
                    f"path: images in {archive.path!r} must be uint8 [n, height, width] with one label each, "
                    f"got {x.dtype} {x.shape} and labels {y.dtype} {y.shape}"
                )
        parts = [(archive.read(f"x_{p}"), archive.read(f"y_{p}")) for p in ("train", "test")]
        for _, labels in parts:
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
                raise ValueError(
                    f"path: labels in {archive.path!r} must be 0 to 9, got {labels.min()} to {labels.max()}"
                )
    train, test = (
        Digits(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))
        for images, labels in parts
    )
    return train, test
