"""A pre-trained vision transformer as an extractor of features."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

import flexkern.backbones as backbones
from flexkern.nn.adapters.adapted_model import parts_of
from flexkern.plain import flag, whole_number
from flexkern.streams.augment import test_view

__all__ = ["BackboneFeatures"]


class BackboneFeatures(nn.Module):
    """The features of a frozen backbone, float32 [n, width], of images of any size::

        learner = MetaplasticMLP(stream.input_shape, stream.classes, features=BackboneFeatures("small"))

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        image_size: pixels of each side of the images that it computes on; None: its own. Images of another size
            are resized and cropped as for tests: their shorter side to 256 / 224 of it.
        mean: append the mean of the patches' tokens, so that features are [n, 2 width].

    Raises:
        TypeError, ValueError, OSError: as ``load_backbone``; and if it is of no known family.
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        image_size: int | None = None,
        mean: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbones.load_backbone(backbone).requires_grad_(False)
        own = backbones.image_size(self.backbone) if image_size is None else image_size
        self.image_size, self.mean = whole_number(own, "image_size"), flag(mean, "mean")
        if parts_of(self.backbone) is None:
            raise ValueError(
                f"backbone: {type(self.backbone).__name__} is no vision transformer of a known family"
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, out_features] of images [n, 3, height, width], uint8 (0 ... 255) or float in [0, 1]."""
        parts: Any = parts_of(self.backbone)
        return parts.features(test_view(images, self.image_size)).float()

    def get_extra_state(self) -> dict[str, Any]:
        """What decides features beside the weights: fingerprints have it."""
        return {"image_size": self.image_size, "mean": self.mean}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.image_size, self.mean = state["image_size"], state["mean"]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_extra_state().items())
