"""What stands for the data of tasks that are gone: gaussians of their statistics, or features that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.nn.feature_statistics import FeatureStatistics
from flexkern.nn.growing import GrowingState
from flexkern.nn.task_scores import rank_in_class
from flexkern.plain import choice, whole_number

__all__ = ["NEGATIVES", "Recall", "training_batches"]

NEGATIVES = ("gaussian", "replay")


class Recall(GrowingState):
    """Features of any task, drawn class by class (docs/design.md, Artsy).

    - ``"gaussian"``: from the class's mean and the shrunk shared covariance of
      :class:`flexkern.nn.FeatureStatistics`; no data is kept.
    - ``"replay"``: from at most ``keep`` features of each class that are kept, chosen at random.

    Args:
        width: of a feature vector.
        negatives: ``"gaussian"`` or ``"replay"``.
        keep: features kept of each class, for ``"replay"``, at least 1.
        shrinkage: of the shared covariance, see :class:`flexkern.nn.FeatureStatistics`.
        device: of the state.

    Raises:
        ValueError: naming the argument.
    """

    class_task: Tensor
    kept: Tensor
    kept_class: Tensor
    _SIZES: ClassVar = {"class_task": ("C",), "kept": ("N", "width"), "kept_class": ("N",)}

    def __init__(
        self,
        width: int,
        *,
        negatives: str = "gaussian",
        keep: int = 20,
        shrinkage: float | str = "oas",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.negatives, self.keep = choice(negatives, "negatives", NEGATIVES), whole_number(keep, "keep")
        self.statistics = FeatureStatistics(width, shrinkage=shrinkage, device=device)
        width = self.width = self.statistics.width
        self.register_buffer("class_task", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("kept", torch.zeros((0, width), dtype=torch.float32, device=device))
        self.register_buffer("kept_class", torch.zeros(0, dtype=torch.int64, device=device))

    @property
    def keeps_data(self) -> bool:
        """Whether feature vectors of samples are kept."""
        return self.negatives == "replay"

    @property
    def classes(self) -> int:
        """How many classes have come, in all tasks."""
        return len(self.class_task)

    def add_classes(self, classes: int, task: int) -> None:
        """The next ``classes`` classes belong to ``task``."""
        self._append("class_task", self.class_task.new_full((classes,), task))

    @torch.no_grad()
    def add(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Adds features [n, width] of classes that :meth:`add_classes` has named.

        With ``"replay"`` the generator chooses which of them are kept, up to ``keep`` of each class.
        """
        self.statistics.update(h0, labels)
        if self.keeps_data:
            have = torch.bincount(self.kept_class, minlength=self.classes)
            chosen = rank_in_class(labels, generator) < (self.keep - have)[labels]
            self._append("kept", h0[chosen])
            self._append("kept_class", labels[chosen])

    @torch.no_grad()
    def draw(self, tasks: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draws features, each class of the allowed tasks as often as any other.

        Args:
            tasks: bool [G, T], for each of G draws the tasks that it may come from, at least one.
            n: features of each draw.
            generator: on the device of the state.

        Returns:
            float32 [G, n, width].
        """
        # Not torch.multinomial: this is the same on every run of a GPU, and has no limit of categories.
        allowed = tasks[:, self.class_task]
        first = allowed.byte().sort(dim=1, descending=True, stable=True).indices  # the allowed ones come first
        place = self._places(allowed.sum(1, keepdim=True).expand(-1, n), generator)
        classes = first.gather(1, place)
        if not self.keeps_data:
            features, _ = self.statistics.sample(classes.flatten(), generator=generator)
            return features.view(len(tasks), n, self.width)
        rows = torch.bincount(self.kept_class, minlength=self.classes)
        begin = rows.cumsum(0) - rows
        by_class = self.kept_class.sort(stable=True).indices
        return self.kept[by_class[begin[classes] + self._places(rows[classes], generator)]]

    def _places(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """A random place, 0 ... size - 1, for each of ``sizes``."""
        u = torch.rand(sizes.shape, generator=generator, device=sizes.device, dtype=torch.float64)
        return (u * sizes).long().minimum(sizes - 1)

    def _check_state(self, state: dict[str, Any]) -> None:
        kept = state.get("kept")
        if kept is not None and (kept.shape[-1] != self.width or (len(kept) and not self.keeps_data)):
            raise ValueError(
                f"the state has {len(kept)} kept features of width {kept.shape[-1]}, and this object "
                f"negatives={self.negatives!r}, width {self.width}"
            )

        task, of = state.get("class_task"), state.get("kept_class")
        if task is not None and task.numel() and not (task[0] == 0 and bool((task.diff() >> 1 == 0).all())):
            raise ValueError("class_task must count tasks from 0 on, and the state's does not")
        if task is not None and of is not None and of.numel() and not 0 <= of.min() <= of.max() < len(task):
            raise ValueError(f"kept_class must be in [0, {len(task)}), and the state's is not")

    def extra_repr(self) -> str:
        return f"negatives={self.negatives!r}, classes={self.classes}, kept={len(self.kept)}"


def training_batches(
    recall: Recall,
    which: Tensor,
    newest: Tensor | None,
    samples: int,
    epochs: int,
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that gates are trained on: ``batch`` positives, then ``batch`` negatives, for each of G gates.

    Args:
        recall: draws positives and negatives.
        which: int64 [G], the tasks of the gates, the newest task last.
        newest: float32 [samples, width], the newest task's data: its gate's positives, each sample once in
            each epoch (an epoch's last batch is filled up from its beginning); None: they are drawn, as the
            other gates' are.
        samples: of one epoch.
        epochs: how often each sample comes.
        batch: positives in a batch, and as many negatives.
        generator: on the device of the state.

    Returns:
        Yields (x [G, 2 batch, width], y [G, 2 batch], 1 or 0), ``epochs * ceil(samples / batch)`` times.
    """
    device = which.device
    mine = which[:, None] == torch.arange(int(which[-1]) + 1, device=device)
    y = torch.zeros((len(which), 2 * batch), dtype=torch.float32, device=device)
    y[:, :batch] = 1
    steps = math.ceil(samples / batch)
    for _ in range(epochs):
        order = torch.randperm(samples, generator=generator, device=device)
        for index in order.repeat(math.ceil(steps * batch / samples))[: steps * batch].split(batch):
            positives = recall.draw(mine, batch, generator)
            if newest is not None:
                positives[-1] = newest[index]
            yield torch.cat([positives, recall.draw(~mine, batch, generator)], 1), y
