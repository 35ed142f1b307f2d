"""Joint training: all images are kept."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexkern.learners.base import Item
from flexkern.learners.progress import tell
from flexkern.learners.registry import register_method
from flexkern.learners.vit.finetune import FinetuneViT
from flexkern.learners.vit.training import Training
from flexkern.nn.growing import GrowingState
from flexkern.streams.augment import as_bytes
from flexkern.streams.base import Experience
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["JointViT"]

_AT_ONCE = 256  # images that are decoded


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


def _decoded(source: ImageSource) -> Tensor:
    """All pixels of a source, in memory."""
    images = torch.empty(source.shape, dtype=torch.uint8)
    done = 0
    with closing(batches(source, torch.arange(len(source)).split(_AT_ONCE))) as parts:
        for part in parts:
            images[done : done + len(part)] = part
            done += len(part)
            tell("taking in", done, len(source))
    return images


@register_method("joint")
class JointViT(FinetuneViT):
    """Keeps all images, and trains the network on all of them at each task.

    It is not a continual learner, and no bound on one either. Each task goes on from the network of the one
    before, for the recipe's epochs over everything seen so far. Images are kept as bytes, floating-point ones
    rounded to 256 levels and those of a source decoded, in memory and in the checkpoint: 3 bytes of each pixel
    of the whole stream, and as many more while a task is learned.

    Args:
        backbone, recipe, images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    trains_on_all = True

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

    def _take_up(self, experience: Experience, epochs: int) -> Item:
        images = experience.train_inputs
        if isinstance(images, ImageSource):  # they are kept in the end: decoded once, and not in each epoch
            images = _decoded(images)
        return super()._take_up(replace(experience, train_inputs=images), epochs)

    def _epoch(self, training: Training, images: Any, labels: Tensor) -> float:
        kept, images = self.kept, as_bytes(images)
        everything = torch.cat([kept.images, images]) if len(kept.images) else images
        return training.epoch(everything, torch.cat([kept.labels, labels]))

    def _finish(self, images: Any, labels: Tensor) -> None:
        self.kept.add(as_bytes(images), labels)

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "head": self.head, "kept": self.kept})
