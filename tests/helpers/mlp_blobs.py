"""Small streams, networks and helpers for the tests of learners on linear layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.learners import SI, MetaplasticMLP
from flexkern.streams import Experience, Stream

CLASSES, SIZE, LR, BATCH = 6, 20, 0.05, 16
# Options of a method without which it would take long: 2,000 random features, whose eigenvalues take seconds.
QUICK: dict[str, dict[str, Any]] = {"ridge": {"random_features": 24}}
CLOSED_FORM = ("ridge", "lda")  # nothing is trained, epoch by epoch


def blobs(items: int, per_class: int = 40, seed: int = 0) -> Stream:
    """Items of two classes each, a class being a point with noise around it; all have something in common."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, SIZE, generator=generator) + 0.5

    def draw(classes: Tensor) -> tuple[Tensor, Tensor]:
        labels = classes.repeat_interleave(per_class)
        return centres[labels] + 0.4 * torch.randn(len(labels), SIZE, generator=generator), labels

    experiences = []
    for i in range(items):
        classes = torch.tensor([2 * i, 2 * i + 1])
        experiences.append(Experience(f"item {i}", i, *draw(classes), *draw(classes)))
    return Stream(experiences, CLASSES)


def make(kind: type[MetaplasticMLP], **options: Any) -> Any:
    return kind((SIZE,), CLASSES, **({"widths": (24, 16), "lr": LR, "batch_size": BATCH, "seed": 3} | options))


def bits(learner: MetaplasticMLP) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in learner.model.parameters()]


def all_bits(learner: MetaplasticMLP) -> dict[str, bytes]:
    extra = {name: value.numpy().tobytes() for name, value in learner._extra_state().items()}
    return extra | {str(i): value for i, value in enumerate(bits(learner))}


def in_float64(learner: Any) -> Any:
    """The learner, from the same weights, with all its arithmetic in float64."""
    learner.model.double()
    learner._anchors, learner._importance = learner._copies(), learner._zeros()
    if isinstance(learner, SI):
        learner._path = learner._zeros()
    learner._training_set = lambda inputs, labels: (inputs.double(), labels)
    return learner


def order(item: int, epoch: int, count: int) -> tuple[Tensor, ...]:
    return torch.from_numpy(np.random.default_rng([3, item, epoch]).permutation(count)).split(BATCH)
