"""Logits by which an adapter is trained."""

from __future__ import annotations

from torch import Tensor

from flexkern.learners.vit.training import CosineHead
from flexkern.nn.adapters.adapted_model import AdaptedModel

__all__ = ["adapter_logits"]


def adapter_logits(adapted: AdaptedModel, head: CosineHead, task: int, images: Tensor) -> Tensor:
    """What a task's head makes of images with the task's adapter, whose dropout is on meanwhile.

    Not longer than a forward pass: whoever asks in between, as one who watches may, gets no dropout.
    """
    adapted.bank.train()
    try:
        return head(adapted.features(adapted.trunk(images), task))
    finally:
        adapted.bank.eval()
