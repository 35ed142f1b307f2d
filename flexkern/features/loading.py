"""Batches of inputs on the device that computes."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.streams.image_source import ImageSource, batches

__all__ = ["loaded"]

# Bytes that a worker decodes at once, and images at most. What workers have decoded ahead lies in shared
# memory, of which a container may have 64 MB; and a batch of hundreds of images is work for several of them.
_PIECE_BYTES, _PIECE = 1 << 22, 256


def loaded(
    inputs: Tensor | ImageSource, rows: Sequence[Tensor | slice], device: torch.device
) -> Generator[Tensor, None, None]:
    """The inputs of each batch, in the order of ``rows``, on a device, in the dtype that they have.

    Batches of a source are decoded ahead by its workers, which end when the iterator is closed.

    Args:
        inputs: on any device, or on the disk.
        rows: which inputs each batch has.
        device: where the batches are wanted.

    Raises:
        ValueError, OSError: of an image that cannot be read, naming it.
    """
    if isinstance(inputs, Tensor):
        for batch in rows:
            at = batch if isinstance(batch, slice) else batch.to(inputs.device)
            yield inputs[at].to(device, non_blocking=True)
        return
    every = torch.arange(len(inputs))
    numbers = [every[batch if isinstance(batch, slice) else batch.cpu()] for batch in rows]
    each = max(1, min(_PIECE, _PIECE_BYTES // max(math.prod(inputs.shape[1:]), 1)))
    pieces = [batch.split(each) for batch in numbers]
    decoded: Any = batches(inputs, list(itertools.chain(*pieces)), pin=device.type == "cuda")
    with contextlib.closing(decoded):
        for batch, of_batch in zip(numbers, pieces, strict=True):
            if len(of_batch) == 1:
                yield next(decoded).to(device, non_blocking=True)
                continue
            images = torch.empty((len(batch), *inputs.shape[1:]), dtype=inputs.dtype, device=device)
            for place in images.split(each):
                place.copy_(next(decoded), non_blocking=True)
            yield images
