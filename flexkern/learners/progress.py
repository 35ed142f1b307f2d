"""What a learner reports while it learns."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Progress"]


class Progress(NamedTuple):
    """Where a learner's ``learn`` is, after each epoch.

    item: number of the item that is being learned, from 0.
    epoch: epochs of it that are done, from 1 to ``epochs``.
    epochs: how many there will be.
    loss: mean cross-entropy over the epoch.
    """

    item: int
    epoch: int
    epochs: int
    loss: float
