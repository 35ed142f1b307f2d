"""How the same pictures can look otherwise: noise, blur, weather, colours, turned; by kind and severity.

The kinds and most numbers are those that Hendrycks and Dietterich (ICLR 2019) give for images of 32 x 32
pixels. They are written anew, without the libraries and files of theirs, so that what comes out is **of these
kinds, and not CIFAR-10-C or CIFAR-100-C**: figures are not to be held against those of papers that use these.

Values are float64 in 0..1, and only sums, products and quotients of them are taken, always in the same order:
the same image, kind, severity and random numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from flexkern.plain import nearest
from flexkern.spec.argument import shown
from flexkern.streams.pictures import pillow

__all__ = ["CLEAN", "KINDS", "WITHOUT_SEVERITY", "Look", "changed", "look_of"]

CLEAN = "clean"
"""The look of pictures as they are."""
_SIDE = 32  # lengths below are for pictures of so many pixels; others have them in proportion


class Look(NamedTuple):
    """A kind, and its severity: 1 to 5, or 0 for a kind that has none."""

    kind: str
    severity: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity}" if self.severity else self.kind


def look_of(text: object, name: str) -> Look:
    """ "gaussian_noise:3" as a look; "inverted" and "clean" have no severity.

    Raises:
        TypeError, ValueError: naming the argument, with what it may be.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a look such as 'fog:3', got {shown(text)}")
    kind, colon, severity = text.partition(":")
    if kind not in (*KINDS, CLEAN):
        raise ValueError(
            f"{name}: there is no look {shown(kind)}{nearest(kind, KINDS)}; there are {CLEAN}, "
            f"{', '.join(KINDS)}"
        )
    if kind == CLEAN or kind in WITHOUT_SEVERITY:
        if colon:
            raise ValueError(f"{name}: {kind!r} has no severity, got {text!r}")
        return Look(kind, 0)
    if severity not in ("1", "2", "3", "4", "5"):
        raise ValueError(f"{name}: {kind!r} needs a severity from 1 to 5, as '{kind}:3', got {text!r}")
    return Look(kind, int(severity))


def changed(image: np.ndarray, look: Look, random: Generator) -> np.ndarray:
    """A picture as it looks then.

    Args:
        image: uint8 [height, width, 3].
        look: the kind and the severity.
        random: where random numbers are taken from, of kinds that have any.
    """
    if look.kind == CLEAN:
        return image
    x = KINDS[look.kind](image / 255, look.severity - 1, random)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------------- noise


def _gaussian_noise(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    return x + random.normal(size=x.shape) * (0.04, 0.06, 0.08, 0.09, 0.10)[s]


def _shot_noise(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    photons = (500, 250, 100, 75, 50)[s]
    return random.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[s]
    which = random.random(x.shape)
    return np.where(which < share / 2, 0.0, np.where(which < share, 1.0, x))


def _speckle_noise(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    return x + x * random.normal(size=x.shape) * (0.06, 0.1, 0.12, 0.16, 0.2)[s]


# ---------------------------------------------------------------------- blur


def _gaussian_blur(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    return _smoothed(x, (0.4, 0.6, 0.7, 0.8, 1.0)[s] * _scale(x))


def _defocus_blur(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Each point becomes a disk."""
    radius = (0.5, 0.75, 1.0, 1.5, 2.0)[s] * _scale(x)
    reach = math.ceil(radius + 0.5)
    weights = {
        (i, j): min(max(radius + 0.5 - math.hypot(i, j), 0.0), 1.0)
        for i in range(-reach, reach + 1)
        for j in range(-reach, reach + 1)
    }
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = sum(weights.values())
    height, width = x.shape[:2]
    return _sum(
        padded[reach + i : reach + i + height, reach + j : reach + j + width] * (weight / total)
        for (i, j), weight in weights.items()
        if weight
    )


def _pixelate(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    image = pillow()
    height, width = x.shape[:2]
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[s]
    picture = image.fromarray(np.rint(x * 255).astype(np.uint8))
    small = picture.resize((max(int(width * share), 1), max(int(height * share), 1)), image.Resampling.BOX)
    return np.asarray(small.resize((width, height), image.Resampling.BOX)) / 255


def _jpeg(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Compressed and decoded by Pillow; another version's library may give other bytes."""
    image, file = pillow(), io.BytesIO()
    quality = (80, 65, 58, 50, 40)[s]
    image.fromarray(np.rint(x * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(image.open(file)) / 255


# ---------------------------------------------------------------------- light and weather


def _contrast(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    # Whole numbers have one sum, in whichever order.
    mean = np.rint(x * 255).astype(np.int64).sum((0, 1)) / (255 * x.shape[0] * x.shape[1])
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[s] + mean


def _brightness(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """More of the value, of hue, saturation and value."""
    value = x.max(2, keepdims=True)
    more = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[s], 1)
    return np.where(value > 0, x * (more / np.where(value > 0, value, 1)), more)


def _saturate(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Less or more of the saturation; greys, which have no hue, stay."""
    by, plus = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[s]
    value, least = x.max(2, keepdims=True), x.min(2, keepdims=True)
    coloured = value > least
    saturation = np.where(coloured, (value - least) / np.where(value > 0, value, 1), 1)
    wanted = np.minimum(saturation * by + plus, 1)
    return np.where(coloured, value - (value - x) * (wanted / saturation), x)


def _fog(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Light scattered by clouds: noise of many lengths, long ones the strongest."""
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[s]
    height, width = x.shape[:2]
    clouds, weight, cells = np.zeros((height, width, 1)), 1.0, 2
    while cells <= min(height, width):
        grid = random.random((cells + 1, cells + 1, 1))
        rows, columns = np.meshgrid(
            np.arange(height) * (cells / height), np.arange(width) * (cells / width), indexing="ij"
        )
        clouds = clouds + _sampled(grid, rows, columns) * weight
        weight, cells = weight / decay, cells * 2
    clouds = clouds - clouds.min()
    clouds = clouds / max(float(clouds.max()), 1e-12)
    most = float(x.max())
    return (x + clouds * strength) * (most / max(most + strength, 1e-12))


# ---------------------------------------------------------------------- shape and colours


def _elastic(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Each point is drawn from a place nearby, neighbours from neighbouring places."""
    height, width = x.shape[:2]
    most = (0.75, 1.0, 1.5, 2.0, 2.5)[s] * _scale(x)
    moved = _smoothed(random.uniform(-1, 1, (height, width, 2)), 3 * _scale(x))
    moved = moved * (most / max(float(np.abs(moved).max()), 1e-12))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return _sampled(x, rows + moved[..., 0], columns + moved[..., 1])


def _rotated(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """All by the same angle: 15, 30, 45, 60 or 75 degrees to the left; corners are as the nearest edge."""
    angle = math.radians(15 * (s + 1))
    height, width = x.shape[:2]
    rows, columns = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cosine, sine = math.cos(angle), math.sin(angle)
    return _sampled(
        x,
        rows * cosine + columns * sine + (height - 1) / 2,
        columns * cosine - rows * sine + (width - 1) / 2,
    )


def _inverted(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    return 1 - x


def _coloured(x: np.ndarray, s: int, random: Generator) -> np.ndarray:
    """Dark becomes one colour and light another, drawn for each picture: a dark and a light one."""
    dark, light = random.uniform(0, 0.4, 3), random.uniform(0.6, 1, 3)
    grey = (x[..., :1] + x[..., 1:2] + x[..., 2:]) / 3
    return grey * light + (1 - grey) * dark


KINDS: dict[str, Callable[[np.ndarray, int, Generator], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "contrast": _contrast,
    "brightness": _brightness,
    "saturate": _saturate,
    "fog": _fog,
    "elastic": _elastic,
    "rotated": _rotated,
    "inverted": _inverted,
    "coloured": _coloured,
}
"""Of each kind, what it makes of a picture in 0..1, [height, width, 3], by its severity from 0."""
WITHOUT_SEVERITY = ("inverted", "coloured")
"""Kinds that are as they are."""


def _scale(x: np.ndarray) -> float:
    return min(x.shape[:2]) / _SIDE


def _sum(parts: Iterable[np.ndarray]) -> np.ndarray:
    total: np.ndarray | None = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None
    return total


def _smoothed(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, up and down and then along; beyond the edge is the edge."""
    reach = max(math.ceil(4 * sigma), 1)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    total = sum(weights)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded, count = np.pad(x, pad, mode="edge"), x.shape[axis]
        x = _sum(
            np.take(padded, np.arange(i, i + count), axis) * (weight / total)
            for i, weight in enumerate(weights)
        )
    return x


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The colours at places between pixels, bilinear; beyond the edge is the edge."""
    height, width = x.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, along = (rows - top)[..., None], (columns - left)[..., None]
    upper = x[top, left] * (1 - along) + x[top, right] * along
    lower = x[below, left] * (1 - along) + x[below, right] * along
    return upper * (1 - down) + lower * down
