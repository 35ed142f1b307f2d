"""Which images of a task are held out of the training of its adapter, and with which heads."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.learners.vit.classes import places
from flexkern.nn.growing import seeded
from flexkern.nn.task_scores import rank_in_class

__all__ = ["check_head", "held_out_of"]

_HELD_OUT = 2  # what random numbers are drawn for


def held_out_of(labels: Tensor, share: float, seed: int, task: int) -> Tensor:
    """bool [n]: ``share`` of each class's images, rounded down, the same ones each time."""
    classes = places(labels.cpu())
    rank = rank_in_class(classes, seeded(classes.device, seed, task, _HELD_OUT))
    count = (torch.bincount(classes).float() * share).long()
    return (rank < count[classes]).to(labels.device)


def check_head(head: str, combine: str, gate: str, holdout: float) -> None:
    """Raises ValueError if experts have no scores to begin with, or nobody listens to what is held out."""
    if head == "experts" and (combine != "concat" or gate not in ("ridge", "lda")):
        raise ValueError(
            'head="experts" needs combine="concat" and the scores of a ridge or lda gate: pass '
            'gate={"gate": "lda", ...}'
        )
    if holdout and (head != "experts" or gate != "lda"):
        raise ValueError(
            'holdout is for head="experts" and gate={"gate": "lda", ...}, whose scores of what was learned '
            f"leave it out; got head={head!r}, gate={gate!r}"
        )
