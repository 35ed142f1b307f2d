"""Pictures in files, as Pillow decodes them, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["check_bytes", "check_size", "decode", "pillow", "rgb", "square", "stack"]

_MOST_PIXELS = 89_478_485  # of a picture; where Pillow begins to warn
_DEEP = ("I", "F")  # modes of more than 8 bits, which Pillow would cut off at 255


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


def decode(
    source: Any, what: str, place: str = "", *, size: int | None = None, like: tuple[int, ...] | None = None
) -> np.ndarray:
    """uint8 [height, width, 3] of a picture in a file.

    Args:
        source: path or open file.
        what, place: name it, for messages: the file, and which one in it.
        size: as for :func:`square`; None: as it is.
        like: the shape that it must have, where it is known; looked at before the picture is decoded.

    Raises:
        ValueError: naming it, if it is no picture, damaged, too large or of another size.
        OSError: if a file cannot be opened.
    """
    image = pillow()
    try:
        with image.open(source) as opened:
            if like is not None and opened.size != (like[1], like[0]):
                first, other = f"{like[1]} x {like[0]}", f"{opened.width} x {opened.height}"
                raise ValueError(
                    f"{what}: all images must be of one size; the first is {first}, {place} is {other}"
                )
            check_size(opened.width, opened.height)
            return square(opened, size) if size is not None else np.asarray(rgb(opened))
    except ImportError:
        raise
    except Exception as error:  # whatever Pillow's many readers stumble over
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if str(error).startswith(what):
            raise
        where = f"{what}, {place}" if place else what
        raise ValueError(
            f"{where}: {'' if isinstance(error, _RefusedError) else 'no image, or damaged: '}{error}"
        ) from error


class _RefusedError(ValueError):
    """Of this file."""


def check_size(width: int, height: int) -> None:
    """Raises ValueError if a picture of such sides would be too large."""
    if width * height > _MOST_PIXELS:
        raise _RefusedError(f"a picture may have {_MOST_PIXELS} pixels, this one has {width} x {height}")


def rgb(image: Any) -> Any:
    """A Pillow image with three channels of 8 bits. ValueError if its pixels have more."""
    if image.mode.startswith(_DEEP):
        raise _RefusedError(f"its pixels are of mode {image.mode!r}, and must have 8 bits for each channel")
    return image.convert("RGB")


def square(image: Any, size: int) -> np.ndarray:
    """The middle of a Pillow image whose shorter side is resized to ``size`` pixels, bicubic, as an array.

    Raises:
        ValueError: if it has no pixels, more than 8 bits for each channel, or would be too large.
    """
    if not min(image.size):
        raise _RefusedError("it has no pixels")
    factor = size / min(image.size)
    width, height = (max(round(side * factor), size) for side in image.size)
    try:
        check_size(width, height)
    except _RefusedError as error:
        sides = " x ".join(map(str, image.size))
        raise _RefusedError(f"{error} when the shorter side of {sides} is resized to {size}") from None
    resized = rgb(image).resize((width, height), pillow().Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def stack(images: Iterable[np.ndarray], count: int, most: int, what: str) -> np.ndarray:
    """``count`` images of one size, written into one array as they come: there is never a list of them.

    Args:
        images: uint8 [height, width, 3], all of one shape.
        count: how many.
        most: bytes that they may take.
        what: names them, for messages.

    Raises:
        ValueError: if they would take more.
    """
    stacked = np.empty((0,), np.uint8)
    for i, image in enumerate(images):
        if i == 0:
            check_bytes(count, image.shape[0], image.shape[1], most, what)
            stacked = np.empty((count, *image.shape), np.uint8)
        stacked[i] = image
    return stacked


def check_bytes(count: int, height: int, width: int, most: int, what: str) -> None:
    """Raises ValueError if so many images of three channels would take more than ``most`` bytes."""
    if count * height * width * 3 > most:
        raise ValueError(
            f"{what}: {count} images of {width} x {height} take {count * height * width * 3} bytes, and "
            f"most_bytes is {most}; pass a larger one if there is so much memory"
        )
