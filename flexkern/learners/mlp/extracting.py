"""Features of an item's inputs, which several processes take together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.distributed import barrier, gathered, is_lead, world_size
from flexkern.features import FeatureCache, extract_from
from flexkern.learners.processes import own_rows
from flexkern.streams.image_source import ImageSource

__all__ = ["features_together"]


def features_together(
    module: nn.Module,
    inputs: Tensor | ImageSource,
    *,
    device: torch.device,
    cache: FeatureCache | None,
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """As :func:`flexkern.features.extract_from`; all processes call it, and have all features.

    Each takes those of its share. With a cache the first process takes them, and the others find them there.
    """
    options: dict[str, Any] = {"device": device, "cache": cache, "name": name, "progress": progress}
    if world_size() == 1:
        return extract_from(module, inputs, **options)
    if cache is not None:
        found = extract_from(module, inputs, **options) if is_lead() else None
        barrier()
        return extract_from(module, inputs, **options) if found is None else found
    return gathered(extract_from(module, own_rows(inputs), **options))
