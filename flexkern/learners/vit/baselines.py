"""What any learner is compared with: prototypes and a ridge head on the frozen features, fine-tuning, joint
training."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.training import Recipe, Training
from flexkern.nn.growing import GrowingState
from flexkern.nn.heads.prototype import PrototypeClassifier
from flexkern.nn.heads.ridge import RidgeHead

__all__ = ["FinetuneViT", "JointViT", "RanPAC", "SimpleCIL"]


class SimpleCIL(ViTLearner):
    """Nearest class mean on the frozen backbone's features, by cosine; nothing is trained (arXiv 2303.07338).

    Args:
        backbone, recipe, images_per_pass, image_size, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    method = "simplecil"

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self._parts = self._known_parts(self.backbone)
        self.prototypes = PrototypeClassifier(self.width, device=self.device)
        self.prototypes.add_subspace()

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        for x, y in self._test_batches(images, labels):
            self.prototypes.update(self._run(self._parts.features, x).unsqueeze(1), y)

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.prototypes.logits(self._run(self._parts.features, images).unsqueeze(1))

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"prototypes": self.prototypes})

    @property
    def parameters_added(self) -> int:
        return self.classes_seen * self.width


class RanPAC(ViTLearner):
    """A ridge head on a random ReLU projection of the frozen backbone's features (arXiv 2307.02251).

    Its sums over all tasks are exact, so the order of tasks changes nothing, and no data is kept.

    Args:
        features: of the random projection; the paper has 10,000. The sums are features x features numbers.
        ridge: the head's regularisation, or "auto".
        backbone, recipe, images_per_pass, image_size, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    method = "ranpac"

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        features: int = 2000,
        ridge: float | str = "auto",
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, seed=seed, features=features, ridge=ridge, **common)
        self._parts = self._known_parts(self.backbone)
        self.head = RidgeHead(self.width, features=features, ridge=ridge, seed=seed).to(self.device)

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        h0 = torch.cat([self._run(self._parts.features, x) for x, _ in self._test_batches(images, labels)])
        self.head.update(h0, labels.to(self.device))

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.head.logits(self._run(self._parts.features, images))

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"head": self.head})

    @property
    def parameters_added(self) -> int:
        return (
            self.head.cross.numel()
        )  # as many as the head's weights; the projection is drawn anew from its seed


class _GrowingHead(nn.Module):
    """A linear layer that begins without a class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((0, width)))
        self.bias = nn.Parameter(torch.zeros(0))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Appends classes, with weights as :class:`torch.nn.Linear` draws them and zero bias."""
        width = self.weight.shape[1]
        new = (torch.rand((classes, width), generator=generator) * 2 - 1) / math.sqrt(width)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new.to(self.weight)]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), self.bias.new_zeros(classes)]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class FinetuneViT(ViTLearner):
    """The whole backbone and a linear head, trained on one task after the other: the lower bound.

    The cross-entropy is over all classes seen so far, so that a task's images drive earlier classes out
    (Avalanche calls it naive; PILOT's baseline of this name leaves earlier classes out of the sum).

    Args:
        backbone, recipe, images_per_pass, image_size, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    method = "finetune"

    @classmethod
    def default_recipe(cls) -> Recipe:
        """A smaller step than for adapters: the whole network moves."""
        return Recipe(lr=0.01)

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self.network = copy.deepcopy(self.backbone).requires_grad_(True)
        self._parts = self._known_parts(self.network)
        self.head = _GrowingHead(self.width).to(self.device)

    def _reserve(self, classes: int) -> None:
        """The head gets rows for new classes, and keeps those it has."""
        have = len(self.head.bias)
        new = self.classes_seen + classes - have
        if new > 0:
            self.head.grow(new, torch.Generator().manual_seed(self.seed * 100_003 + have))

    def _make_training(self) -> Training:
        parameters = [*self.network.parameters(), *self.head.parameters()]
        seed = [self.seed, self.tasks_learned]
        return Training(
            parameters, self._training_logits, self.recipe, size=self.image_size, seed=seed, device=self.device
        )

    def _training_logits(self, x: Tensor) -> Tensor:
        return self.head(self._parts.features(x))

    def _epoch(self, training: Training, images: Tensor, labels: Tensor) -> float:
        return training.epoch(images, labels + self.classes_seen)

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        """Nothing is left to do: the network is what was learned."""

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self._run(lambda x: self.head(self._parts.features(x)), images)

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "head": self.head})

    @property
    def parameters_added(self) -> int:
        return sum(p.numel() for p in self._modules().parameters())


class _Kept(GrowingState):
    """Images and labels that a learner keeps; a part of its checkpoint."""

    images: Tensor
    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros((0, 3, 1, 1), dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    def add(self, images: Tensor, labels: Tensor) -> None:
        kept = self.images if len(self.images) else images[:0]
        self.images, self.labels = torch.cat([kept, images]), torch.cat([self.labels, labels])


class JointViT(FinetuneViT):
    """Keeps all images, and at each task trains the network on all of them: the upper bound, not a continual
    learner.

    Each task goes on from the network of the one before, for the recipe's epochs over everything seen so far.

    Args:
        as in :class:`FinetuneViT`.
    """

    method = "joint"

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self.kept = _Kept()

    def _epoch(self, training: Training, images: Tensor, labels: Tensor) -> float:
        kept = self.kept
        everything = torch.cat([kept.images, images]) if len(kept.images) else images
        return training.epoch(everything, torch.cat([kept.labels, labels + self.classes_seen]))

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        self.kept.add(images, labels)

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "head": self.head, "kept": self.kept})
