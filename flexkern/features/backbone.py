"""A pre-trained vision transformer as an extractor of features."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.backbones.normalise import Normalisation, checked_normalize
from flexkern.backbones.sizes import fitted
from flexkern.backbones.trial import tried_parts
from flexkern.plain import flag, whole_number
from flexkern.streams.augment import test_view

__all__ = ["BackboneFeatures"]


class BackboneFeatures(nn.Module):
    """The features of a frozen backbone as the model itself pools them, of images of any size::

        learner = MetaplasticMLP(stream.input_shape, stream.classes, features=BackboneFeatures("small"))

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it; docs/backbones.md lists the families.
        image_size: pixels of each side of the images that it computes on; None: its own. Images of another size
            are resized and cropped as for tests: their shorter side to 256 / 224 of it.
        normalize: "auto": as the model was trained, where that is known; "none": images in [0, 1]; or mean and
            standard deviation of each channel.
        mean: append the mean of the patches' tokens, so that features are twice as wide.

    Raises:
        TypeError, ValueError, OSError: naming the argument; as ``load_backbone``; and if the backbone, tried on
            one image, is of no known family.
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        image_size: int | None = None,
        normalize: str | Any = "auto",
        mean: bool = False,
    ) -> None:
        super().__init__()
        self.mean = flag(mean, "mean")
        given = checked_normalize(normalize)
        size = None if image_size is None else whole_number(image_size, "image_size")
        network = backbones.load_backbone(backbone).requires_grad_(False)
        self.image_size = size or backbones.image_size(network)
        if given == "auto":
            given = backbones.normalisation(network) or "none"
        self.normalize: Normalisation | None = None if isinstance(given, str) else given
        self.backbone, interpolate = fitted(network, self.image_size)
        self.out_features = backbones.width_of(self.backbone) * (2 if self.mean else 1)
        self._parts = tried_parts(
            self.backbone, self.image_size, interpolate=interpolate, normalise=self.normalize
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, out_features] of images [n, 3, height, width], uint8 (0 ... 255) or float in [0, 1]."""
        return self._parts.features(test_view(images, self.image_size), mean=self.mean).float()

    def get_extra_state(self) -> dict[str, Any]:
        """What decides features beside the weights, so that fingerprints have it."""
        return {"image_size": self.image_size, "normalize": self.normalize, "mean": self.mean}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Features of weights that are loaded are those that they were saved with.

        Raises:
            ValueError: if the module was made with other settings.
        """
        if state != self.get_extra_state():
            raise ValueError(f"state is of features with {state}, these have {self.get_extra_state()}")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_extra_state().items())
