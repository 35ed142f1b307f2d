"""Rows of a task's own: what to do in a method of always new classes when a class comes again."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.classes import places
from flexkern.nn.task_scores import group_max

__all__ = ["TaskRows"]


class TaskRows(ViTLearner):
    """A learner whose heads, gates and statistics have a row for each pair of a task and a class of it.

    So each task has rows of its own, the next ones, whether its classes are new or were learned before, and
    what is inside never meets a class again: a class that comes in another domain has a prototype there, beside
    the one it had. A class's logit is that of its best row, as a nearest prototype decides; with a row for each
    class, as in a class-incremental stream, logits are those of the rows.

    A subclass gives rows to what learns (:meth:`_finish` has them as labels), and takes :meth:`_row_labels` to
    check an experience.
    """

    takes: ClassVar[tuple[str, ...]] = ("class-incremental", "domain-incremental", "blurry", "class-repetition")

    _row_classes: tuple[int, ...] = ()
    """The class of each row."""

    def _row_labels(self, labels: Tensor) -> Tensor:
        """The rows that a task of these labels gets: the next ones, in the order of its classes."""
        return len(self._row_classes) + places(labels)

    def _count_rows(self) -> int:
        return len(self._row_classes)

    def _end(self, images: Any, labels: Tensor) -> None:
        super()._end(images, self._row_labels(labels))
        self._row_classes += tuple(labels.unique().tolist())

    def _of_classes(self, scores: Tensor) -> Tensor:
        if len(self._row_classes) == self.classes_seen:
            return scores
        return self._joined(scores, torch.tensor(self._row_classes, device=scores.device))

    def _joined(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Scores of classes, [n, classes_seen], from those of rows, [n, rows]; ``classes`` are the rows'."""
        return group_max(scores, classes, self.classes_seen)

    # ------------------------------------------------------------------ files

    def _progress(self) -> dict[str, Any]:
        again = len(self._row_classes) != self.classes_seen
        return super()._progress() | ({"row_classes": list(self._row_classes)} if again else {})

    def _resume(self, progress: dict[str, Any]) -> None:
        super()._resume(progress)
        rows = progress.get("row_classes", range(self.classes_seen))
        # Classes are numbered as they come.
        next_class = 0
        for c in rows:
            if not 0 <= c <= next_class:
                raise ValueError(f"row_classes has class {c} before class {next_class}")
            next_class = max(next_class, c + 1)
        if next_class != self.classes_seen:
            raise ValueError(f"row_classes has {next_class} classes, and classes_seen is {self.classes_seen}")
        self._row_classes = tuple(rows)
