"""Logits held against the true labels, batch by batch; on several processes each has its share of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexkern.distributed import part as share_of
from flexkern.learners.processes import joined
from flexkern.metrics import confusion_matrix

__all__ = ["Judged"]

_AT_ONCE = 1 << 22  # logits that are compared: a flag of each is in memory then


class Judged:
    """Called with the logits of one batch of an experience's test inputs after the other.

    Args:
        labels: int64 [inputs], the truth about all batches.
        top: among how many of the likeliest classes the true one is looked for.
    """

    def __init__(self, labels: Tensor, top: int) -> None:
        self.labels, self.top = labels, top
        self._own = labels.unique()
        self._done = share_of(len(labels)).start
        self._answers: list[Tensor] = []
        self._right_among_own: list[Tensor] = []
        self._among_top: list[Tensor] = []

    def __call__(self, logits: Tensor) -> None:
        """Logits [n, classes] of the next n inputs; classes that are not learned yet may be missing."""
        for part in logits.split(max(1, _AT_ONCE // max(logits.shape[1], 1))):
            truth = self.labels[self._done : self._done + len(part)].to(part.device)
            self._done += len(part)
            self._answers.append(part.argmax(1))
            self._right_among_own.append(self._answered_among_own(part) == truth)
            self._among_top.append(_place(part, truth) < self.top)

    def join(self, device: torch.device) -> None:
        """All logits were given, of each process's share of the inputs: now each process has all of them."""
        flags = torch.zeros(0, dtype=torch.bool, device=device)
        self._answers = joined(self._answers, flags.long())
        self._right_among_own = joined(self._right_among_own, flags)
        self._among_top = joined(self._among_top, flags)

    def _answered_among_own(self, logits: Tensor) -> Tensor:
        own = self._own[self._own < logits.shape[1]].to(logits.device)
        if not len(own):
            return torch.full((len(logits),), -1, device=logits.device)
        values, places = logits[:, own].max(1)
        return own[places].where(values != -torch.inf, -1)

    def shares(self) -> tuple[float, float, float]:
        """Of right answers; of right ones among the classes that the labels have; among the ``top``."""
        found = (self._found() == self._truth(), *map(_array, (self._right_among_own, self._among_top)))
        accuracy, masked, among_top = (float(right.mean()) for right in found)
        return accuracy, masked, among_top

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """Counts [classes, classes]: row = truth, column = answer."""
        return confusion_matrix(self._truth(), self._found(), classes)

    def _truth(self) -> NDArray[np.int64]:
        return self.labels.numpy(force=True)

    def _found(self) -> NDArray[np.int64]:
        return _array(self._answers)


def _array(parts: list[Tensor]) -> NDArray[Any]:
    return torch.cat(parts).numpy(force=True)


def _place(logits: Tensor, truth: Tensor) -> Tensor:
    """How many classes come before the true one, int64 [n]; of equal logits the lower number comes first.

    NaN comes before all others, as in torch's argmax and sort; a class without a logit, or with that of -inf,
    which is never answered, comes after all.
    """
    classes = logits.shape[1]
    values = logits.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    mine = values.gather(1, truth.clamp(max=classes - 1)[:, None])
    lower = torch.arange(classes, device=logits.device) < truth[:, None]
    place = ((values > mine) | ((values == mine) & lower)).sum(1)
    return place.where((truth < classes) & (mine[:, 0] != -torch.inf), torch.iinfo(torch.int64).max)
