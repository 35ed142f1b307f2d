"""A source of images that are made from their numbers, and an extractor that takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.streams import Experience, ImageSource, Stream

__all__ = ["Flat", "Made", "made_stream"]


class Made(ImageSource):
    """Random images of a seed; number ``broken`` cannot be read."""

    def __init__(
        self, count: int, *, size: int = 6, seed: int = 0, workers: int | None = 0, broken: int | None = None
    ) -> None:
        super().__init__(size, workers)
        self.count, self.seed, self.broken = count, seed, broken

    def __len__(self) -> int:
        return self.count

    def decode(self, i: int) -> np.ndarray:
        if i == self.broken:
            raise ValueError(f"{self.name(i)}: no image")
        shape = (self.size, self.size, 3)
        return np.random.default_rng([self.seed, i]).integers(0, 256, shape, dtype=np.uint8)

    def name(self, i: int) -> str:
        return f"made {i}"

    def identity(self, i: int) -> str:
        return f"{self.seed} {i}"


class Flat(nn.Module):
    """A linear layer on pixels in [0, 1], which counts the batches that it has seen."""

    def __init__(self, size: int = 6, width: int = 10, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn((width, 3 * size * size), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight / size)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return nn.functional.linear(x.flatten(1).float() / 255, self.get_buffer("weight"))


def made_stream(items: int = 2, count: int = 90, **options: int) -> Stream:
    """Items of two classes each, whose inputs are sources."""
    experiences = []
    for i in range(items):
        train, test = Made(count, seed=2 * i, **options), Made(count // 3, seed=2 * i + 1, **options)
        labels = torch.arange(count) % 2 + 2 * i
        experiences.append(Experience(f"item {i}", i, train, labels, test, labels[: len(test)]))
    return Stream(experiences, 2 * items)
