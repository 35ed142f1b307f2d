"""Pictures as people give them for an answer: files, folders, PIL images, arrays."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from flexkern.streams import pictures
from flexkern.streams.folders import pictures_in
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Skipped

__all__ = ["are_pictures", "picture_files", "pictures_given"]

_CHANNELS = (1, 3, 4)
_WHAT = "paths, PIL images and arrays [height, width] or [height, width, 1, 3 or 4]"


def are_pictures(x: object) -> bool:
    """Whether this is one picture, or a list with one at least: what is no tensor and no source."""
    if isinstance(x, (list, tuple)):
        return not x or any(_is_picture(one) for one in x)
    return _is_picture(x) or (isinstance(x, np.ndarray) and x.ndim == 4 and x.shape[3] in _CHANNELS)


def _is_picture(x: object) -> bool:
    return isinstance(x, (str, os.PathLike)) or _is_pil(x) or (isinstance(x, np.ndarray) and _is_one(x))


def _is_pil(x: object) -> bool:
    module = sys.modules.get("PIL.Image")  # an object of it cannot be there without
    return module is not None and isinstance(x, module.Image)


def _is_one(x: np.ndarray) -> bool:
    return x.ndim == 2 or (x.ndim == 3 and x.shape[2] in _CHANNELS)


def picture_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files that :meth:`flexkern.learners.Learner.predict` answers about, in its order.

    Args:
        paths: of a file or a folder, or several. A folder stands for all pictures in it and below, sorted by
            path, without hidden ones; of formats that are not read a warning names some, and what are no
            pictures are left out. ``~`` is the home folder.

    Raises:
        FileNotFoundError: naming the path, if there is nothing.
        ValueError: if a folder has no picture.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found, skipped = list[str](), list[Skipped]()
    for given in several:
        path = os.path.expanduser(os.fsdecode(given))
        if os.path.isdir(path):
            inside = pictures_in(path, "", skipped)
            if not inside:
                read = " ".join(sorted(pictures.SUFFIXES))
                raise ValueError(f"x: the folder {path!r} holds no pictures ({read})")
            found += [os.path.join(path, name) for name in inside]
        elif os.path.exists(path):
            found.append(path)
        else:
            raise FileNotFoundError(f"x: there is no file or folder {path!r}")
    if skipped:
        named = ", ".join(one.path for one in skipped[:3])
        files = (
            "a file is left out, as it" if len(skipped) == 1 else f"{len(skipped)} files are left out, as they"
        )
        warnings.warn(f"x: {files} cannot be read: {named}", stacklevel=2)
    return found


def pictures_given(x: Any, size: int) -> ImageSource:
    """A source of pictures, of which :func:`are_pictures` says that they are some, in squares of ``size``
    pixels.

    Raises:
        FileNotFoundError, ValueError: as :func:`picture_files`.
        TypeError: naming what in a list is no picture.
    """
    if isinstance(x, np.ndarray) and x.ndim == 4:
        x = list(_as_bytes(x, "x"))
    several = x if isinstance(x, (list, tuple)) else [x]
    found: list[Any] = []
    for i, one in enumerate(several):
        name = f"x[{i}]" if isinstance(x, (list, tuple)) else "x"
        if not _is_picture(one):
            of = f" of shape {one.shape}" if isinstance(one, np.ndarray) else ""
            raise TypeError(f"x must be a list of {_WHAT}; {name} is {type(one).__name__}{of}")
        if isinstance(one, (str, os.PathLike)):
            found += picture_files(one)
        else:
            found.append(_as_bytes(one, name) if isinstance(one, np.ndarray) else one)
    return _Given(found, size)


def _as_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name} must be uint8, or floating-point in [0, 1], got {array.dtype}; if its values are 0 ... "
            "255, pass .astype(numpy.uint8)"
        )
    if array.size and not (array.min() >= 0 and array.max() <= 1):  # NaN compares as neither
        raise ValueError(
            f"{name} must be in [0, 1], or uint8; its values are {array.min():g} to {array.max():g}"
        )
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


class _Given(ImageSource):
    """Paths, PIL images and arrays of bytes as one source."""

    def __init__(self, given: list[Any], size: int) -> None:
        super().__init__(size)
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def decode(self, i: int) -> np.ndarray:
        one = self._given[i]
        if isinstance(one, str):
            return np.array(pictures.decode(one, f"x: {one!r}", size=self.size))
        try:
            if isinstance(one, np.ndarray):
                one = pictures.pillow().fromarray(one[..., 0] if one.ndim == 3 and one.shape[2] == 1 else one)
            return np.array(pictures.square(one, self.size))
        except (OSError, ValueError, SyntaxError) as error:  # a PIL image that was opened is read here
            raise ValueError(f"x: {self.name(i)}: {error}") from error

    def name(self, i: int) -> str:
        one = self._given[i]
        return one if isinstance(one, str) else f"{type(one).__name__} {i}"

    def identity(self, i: int) -> str:
        return self.name(i)
