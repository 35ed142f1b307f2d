"""What comes before the first adapter, of images that are the same in each epoch: computed once, and kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.vit.as_tested import as_tested
from flexkern.nn.adapters.adapted_model import Trunk
from flexkern.streams.image_source import ImageSource

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
        keeps: whether so many bytes are.
    """

    def __init__(
        self,
        trunk: Callable[[Tensor], Trunk],
        *,
        size: int,
        device: torch.device,
        at_once: int,
        keeps: Callable[[int], bool],
    ) -> None:
        self._trunk, self._size, self._device = trunk, size, device
        self._at_once, self._keeps = at_once, keeps
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
        views = as_tested(images, self._size, self._device, at_once=self._at_once, doing="taking in")
        with closing(views) as given:
            for rows, x in given:
                found = self._trunk(x)
                if not kept:
                    if not self._keeps(sum(part[0].nbytes for part in found) * count):
                        return None
                    kept = [part.new_empty((count, *part.shape[1:])) for part in found]
                for whole, part in zip(kept, found, strict=True):
                    whole[rows] = part
        return Trunk(*kept)
