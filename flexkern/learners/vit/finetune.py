"""Fine-tuning, the lower bound: the whole network, one task after the other."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners.registry import register_method
from flexkern.learners.scenarios import SCENARIOS
from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.classes import new_classes
from flexkern.learners.vit.image_passes import Trial
from flexkern.learners.vit.training import Recipe, Training
from flexkern.plain import SEEDS

__all__ = ["FinetuneViT"]


class _GrowingHead(nn.Module):
    """A linear layer that begins without a class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((0, width), dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(0, dtype=torch.float32))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Appends classes, with weights as :class:`torch.nn.Linear` draws them and zero bias."""
        width = self.weight.shape[1]
        draw = torch.rand((classes, width), generator=generator, dtype=torch.float32)
        new = (draw * 2 - 1) / math.sqrt(width)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new.to(self.weight)]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), self.bias.new_zeros(classes)]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@register_method("finetune")
class FinetuneViT(ViTLearner):
    """The whole backbone and a linear head, trained on one task after the other: the lower bound.

    The cross-entropy is over all classes seen so far, so that a task's images push earlier classes out
    (Avalanche calls it naive; PILOT's baseline of this name leaves earlier classes out of the sum).

    Args:
        backbone, recipe, images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    takes = SCENARIOS
    _calibrated = False

    @classmethod
    def default_recipe(cls) -> Recipe:
        """A smaller step than for adapters: the whole network moves."""
        return Recipe(lr=0.01)

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self.network = copy.deepcopy(self.backbone).requires_grad_(True)
        self._parts = self._known_parts(self.network)
        self.head = _GrowingHead(self.width).to(self.device)

    def _make_room(self, classes: int) -> None:
        """The head gets rows for new classes, and keeps those it has."""
        have = len(self.head.bias)
        begun = new_classes(self._begun) if classes and self._begun is not None else 0
        new = self.classes_seen + begun - have
        if new > 0:
            self.head.grow(new, torch.Generator().manual_seed((self.seed * 100_003 + have) % SEEDS))

    @contextmanager
    def _trial(self) -> Iterator[Trial]:
        parameters = [*self.network.parameters(), *self.head.parameters()]
        yield Trial(parameters, self._parts.features)

    def _bytes_of_heads(self, classes: int, tasks: int) -> int:
        return (self.width + 1) * classes * self.head.weight.element_size()

    def _make_training(self) -> Training:
        parameters = [*self.network.parameters(), *self.head.parameters()]
        return self._training_of(parameters, self._training_logits)

    def _training_logits(self, x: Tensor) -> Tensor:
        return self.head(self._parts.features(x).float())

    def _training_labels(self, labels: Tensor) -> Tensor:
        """All classes seen so far are told apart."""
        return labels

    def _written_at_end(self) -> nn.Module:
        """Nothing."""
        return nn.ModuleDict()

    def _finish(self, images: Any, labels: Tensor) -> None:
        """Nothing is left to do: the network is what was learned."""

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        # While a task is learned the head has rows for its classes, which are not learned before its end.
        return self._run(lambda x: self.head(self._parts.features(x).float()), images)[:, : self.classes_seen]

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "head": self.head})

    @property
    def parameters_added(self) -> int:
        return sum(p.numel() for p in self._modules().parameters())
