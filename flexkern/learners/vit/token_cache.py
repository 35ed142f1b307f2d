"""What comes before the first adapter, of images that are the same in each epoch: computed once, and kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.progress import tell
from flexkern.nn.adapters.adapted_model import Trunk
from flexkern.streams.augment import test_view
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["TokenCache"]


class TokenCache:
    """The trunk's tokens of all images of a task, on the network's device.

    A copy of it is empty, as one that is read from a file: they are computed anew, to the same bits, since the
    passes do not depend on the batches that are asked for.

    Args:
        trunk: from images as they are tested, float [b, 3, size, size].
        size: pixels of each side.
        device: where the network is.
        at_once: images of a pass.
        limit: bytes that may be kept.
    """

    def __init__(
        self, trunk: Callable[[Tensor], Trunk], *, size: int, device: torch.device, at_once: int, limit: float
    ) -> None:
        self._trunk, self._size, self._device = trunk, size, device
        self._at_once, self._limit = at_once, limit
        self._kept: Trunk | None = None
        self._fits = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def of(self, images: Tensor | ImageSource) -> Trunk | None:
        """Of all images, [n, 3, h, w], uint8 or float, which are the same in each call; None: there is no room.

        Raises:
            ValueError, OSError: of a source that cannot be decoded.
        """
        if self._kept is None and self._fits:
            self._kept = self._made(images)
            self._fits = self._kept is not None
        return self._kept

    def _made(self, images: Tensor | ImageSource) -> Trunk | None:
        count, kept = len(images), list[Tensor]()
        passes = [slice(first, first + self._at_once) for first in range(0, count, self._at_once)]
        with closing(batches(images, passes, pin=self._device.type == "cuda")) as given:
            for rows, batch in zip(passes, given, strict=True):
                found = self._trunk(test_view(batch.to(self._device, non_blocking=True), self._size))
                if not kept:
                    if sum(part[0].nbytes for part in found) * count > self._limit:
                        return None
                    kept = [part.new_empty((count, *part.shape[1:])) for part in found]
                for whole, part in zip(kept, found, strict=True):
                    whole[rows] = part
                tell("taking in", min(rows.stop, count), count)
        return Trunk(*kept)
