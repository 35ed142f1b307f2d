"""Inputs as learners on a multi-layer perceptron take them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.features import FeatureCache
from flexkern.spec.argument import shown
from flexkern.streams.image_source import ImageSource

__all__ = ["check_cache", "check_inputs", "grey", "is_finite", "size_of_pictures"]

_LARGEST = torch.finfo(torch.float32).max


def check_inputs(x: object, input_shape: Sequence[int], name: str) -> None:
    """Raises unless these are inputs [n, \\*input_shape]: a tensor of finite numbers, or a source of images.

    Args:
        x: a dense tensor, floating-point and finite in float32, or uint8; or a source, of which nothing is
            read.
        input_shape: of one input.
        name: of the argument.

    Raises:
        TypeError, ValueError: naming it.
    """
    shape = f"[n, {', '.join(map(str, input_shape))}]"
    if not isinstance(x, (Tensor, ImageSource)):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(x).__name__}")
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_meta:
            raise TypeError(f"{name} must be a dense tensor {shape} with values, got {x.layout} on {x.device}")
        if not (x.is_floating_point() or x.dtype is torch.uint8):
            raise TypeError(
                f"{name} must be floating-point or uint8, got {x.dtype}; pass .float(), or .to(torch.uint8) of "
                "images with values 0 ... 255"
            )
    if tuple(x.shape[1:]) != tuple(input_shape) or not len(x.shape):
        raise ValueError(f"{name} must be {shape}, got {tuple(x.shape)}")
    if isinstance(x, Tensor) and not is_finite(x):
        raise ValueError(f"{name} must be finite in float32; look for NaN and infinite values")


def is_finite(x: Tensor) -> bool:
    """Whether all values are finite in float32; reads them once, and copies none."""
    if x.dtype is torch.uint8 or not x.numel():
        return True
    low, high = (float(bound) for bound in torch.aminmax(x.detach()))
    return low >= -_LARGEST and high <= _LARGEST  # NaN compares as neither


def check_cache(cache: Any, features: nn.Module | None) -> FeatureCache | None:
    """The argument ``features_cache`` of a learner with this extractor.

    Raises:
        TypeError, ValueError: if it is neither a folder nor a cache, or there is nothing to keep.
    """
    if cache is None:
        return None
    if not isinstance(cache, (str, os.PathLike, FeatureCache)) or cache == "":
        kind = ValueError if cache == "" else TypeError
        raise kind(f"features_cache must be the path of a folder, a FeatureCache or None, got {shown(cache)}")
    if features is None:
        raise ValueError("features_cache must be None without features: there is nothing to keep")
    return cache if isinstance(cache, FeatureCache) else FeatureCache(cache)


def size_of_pictures(input_shape: Sequence[int]) -> int | None:
    """That of the inputs, where they are square images of one or three channels, taken as bytes."""
    *channels, height, width = (0, *input_shape)[-3:]
    if len(input_shape) not in (2, 3) or height != width or channels[0] not in (0, 1, 3):
        return None
    return width


def grey(pictures: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] to uint8 [n, h, w]: brightness, as Pillow takes it (ITU-R 601)."""
    red, green, blue = pictures.to(torch.int32).unbind(1)
    return ((red * 299 + green * 587 + blue * 114 + 500) // 1000).to(torch.uint8)
