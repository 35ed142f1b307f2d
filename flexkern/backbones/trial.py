"""Whether a backbone taken apart is still the backbone: it is tried on one image before it is learned with."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from flexkern.backbones.families import FAMILIES, own_features, parts_of, vision_part
from flexkern.backbones.normalise import Normalisation
from flexkern.backbones.parts import Normalised, Parts
from flexkern.backbones.sizes import width_of
from flexkern.backbones.wording import words

__all__ = ["tried_parts"]

# Both ways call the same layers in the same order. What may differ is how additions are grouped (a compiled
# model): a few roundings for each block, relative to the largest value. The wrong token is off by the values
# themselves, and one token too many in the mean of 200 by a hundredth of them, which float32 tells apart.
_ROUNDINGS = 4
_MOST_OFF = 0.1


def tried_parts(
    model: nn.Module, size: int, *, interpolate: bool = False, normalise: Normalisation | None = None
) -> Parts:
    """A backbone in parts that normalise their images, after a trial: on one image they give what it pools.

    Args:
        model: the backbone, where it computes and in the dtype that it has.
        size: pixels of each side of the images.
        interpolate: as in :func:`flexkern.backbones.families.parts_of`.
        normalise: mean and standard deviation; None: images go in as they are, in [0, 1].

    Raises:
        ValueError: beginning with "backbone", if it is no vision transformer of a known family, raises
            anything, or gives other features than its parts.
    """
    kind = type(model).__name__
    try:
        parts = parts_of(model, interpolate=interpolate)
    except Exception as error:
        raise ValueError(f"backbone: {words(error, 300)}; supported are {FAMILIES}") from error
    if parts is None:
        raise ValueError(f"backbone: {kind} is not a vision transformer of a known family ({FAMILIES})")
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    first = next(vision_part(model).parameters())
    image = image.to(first.device)
    try:
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            own = own_features(model, image.to(first.dtype), interpolate=interpolate)
            ours = parts.features(image)
    except Exception as error:
        raise ValueError(
            f"backbone: {kind} fails on one image of {size} x {size} pixels: {words(error, 300)}"
        ) from error
    width = width_of(model)
    if own is None or tuple(own.shape) != (1, width):
        shape = "nothing" if own is None else f"features of shape {tuple(own.shape)}"
        raise ValueError(f"backbone: {kind} pools {shape} from one image, where (1, {width}) is needed")
    _compare(kind, ours, own, len(parts.points))
    if normalise is None:
        return parts
    return dataclasses.replace(parts, embed=Normalised(parts.embed, *normalise))


def _compare(kind: str, ours: Tensor, own: Tensor, blocks: int) -> None:
    if not bool(own.isfinite().all()):
        raise ValueError(f"backbone: {kind} gives features that are not finite from one image")
    most = min(_ROUNDINGS * blocks * torch.finfo(own.dtype).eps, _MOST_OFF) * float(own.abs().max())
    off = float((ours - own).abs().max()) if ours.shape == own.shape else float("inf")
    if not off <= most:
        raise ValueError(
            f"backbone: {kind} in parts gives features that are {off:.2g} off what it pools itself from one "
            f"image; adapters would learn on wrong features. Supported are {FAMILIES}"
        )
