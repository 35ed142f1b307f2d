"""Joint training, the upper bound: all images are kept."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexkern.learners.registry import register_method
from flexkern.learners.vit.finetune import FinetuneViT
from flexkern.learners.vit.training import Training
from flexkern.nn.growing import GrowingState
from flexkern.streams.augment import as_bytes
from flexkern.streams.base import Experience

__all__ = ["JointViT"]


class _Kept(GrowingState):
    """Images and labels that a learner keeps; a part of its checkpoint."""

    images: Tensor
    labels: Tensor
    _SIZES: ClassVar = {"images": ("N", "3", "H", "W"), "labels": ("N",)}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros((0, 3, 1, 1), dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def add(self, images: Tensor, labels: Tensor) -> None:
        kept = self.images if len(self.images) else images[:0]
        self.images, self.labels = torch.cat([kept, images]), torch.cat([self.labels, labels])


@register_method("joint")
class JointViT(FinetuneViT):
    """Keeps all images, and trains the network on all of them at each task: the upper bound.

    It is not a continual learner. Each task goes on from the network of the one before, for the recipe's epochs
    over everything seen so far. Images are kept as bytes: floating-point ones are rounded to 256 levels.

    Args:
        backbone, recipe, images_per_pass, image_size, normalize, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self.kept = _Kept()

    def _check(self, experience: Experience) -> None:
        super()._check(experience)
        kept, new = self.kept.images, experience.train_inputs
        if len(kept) and kept.shape[1:] != new.shape[1:]:
            sizes = tuple(new.shape[1:]), tuple(kept.shape[1:])
            raise ValueError(
                f"experience: its images are {sizes[0]}, and those that are kept {sizes[1]}; joint training "
                "needs all of one size"
            )

    def _epoch(self, training: Training, images: Tensor, labels: Tensor) -> float:
        kept, images = self.kept, as_bytes(images)
        everything = torch.cat([kept.images, images]) if len(kept.images) else images
        return training.epoch(everything, torch.cat([kept.labels, labels + self.classes_seen]))

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        self.kept.add(as_bytes(images), labels)

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "head": self.head, "kept": self.kept})
