"""The temperature that makes probabilities of logits, by maximum likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["fit_log_temperature"]

_RANGE = math.log(1e-5), math.log(1e5)
_HALVINGS = 50  # of the range, which is then 2e-14 wide


def fit_log_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The logarithm of the T for which ``softmax(logits / T)`` explains the labels best; None where none does.

    The loss is convex in 1 / T, so halving an interval finds it. Of n images the label counts for
    (n + 1) / (n + 2) and all other classes for the rest, as in Platt's scaling: where all answers are right, T
    would be 0 without.

    Args:
        logits: floating-point [n, classes].
        labels: int64 [n].
    """
    n, classes = logits.shape
    if not n or classes < 2 or not bool(logits.isfinite().all()):
        return None
    z = logits.detach().to("cpu", torch.float64)
    z = z - z.amax(1, keepdim=True)
    own = z.gather(1, labels.to(z.device)[:, None])[:, 0]
    others = (z.sum(1) - own) / (classes - 1)
    target = float((own + (others - own) / (n + 2)).mean())
    low, high = _RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean = float((torch.softmax(z / math.exp(middle), 1) * z).sum(1).mean())
        # The mean logit falls as T rises, from the largest to that of chance.
        low, high = (middle, high) if mean > target else (low, middle)
    return (low + high) / 2
