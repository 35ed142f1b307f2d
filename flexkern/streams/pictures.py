"""Pictures in files, as Pillow decodes them and as people mean them, and how large they may be."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flexkern.plain import whole_number
from flexkern.spec.argument import shown

__all__ = [
    "OTHER_SUFFIXES",
    "SUFFIXES",
    "WHITE",
    "check_bytes",
    "check_size",
    "colour",
    "decode",
    "look",
    "pillow",
    "rgb",
    "square",
    "stack",
]

WHITE = (255, 255, 255)
"""What lies behind transparent pixels, unless a caller says otherwise."""

_READ = ".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .ppm .pgm .pbm .pnm"
_NOT_READ = """
    .apng .avif .avifs .heic .heif .hif .jxl .jp2 .j2k .jpx .jpf .jpc .svg .svgz .psd .xcf .ai .eps .ico .icns
    .cur .tga .dds .exr .hdr .pcx .dib .mpo .qoi .pfm .sgi .xbm .xpm .raw .dng .cr2 .cr3 .crw .nef .nrw .arw
    .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .erf .kdc .mrw .dcm
"""
SUFFIXES = frozenset(_READ.split())
"""Files whose names end so are read as pictures."""
OTHER_SUFFIXES = frozenset(_NOT_READ.split())
"""Files whose names end so are pictures that are not read: they are named where they are left out."""

# What a file may hold, whatever its name says. Pillow's other readers may start programs (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000")
_MOST_PIXELS = 89_478_485  # of a picture; where Pillow begins to warn
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of EXIF and TIFF
# Which ends of the turned picture were far ends of the stored one, by the orientation that EXIF says.
_FAR_LEFT, _FAR_TOP = {2, 3, 6, 7}, {3, 4, 7, 8}
_SWAPPED = {5, 6, 7, 8}


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


def colour(value: Any, name: str = "background") -> tuple[int, int, int]:
    """Red, green and blue, each 0 to 255.

    Raises:
        TypeError, ValueError: naming the argument, if it is no such colour.
    """
    given = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(given, (list, tuple)) or len(given) != 3:
        raise TypeError(f"{name} must be red, green and blue, each 0 to 255, got {shown(value)}")
    red, green, blue = (whole_number(part, name, least=0, most=255) for part in given)
    return red, green, blue


def decode(
    source: Any,
    what: str,
    place: str = "",
    *,
    size: int | None = None,
    like: tuple[int, ...] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> np.ndarray:
    """uint8 [height, width, 3] of a picture in a file, see :func:`rgb`; of moving ones, the first picture.

    A JPEG whose shorter side is at least four times ``size`` is decoded at a half, a quarter or an eighth of
    its size, never under twice ``size``, which takes less than half the time; the result differs from that of
    all its pixels by about one level of 255 on average. It is the same each time.

    Args:
        source: path or open file.
        what, place: name it, for messages: the file, and which one in it.
        size: as for :func:`square`; None: as it is.
        like: the shape that it must have, where it is known; looked at before the picture is decoded.
        background: behind transparent pixels.

    Raises:
        ValueError: naming it, if it is no picture, damaged, too large or of another size.
        OSError: if a file cannot be opened.
    """
    with _opened(source, what, place) as opened:
        if like is not None and sorted(opened.size) != sorted(like[:2]):
            raise _other_size(opened.size, like, what, place)
        check_size(opened.width, opened.height)
        if size is not None:
            return square(opened, size, background)
        image = np.array(rgb(opened, background))  # which torch may write to
        if like is not None and image.shape != like:
            raise _other_size(image.shape[1::-1], like, what, place)
        return image


def look(source: Any, what: str, place: str = "", *, size: int) -> None:
    """Raises what :func:`decode` would, as far as the first bytes of the file tell: it decodes nothing."""
    with _opened(source, what, place) as opened:
        check_size(opened.width, opened.height)
        _resized_sides(opened.size, size)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    image = pillow()
    image.init()
    return tuple(kind for kind in _FORMATS if kind in image.OPEN)


@contextmanager
def _opened(source: Any, what: str, place: str) -> Iterator[Any]:
    """A picture; what goes wrong with it is raised as a ValueError that names it."""
    image = pillow()
    try:
        with image.open(source, formats=_formats()) as opened:
            yield opened
    except (ImportError, MemoryError, _NamedError):
        raise
    except Exception as error:  # whatever Pillow's many readers stumble over
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"{what}, {place}" if place else what
        words = "cannot identify image file" if type(error).__name__ == "UnidentifiedImageError" else error
        raise ValueError(
            f"{where}: {'' if isinstance(error, _RefusedError) else 'no image, or damaged: '}{words}"
        ) from error


def _other_size(size: Any, like: tuple[int, ...], what: str, place: str) -> ValueError:
    first, other = f"{like[1]} x {like[0]}", f"{size[0]} x {size[1]}"
    return _NamedError(f"{what}: all images must be of one size; the first is {first}, {place} is {other}")


class _NamedError(ValueError):
    """That names the file already."""


class _RefusedError(ValueError):
    """Of this file, and no damage."""


def check_size(width: int, height: int) -> None:
    """Raises ValueError if a picture of such sides would be too large."""
    if width * height > _MOST_PIXELS:
        raise _RefusedError(f"a picture may have {_MOST_PIXELS} pixels, this one has {width} x {height}")


def rgb(image: Any, background: tuple[int, int, int] = WHITE) -> Any:
    """A Pillow image as it is meant, with three channels of 8 bits.

    It is turned as its EXIF data say, and transparent pixels are laid on ``background``. Grey pixels of 16 bits
    are scaled by their depth (40000 becomes 156), and so are those of mode I, in which Pillow has 16 bits, too;
    those of mode F must be in [0, 1], which becomes 0 to 255. No picture's own darkest and brightest pixels
    decide anything. Colour profiles are not applied, as they are not in torchvision.

    Raises:
        ValueError: if its pixels have values outside these ranges.
    """
    image.load()  # as which Pillow turns a TIFF
    return _flat(_turned(image, _orientation(image)), background)


def square(image: Any, size: int, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """The middle of a Pillow image whose shorter side is resized to ``size`` pixels, bicubic, as an array.

    Args:
        image: is taken as it is meant, see :func:`rgb`.
        size: pixels, at least 1.
        background: behind transparent pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: if it has no pixels, is too large or would be, or has values that :func:`rgb` refuses.
    """
    stored = image.size
    _resized_sides(stored, size)
    scale = _draft(image, size)
    image.load()  # as which Pillow turns a TIFF; nothing but a JPEG is drafted
    orientation = _orientation(image)
    turned = _turned(image, orientation)
    sides = turned.size if scale == 1 else stored[:: -1 if orientation in _SWAPPED else 1]
    width, height = _resized_sides(sides, size)
    # Where the picture's own ends are in the drafted one, which may be longer by a part of a pixel.
    across, down = sides[0] / scale, sides[1] / scale
    left = turned.width - across if orientation in _FAR_LEFT else 0.0
    top = turned.height - down if orientation in _FAR_TOP else 0.0
    box = None if scale == 1 else (left, top, left + across, top + down)
    resized = _flat(turned, background).resize((width, height), pillow().Resampling.BICUBIC, box=box)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(resized.crop((left, top, left + size, top + size)))


def _resized_sides(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height when the shorter side is resized to ``size``."""
    if not min(sides):
        raise _RefusedError("it has no pixels")
    factor = size / min(sides)
    width, height = (max(round(side * factor), size) for side in sides)
    try:
        check_size(width, height)
    except _RefusedError as error:
        given = " x ".join(map(str, sides))
        raise _RefusedError(f"{error} when the shorter side of {given} is resized to {size}") from None
    return width, height


def _draft(image: Any, size: int) -> int:
    """Has an unread JPEG decoded at a part of its size, at least twice ``size``; by what it is divided."""
    if getattr(image, "format", None) not in ("JPEG", "MPO") or not getattr(image, "tile", None):
        return 1
    width = image.size[0]
    drafted = image.draft(image.mode, (2 * size, 2 * size))
    if drafted is None or image.size[0] == width:
        return 1
    return int(next(scale for scale in (8, 4, 2) if -(-width // scale) == image.size[0]))


def _orientation(image: Any) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged data about a picture tell nothing about it, and the picture may be whole
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(image: Any, orientation: int) -> Any:
    if orientation == 1:
        return image
    way = pillow().Transpose
    ways = (
        way.FLIP_LEFT_RIGHT, way.ROTATE_180, way.FLIP_TOP_BOTTOM, way.TRANSPOSE, way.ROTATE_270, way.TRANSVERSE,
        way.ROTATE_90,
    )  # fmt: skip
    return image.transpose(ways[orientation - 2])


def _flat(image: Any, background: tuple[int, int, int]) -> Any:
    """Mode RGB: no depth but 8 bits, and nothing transparent."""
    if image.mode.startswith(("I", "F")):
        image = _of_eight_bits(image)
    if not (image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info):
        return image.convert("RGB")
    # Pillow has no way from La to RGBA but over LA.
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return pillow().alpha_composite(pillow().new("RGBA", clear.size, (*background, 255)), clear).convert("RGB")


def _of_eight_bits(image: Any) -> Any:
    """Mode L, or LA, of pixels with more than 8 bits."""
    values = np.asarray(image)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if image.mode == "F":
        if not 0 <= low <= high <= 1:  # nor NaN
            raise _RefusedError(
                f"its pixels are floating (mode F) and must be in [0, 1], got {low:g} to {high:g}; scale them, "
                "or save it with 8 bits"
            )
        grey = np.rint(values * 255)
    else:
        tags = getattr(image, "tag_v2", None) or {}
        most = 4095 if tags.get(_BITS) == (12,) else 65535
        if low < 0 or high > most:
            raise _RefusedError(
                f"its pixels (mode {image.mode}) must have {most.bit_length()} bits, 0 to {most}, got {low} "
                f"to {high}; scale them, or save it with 8 bits"
            )
        grey = (values.astype(np.uint32) * 255 + most // 2) // most
    flat = pillow().fromarray(grey.astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        flat.putalpha(pillow().fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return flat


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


def check_bytes(
    count: int, height: int, width: int, most: int, what: str, otherwise: str = "if there is so much memory"
) -> None:
    """Raises ValueError if so many images of three channels would take more than ``most`` bytes."""
    if count * height * width * 3 > most:
        raise ValueError(
            f"{what}: {count} images of {width} x {height} take {count * height * width * 3} bytes, and "
            f"most_bytes is {most}; pass a larger one {otherwise}"
        )
