"""Images as features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Pixels"]


class Pixels(nn.Module):
    """The pixels of images themselves, in [0, 1], as features::

    learner = MetaplasticMLP(stream.input_shape, stream.classes, features=Pixels())
    """

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, values of an image] of images [n, ...], uint8 (0 ... 255) or float in [0, 1]."""
        values = images.flatten(1).float()
        return values / 255 if images.dtype is torch.uint8 else values
