"""Domains for domain-incremental streams: the same pictures in other looks, and digits in several hands."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from flexkern.plain import flag, whole_number
from flexkern.spec.argument import shown
from flexkern.streams.digits import Digits, bundled_digits, mnist
from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Images
from flexkern.streams.looks import CLEAN, Look, changed, look_of
from flexkern.streams.selection import check_images, listed_once

__all__ = ["HANDS", "corrupted", "corrupted_domains", "digit_domains", "digits_split", "hand_and_look"]

HANDS = ("digits", "mnist")
"""Whose digits: scikit-learn's, which are bundled, and MNIST's."""
_TEST_SHARE = 0.25  # of the bundled digits, which have no test images of their own
_SIDE = 32  # of a digit's picture
_LOOK = 37  # first number of generators' seeds


def corrupted(images: Images, look: str, *, seed: int = 0, lazy: bool = False) -> Images:
    """The same images in another look, as "gaussian_noise:3" or "inverted".

    Kinds, each with a severity from 1 to 5: gaussian_noise, shot_noise, impulse_noise, speckle_noise,
    gaussian_blur, defocus_blur, pixelate, jpeg, contrast, brightness, saturate, fog, elastic, rotated (by 15 to
    75 degrees); and without one: inverted, coloured, clean. They are of the kinds of Hendrycks and Dietterich,
    and not CIFAR-100-C (:mod:`flexkern.streams.looks`). The same image, look and seed give the same pixels.

    Args:
        images: uint8 [n, 3, height, width], or a source.
        look: the kind, and after a colon its severity.
        seed: of what is random, image by image.
        lazy: whether images in memory become a source that changes them when they are needed. A source stays
            one.

    Raises:
        TypeError, ValueError: naming the argument.
        ImportError: for pixelate and jpeg, if Pillow is not installed.
    """
    check_images(images, "images")
    source = _Changed(images.images, look_of(look, "look"), whole_number(seed, "seed", least=0))
    stays = isinstance(images.images, ImageSource) or flag(lazy, "lazy")
    return images._replace(images=source if stays else source.in_memory())


def corrupted_domains(
    train: Images, test: Images, looks: Iterable[str], *, seed: int = 0, lazy: bool = False
) -> dict[str, tuple[Images, Images]]:
    """A data set in several looks, for :func:`flexkern.streams.domain_incremental`: a domain for each.

    Args:
        train, test: labelled images.
        looks: as of :func:`corrupted`, each once; "clean" is the images as they are.
        seed: of what is random; training and test images, and each look, have random numbers of their own.
        lazy: as of :func:`corrupted`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    seed = whole_number(seed, "seed", least=0)
    found = {}
    for i, look in enumerate(listed_once(looks, "looks", "texts")):
        look_of(look, f"looks[{i}]")
        # Not the same noise on training and on test images, though nobody could learn it.
        found[look] = (
            corrupted(train, look, seed=2 * seed, lazy=lazy),
            corrupted(test, look, seed=2 * seed + 1, lazy=lazy),
        )
    return found


def digit_domains(
    names: Iterable[str],
    *,
    mnist_path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    lazy: bool = False,
) -> dict[str, tuple[Images, Images]]:
    """Digits in several hands and looks, as pictures of 32 x 32 pixels and three colours.

    Args:
        names: of the domains, each a hand, "digits" (scikit-learn's 8 x 8 pixels, four times as large, a
            quarter of each class for tests) or "mnist" (28 x 28, with two black pixels around), and maybe a
            look after a colon (:func:`corrupted`): "digits", "digits:inverted", "mnist:rotated:2".
        mnist_path: MNIST's archive (:func:`flexkern.streams.mnist`), where a name needs it.
        seed: of what is random.
        lazy: as of :func:`corrupted`.

    Raises:
        TypeError, ValueError: naming the argument.
        FileNotFoundError: if MNIST is not at its path.
        ImportError: if scikit-learn is not installed, or, for some looks, Pillow.
    """
    seed = whole_number(seed, "seed", least=0)
    given = listed_once(names, "names", "texts")
    asked = [(name, *hand_and_look(name, f"names[{i}]")) for i, name in enumerate(given)]
    if any(hand == "mnist" for _, hand, _ in asked) and mnist_path is None:
        raise ValueError("mnist_path: a domain of MNIST needs the path of its archive")
    hands: dict[str, tuple[Images, Images]] = {}
    for hand in dict.fromkeys(hand for _, hand, _ in asked):
        if hand == "digits":
            train, test = digits_split()
            hands[hand] = _enlarged(train), _enlarged(test)
        else:
            assert mnist_path is not None
            train_digits, test_digits = mnist(mnist_path)
            hands[hand] = _framed(train_digits), _framed(test_digits)
    return {
        name: corrupted_domains(*hands[hand], [str(look)], seed=seed, lazy=lazy)[str(look)]
        for name, hand, look in asked
    }


def hand_and_look(name: Any, what: str) -> tuple[str, Look]:
    """Of a domain of digits.

    Raises:
        TypeError, ValueError: naming ``what``.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a text, got {shown(name)}")
    hand, colon, look = name.partition(":")
    if hand not in HANDS:
        raise ValueError(
            f"{what} must begin with one of {', '.join(HANDS)}, as 'digits:inverted', got {name!r}"
        )
    return hand, look_of(look if colon else CLEAN, what)


def digits_split() -> tuple[Images, Images]:
    """scikit-learn's digits, uint8 [n, 3, 8, 8], a quarter of each class for tests, always the same.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    digits = bundled_digits()
    test = np.zeros(len(digits.labels), dtype=bool)
    for c in range(10):
        rows = np.flatnonzero(digits.labels.numpy() == c)
        test[np.random.default_rng(c).choice(rows, round(_TEST_SHARE * rows.size), replace=False)] = True
    images = digits.images[:, None].expand(-1, 3, -1, -1)
    names = [str(c) for c in range(10)]

    def part(chosen: np.ndarray) -> Images:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Images(images[rows], digits.labels[rows], names)

    return part(~test), part(test)


def _enlarged(images: Images) -> Images:
    """8 x 8 pixels as 32 x 32, bilinear: weights are eighths, so that nothing is rounded before the end."""
    x = images.images[:, 0].numpy().astype(np.int64)
    for axis in (1, 2):
        eighths = np.clip(2 * np.arange(_SIDE) + 1 - 4, 0, 8 * (x.shape[axis] - 1))  # where each is, in eighths
        low, part = eighths // 8, eighths % 8
        high = np.minimum(low + 1, x.shape[axis] - 1)
        shape = [1, 1, 1]
        shape[axis] = _SIDE
        part = part.reshape(shape)
        x = np.take(x, low, axis) * (8 - part) + np.take(x, high, axis) * part
    pixels = torch.from_numpy(((x + 32) // 64).astype(np.uint8))
    return images._replace(images=pixels[:, None].expand(-1, 3, -1, -1).contiguous())


def _framed(digits: Digits) -> Images:
    """Pixels of black around, to 32 x 32."""
    height, width = digits.images.shape[1:]
    if height > _SIDE or width > _SIDE:
        raise ValueError(f"mnist_path: digits must be at most {_SIDE} x {_SIDE} pixels, got {height} x {width}")
    pixels = torch.zeros((len(digits.images), _SIDE, _SIDE), dtype=torch.uint8)
    top, left = (_SIDE - height) // 2, (_SIDE - width) // 2
    pixels[:, top : top + height, left : left + width] = digits.images
    return Images(pixels[:, None].expand(-1, 3, -1, -1), digits.labels, [str(c) for c in range(10)])


class _Changed(ImageSource):
    """Images, in memory or of a source, in another look."""

    def __init__(self, images: Any, look: Look, seed: int) -> None:
        inner = isinstance(images, ImageSource)
        if not inner and (images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3):
            raise ValueError(
                f"images must be uint8 [n, 3, height, width], got {images.dtype} {tuple(images.shape)}"
            )
        height, width = images.shape[2:]
        if height != width:
            raise ValueError(f"images must be as high as wide, got {height} x {width}")
        super().__init__(height, images.workers if inner else 0)
        self._images, self._look, self._seed = images, look, seed

    def __len__(self) -> int:
        return len(self._images)

    def decode(self, i: int) -> np.ndarray:
        inner = self._images
        pixels = (
            inner.decode(i) if isinstance(inner, ImageSource) else inner[i].permute(1, 2, 0).numpy(force=True)
        )
        return changed(pixels, self._look, self._random(i))

    def _random(self, i: int) -> np.random.Generator:
        kind = zlib.crc32(self._look.kind.encode())
        return np.random.default_rng([_LOOK, self._seed, kind, self._look.severity, i])

    def name(self, i: int) -> str:
        inner = self._images
        name = inner.name(i) if isinstance(inner, ImageSource) else f"image {i}"
        return name if self._look.kind == CLEAN else f"{name}, {self._look}"

    def identity(self, i: int) -> str:
        inner = self._images
        if isinstance(inner, ImageSource):
            of_pixels = inner.identity(i)
        else:
            of_pixels = hashlib.blake2b(
                inner[i].contiguous().numpy(force=True).data, digest_size=16
            ).hexdigest()
        return f"{of_pixels} {self._look} {self._seed} {i}"

    def look(self, i: int) -> None:
        if isinstance(self._images, ImageSource):
            self._images.look(i)

    def in_memory(self) -> torch.Tensor:
        """All pixels, changed in this process."""
        if self._look.kind == CLEAN:
            return self._images
        pixels = torch.empty(self.shape, dtype=torch.uint8)
        for i in range(len(self)):
            pixels[i] = torch.from_numpy(self.decode(i)).permute(2, 0, 1)
        return pixels
