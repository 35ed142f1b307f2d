"""What learners with a head of running sums have in common: a few images cost one operation on the sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexkern.learners.base import Item
from flexkern.learners.scenarios import FEW, SCENARIOS
from flexkern.learners.vit.base import ViTLearner
from flexkern.nn.heads.discriminant import LDAHead
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.nn.undo import Undo
from flexkern.streams.base import Experience

__all__ = ["RunningSums"]


class RunningSums(ViTLearner):
    """A learner with a head of exact running sums: images in any order and number, also one at a time.

    The largest of the sums is of [width, width] numbers. An experience of fewer than 16 images changes it by
    one operation, the last of the experience, so that no copy is needed to undo it; and nothing is solved
    before something is asked. (Not so with a ridge or a shrinkage that is so small that the sums may be
    singular: that is tried at the end of each experience.) Where ``_few`` says so, a subclass hands its
    features to :meth:`_take_late`.
    """

    takes: ClassVar[tuple[str, ...]] = SCENARIOS
    head: RidgeHead | LDAHead
    _few = False
    _late: Callable[[], Any] | None = None

    def _largest(self) -> Tensor:
        """The sum that is changed last."""
        return self.head.gram if isinstance(self.head, RidgeHead) else self.head.scatter

    def _take_up(self, experience: Experience, epochs: int) -> Item:
        self._few = len(experience.train_labels) < FEW and self.head.surely_solvable()
        return super()._take_up(experience, epochs)

    def _take_late(self, features: list[Tensor], labels: Tensor) -> None:
        """Takes in all features of the experience but for the last operation."""
        self._late = self.head.late_update(torch.cat(features), labels.to(self.device))

    def _ended(self, experience: Experience) -> None:
        super()._ended(experience)
        late, self._late = self._late, None
        if late is not None:
            late()

    def _written_at_end(self) -> nn.Module:
        return nn.ModuleDict() if self._few else super()._written_at_end()

    def _undo(self, written: nn.Module | None = None) -> Undo:
        if not self._few or written is None:
            return super()._undo(written)
        return Undo(self, *self._modules().modules(), last=self._largest())
