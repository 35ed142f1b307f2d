"""The images that learners on a vision transformer take: one check for all ways in."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.streams.image_source import ImageSource

__all__ = ["check_images"]

_WHAT = "images [n, 3, height, width], uint8 or floating-point in [0, 1]"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_images(images: object, name: str) -> None:
    """Raises unless these are images as a learner takes them.

    uint8, and a source of images, cost nothing; floating-point images are read once, which is less than a
    thousandth of what the network takes for them.

    Args:
        images: uint8 (0 ... 255), or floating-point, finite and in [0, 1], [n, 3, height, width]; n may be 0.
            Of a source nothing is decoded: its images are uint8.
        name: of the argument.

    Raises:
        TypeError: if they are no dense tensor, or of another dtype.
        ValueError: if they have another shape, or values outside [0, 1].
    """
    if isinstance(images, ImageSource):
        return
    if not isinstance(images, Tensor):
        hint = "; torch.from_numpy makes a tensor of an array" if type(images).__module__ == "numpy" else ""
        raise TypeError(f"{name} must be a tensor of {_WHAT}, got {type(images).__name__}{hint}")
    if images.layout is not torch.strided or images.is_meta:
        kind = "on the meta device" if images.is_meta else f"of layout {images.layout}"
        raise TypeError(f"{name} must be a dense tensor of {_WHAT}, got one {kind}")
    if images.dtype is not torch.uint8 and images.dtype not in _FLOATS:
        hint = "; .float() makes 0.0 and 1.0 of it" if images.dtype is torch.bool else ""
        if not (images.dtype.is_complex or images.dtype is torch.bool):
            hint = "; if its values are 0 ... 255, pass .to(torch.uint8)"
        raise TypeError(f"{name} must be {_WHAT}, got {images.dtype}{hint}")
    if images.dim() != 4 or images.shape[1] != 3 or not all(images.shape[2:]):
        raise ValueError(f"{name} must be {_WHAT}, got {tuple(images.shape)}{_shape_hint(images)}")
    if images.dtype is torch.uint8 or not images.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if not (low >= 0 and high <= 1):  # NaN compares as neither
        raise ValueError(f"{name} must be {_WHAT}; its values are {low:g} to {high:g}{_range_hint(low, high)}")


def _shape_hint(images: Tensor) -> str:
    shape = tuple(images.shape)
    if len(shape) == 3 and shape[0] == 3:
        return "; of a single image pass .unsqueeze(0)"
    if len(shape) == 4 and shape[3] == 3:
        return "; where channels come last, pass .permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == 1:
        return "; of grey images pass .expand(-1, 3, -1, -1)"
    return ""


def _range_hint(low: float, high: float) -> str:
    if not -1e30 < low <= high < 1e30:
        return "; look for NaN and infinite pixels"
    if low >= 0 and 1.5 < high <= 255:
        return "; if they are 0 ... 255, pass images / 255"
    if low >= -0.1 and high <= 1.1:
        return "; rounding aside, pass .clamp(0, 1)"
    return "; pass images before they are normalised"
