"""A tiny vision transformer with random weights, and a stream of patterns that it can tell apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.streams import Experience, ImageSource, Stream

CLASSES, PER_TASK, TRAIN, TEST = 6, 2, 24, 10
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def backbone(weights: int = 0) -> nn.Module:
    torch.manual_seed(weights)
    import transformers  # the tests that use it skip without

    return transformers.ViTModel(
        transformers.ViTConfig(**SIZES, initializer_range=0.2), add_pooling_layer=False
    )


def stream(classes: int = CLASSES) -> Stream:
    """Each class has a colour of its own for each quarter of the image, with noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(30, 226, (classes, 3, 2, 2)).repeat(8, 2).repeat(8, 3)

    def draw(labels: np.ndarray) -> Tensor:
        noisy = patterns[labels] + rng.normal(0, 25, (len(labels), 3, 16, 16))
        return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))

    experiences = []
    for number, first in enumerate(range(0, classes, PER_TASK)):
        own = np.arange(first, first + PER_TASK)
        train, test = own.repeat(TRAIN), own.repeat(TEST)
        rng.shuffle(train)
        experiences.append(
            Experience(
                str(number), number, draw(train), torch.from_numpy(train), draw(test), torch.from_numpy(test)
            )
        )
    return Stream(experiences, classes)


class Decoded(ImageSource):
    """What the tensor [n, 3, size, size] holds, decoded when it is needed; image ``broken`` cannot be."""

    def __init__(self, images: Tensor, *, workers: int | None = 0, broken: int | None = None) -> None:
        super().__init__(images.shape[-1], workers)
        self.images, self.broken = images, broken

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, i: int) -> np.ndarray:
        if i == self.broken:
            raise ValueError(f"{self.name(i)}: no image")
        return self.images[i].permute(1, 2, 0).numpy()

    def name(self, i: int) -> str:
        return f"image {i}"

    def identity(self, i: int) -> str:
        return str(i)


def of_source(experience: Experience, **options: Any) -> Experience:
    """The experience with sources in place of its tensors."""
    train, test = experience.train_inputs, experience.test_inputs
    return dataclasses.replace(
        experience, train_inputs=Decoded(train, **options), test_inputs=Decoded(test, **options)
    )
