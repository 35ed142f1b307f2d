"""Which images of a task are held out of the training of its adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.learners.vit.classes import places
from flexkern.nn.growing import seeded
from flexkern.nn.task_scores import rank_in_class

__all__ = ["held_out_of"]

_HELD_OUT = 2  # what random numbers are drawn for


def held_out_of(labels: Tensor, share: float, seed: int, task: int) -> Tensor:
    """bool [n]: ``share`` of each class's images, rounded down, the same ones each time."""
    classes = places(labels.cpu())
    rank = rank_in_class(classes, seeded(classes.device, seed, task, _HELD_OUT))
    count = (torch.bincount(classes).float() * share).long()
    return (rank < count[classes]).to(labels.device)
