"""EASE's training of one task's adapters (arXiv 2403.12030) in plain PyTorch: modules, cosine head, SGD."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.benchmarks.peers.ease import Ease
from flexkern.streams.augment import as_float, random_resized_crop

__all__ = ["CosineHead", "EaseTraining"]


class CosineHead(nn.Module):
    """``sigma * cos(x, w_c)``, with the given first weights [classes, width]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.sigma = nn.Parameter(torch.ones((), device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, classes] from [n, width]."""
        directions = functional.normalize(self.weight)
        return self.sigma * functional.linear(functional.normalize(x.float()), directions)


class EaseTraining:
    """Trains the adapters of the newest task and a head, by the same batches and views as flexkern's learner.

    The views are flexkern's (:func:`flexkern.streams.augment.random_resized_crop`, plain PyTorch): what is
    compared is the training of the network.

    Args:
        ease: the frozen network with its adapters.
        head: of the task's classes.
        lr, momentum, weight_decay, batch_size, epochs, crop, flip: EASE's recipe; ``epochs`` of the cosine.
        augment: whether images are cropped and flipped; they must have ``size`` pixels if not.
        precision: "float32", or "bfloat16" for mixed precision.
        size: pixels of the images that the network takes.
        seed: what decides order, crops and dropout of each epoch.
    """

    def __init__(
        self,
        ease: Ease,
        head: CosineHead,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        batch_size: int,
        epochs: int,
        crop: tuple[float, float],
        flip: float,
        augment: bool,
        precision: str,
        size: int,
        seed: Sequence[int],
    ) -> None:
        self.ease, self.head = ease.train(), head
        self._task = len(ease.adapters) - 1
        self.params = [*ease.adapters[self._task].parameters(), *head.parameters()]
        self._optimizer = torch.optim.SGD(
            self.params, lr, momentum=momentum, weight_decay=weight_decay, fused=True
        )
        self._lr, self._batch_size, self._epochs = lr, batch_size, epochs
        self._crop, self._flip, self._size, self._augment = crop, flip, size, augment
        self._mixed, self._seed = precision == "bfloat16", list(seed)
        self.epochs_done = 0

    def epoch(self, images: Tensor, labels: Tensor) -> float:
        """One pass over images, uint8 [n, 3, h, w], and labels of the task; returns the mean cross-entropy."""
        device = self.head.weight.device
        entropy = np.random.SeedSequence([*self._seed, self.epochs_done])
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        order = torch.randperm(len(labels), generator=generator)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * 0.5 * (1 + math.cos(math.pi * self.epochs_done / self._epochs))
        total = torch.zeros((), device=device)
        for rows in order.split(self._batch_size):
            x = as_float(images[rows].to(device))
            if self._augment:
                x = random_resized_crop(x, self._size, scale=self._crop, flip=self._flip, generator=generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._mixed):
                logits = self.head(self.ease.features(x, self._task))
            loss = functional.cross_entropy(logits.float(), labels[rows].to(device))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            total += loss.detach() * len(rows)
        self.epochs_done += 1
        return float(total) / len(labels)
