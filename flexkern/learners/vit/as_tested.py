"""Images as a network is tested on them, so many at a time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from flexkern.learners.progress import tell
from flexkern.streams.augment import test_view
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["as_tested"]


def as_tested(
    images: Tensor | ImageSource, size: int, device: torch.device, *, at_once: int, doing: str
) -> Generator[tuple[slice, Tensor], None, None]:
    """Which images, and these as they are tested: float [b, 3, size, size] on the device.

    A source's are decoded ahead. ``doing`` is told after each pass. Who may leave before the end closes it.

    Raises:
        ValueError, OSError: of a source that cannot be decoded.
    """
    count = len(images)
    passes = [slice(first, first + at_once) for first in range(0, count, at_once)]
    with closing(batches(images, passes, pin=device.type == "cuda")) as given:
        for rows, batch in zip(passes, given, strict=True):
            yield rows, test_view(batch.to(device, non_blocking=True), size)
            tell(doing, min(rows.stop, count), count)
