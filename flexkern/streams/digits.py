"""Where digit images come from: scikit-learn's bundled ones, or an MNIST archive that the user names."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digits", "bundled_digits", "mnist"]


class Digits(NamedTuple):
    """Digit images, uint8 [n, height, width] in 0..255, and their labels, int64 [n]."""

    images: Tensor
    labels: Tensor


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
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"path: no MNIST archive at {os.fspath(path)!r} (an .npz with x_train, y_train, ...)"
        )
    with np.load(path, allow_pickle=False) as archive:
        missing = [n for n in ("x_train", "y_train", "x_test", "y_test") if n not in archive.files]
        if missing:
            raise ValueError(f"path: {os.fspath(path)!r} has no {', '.join(missing)}; it holds {archive.files}")
        parts = [(archive[f"x_{p}"], archive[f"y_{p}"]) for p in ("train", "test")]
    for x, y in parts:
        if x.ndim != 3 or x.dtype != np.uint8 or y.shape != x.shape[:1]:
            raise ValueError(
                f"path: images must be uint8 [n, height, width] with one label each, "
                f"got {x.dtype} {x.shape} and labels {y.shape}"
            )
    train, test = (Digits(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))) for x, y in parts)
    return train, test
