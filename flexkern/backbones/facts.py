"""What one wants to know of a backbone before learning with it; ``flexkern check backbone`` prints it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexkern.backbones import load_backbone
from flexkern.backbones.families import family_of
from flexkern.backbones.normalise import Normalisation, normalisation
from flexkern.backbones.sizes import fitted, image_size, patch_size, width_of
from flexkern.backbones.trial import tried_parts

__all__ = ["BackboneFacts", "backbone_facts"]

RANK = 64  # of adapters, as in EASE


@dataclass(frozen=True)
class BackboneFacts:
    """A backbone that learners can use.

    Attributes:
        source: as it was given.
        family: one of those that are known.
        kind: the module's class.
        dtype: of its weights.
        parameters: numbers of all its weights.
        width: of its features.
        blocks: each has a place for an adapter.
        image_size, patch_size: pixels of each side; a patch's may not be known.
        tokens: of one image, ``prefix_tokens`` of them before those of the patches.
        feature: which tokens are the feature, in words.
        mean, std: by which images in [0, 1] are normalised, or None: it is not known, and they are not.
        bytes_per_task: of the adapters of a task, of rank 64, in float32.
        seconds: of one pass of one image.
    """

    source: str
    family: str
    kind: str
    dtype: str
    parameters: int
    width: int
    blocks: int
    image_size: int
    patch_size: int | None
    tokens: int
    prefix_tokens: int
    feature: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    bytes_per_task: int
    seconds: float


@torch.no_grad()
def backbone_facts(
    source: str | os.PathLike[str] | nn.Module,
    *,
    size: int | None = None,
    dtype: str | torch.dtype | None = None,
) -> BackboneFacts:
    """Loads a backbone, tries it on one image, as learners do, and times one pass of that.

    Args:
        source, dtype: as :func:`flexkern.backbones.load_backbone` takes them.
        size: pixels of each side of the images; None: its own.

    Raises:
        TypeError, ValueError, OSError, ImportError: as :func:`flexkern.backbones.load_backbone`; ValueError too
            if learners cannot use it.
    """
    given = load_backbone(source, image_size=size, dtype=dtype)
    pixels = image_size(given)
    model, interpolate = fitted(given, pixels)
    said: Normalisation | None = normalisation(given)
    parts = tried_parts(model, pixels, interpolate=interpolate, normalise=said)
    image: Any = torch.rand(1, 3, pixels, pixels)
    begin = time.perf_counter()
    parts.features(image)
    seconds = time.perf_counter() - begin
    width, blocks = width_of(model), len(parts.points)
    return BackboneFacts(
        source=type(source).__name__ if isinstance(source, nn.Module) else os.fspath(source),
        family=family_of(model) or "",
        kind=type(model).__name__,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
        width=width,
        blocks=blocks,
        image_size=pixels,
        patch_size=patch_size(model),
        tokens=parts.embed(image).shape[1],
        prefix_tokens=parts.prefix,
        feature=parts.feature,
        mean=None if said is None else said[0],
        std=None if said is None else said[1],
        bytes_per_task=4 * blocks * (2 * width * RANK + RANK + width),
        seconds=seconds,
    )
