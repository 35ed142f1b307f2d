"""Batched augmentation on the device of the images: resize, crop and flip, one random draw an image."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

__all__ = ["as_bytes", "as_float", "center_crop", "random_resized_crop", "resize", "test_view"]


def as_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32, in the shape they have, from uint8 (0..255) or floating ones (0..1)."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def as_bytes(images: Tensor) -> Tensor:
    """Images as uint8 (0..255), from those or floating ones (0..1), which are rounded to 256 levels."""
    return images if images.dtype == torch.uint8 else (images.float() * 255).round().to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """The shorter side becomes ``size`` pixels, bicubic and antialiased; float images stay in [0, 1].

    Args:
        images: float [n, channels, height, width].
        size: pixels, at least 1.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _check(images, size)
    height, width = images.shape[-2:]
    short = min(height, width)
    if short == size:
        return images
    shape = (round(height * size / short), round(width * size / short))
    return functional.interpolate(images, shape, mode="bicubic", antialias=True).clamp_(0, 1)


def center_crop(images: Tensor, size: int) -> Tensor:
    """The ``size`` x ``size`` pixels in the middle.

    Args:
        images: any dtype, [n, channels, height, width].
        size: pixels, at least 1.

    Raises:
        ValueError: if the images are smaller.
    """
    height, width = images.shape[-2:]
    if height < size or width < size:
        raise ValueError(f"images must be at least {size} x {size} to be cropped, got {height} x {width}")
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def test_view(images: Tensor, size: int) -> Tensor:
    """Images as they are tested: float in [0, 1], [n, 3, size, size].

    Images of another size are resized so that their shorter side is 256 / 224 of ``size``, and cropped.
    """
    x = as_float(images)
    return x if x.shape[-2:] == (size, size) else center_crop(resize(x, round(size * 256 / 224)), size)


def random_resized_crop(
    images: Tensor,
    size: int,
    *,
    scale: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    generator: Generator | None = None,
    within: tuple[int, int] | None = None,
) -> Tensor:
    """A random box of each image, resized to ``size`` x ``size``, and mirrored with probability ``flip``.

    The whole batch is one bilinear resampling. A box has a share of the image's area that is uniform in
    ``scale``, and a width-to-height ratio that is log-uniform in ``ratio``; a side that would be longer than
    the image's is cut to it. There is no antialiasing, which matters where boxes are shrunk by more than half.

    Args:
        images: float32 [n, channels, height, width].
        size: pixels of each side of the result.
        scale, ratio: ranges of a box's area (as a share of the image's) and of its sides' ratio.
        flip: probability of mirroring left to right; 0 for images whose sides have a meaning, as digits have.
        generator: of the random numbers, on the CPU, so that every device takes the same boxes. Default:
            torch's global one.
        within: (first, count): the images are those from number ``first`` on of a batch of ``count``, and get
            the boxes that they would get there; None: they are the batch.

    Returns:
        float [n, channels, size, size], on the device of ``images``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: the recipe of arXiv 2403.12030 (EASE), scale 0.05 to 1 and a flip.
    """
    _check(images, size)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be a range within (0, 1], got {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be a range of positive numbers, got {ratio}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability in [0, 1], got {flip}")
    n, _, height, width = images.shape
    first, count = (0, n) if within is None else within
    if not 0 <= first <= first + n <= count:
        raise ValueError(f"within must be (first, count) of a batch that has these {n} images, got {within}")
    drawn = torch.rand((5, count), generator=generator, dtype=torch.float32) if count else torch.zeros((5, 0))
    if not n:
        return images.new_empty((0, images.shape[1], size, size))
    area, shape, x, y, mirrored = drawn[:, first : first + n]
    area = scale[0] + area * (scale[1] - scale[0])
    shape = torch.exp(math.log(ratio[0]) + shape * math.log(ratio[1] / ratio[0])) * (height / width)
    box_width, box_height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    # In affine_grid's units the image is [-1, 1], so the middle of a box of relative width b is within 1 - b.
    box = torch.zeros((n, 2, 3), dtype=torch.float32)
    box[:, 0, 0] = torch.where(mirrored < flip, -box_width, box_width)
    box[:, 1, 1] = box_height
    box[:, 0, 2] = (2 * x - 1) * (1 - box_width)
    box[:, 1, 2] = (2 * y - 1) * (1 - box_height)
    grid = functional.affine_grid(box.to(images), [n, images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _check(images: Tensor, size: int) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (of a source: its .tensor()), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating (see as_float), got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must be [n, channels, height, width], got {tuple(images.shape)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
