"""The tasks of a batch's samples, known to the host: which adapters are needed, and for which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Part", "TaskGroups"]


class Part(NamedTuple):
    """Samples that stand together and have few tasks.

    rows: of the samples, when they are sorted by task.
    tasks: theirs, without -1.
    local: int64 [samples], the place of each one's task among ``tasks``; ``len(tasks)`` for none.
    """

    rows: slice
    tasks: tuple[int, ...]
    local: Tensor


@dataclass(eq=False)
class TaskGroups:
    """The task of each sample, -1 for none, looked at once for all layers.

    Args:
        index: integers [samples], on the device.
        tasks: the same on the host.
        most: tasks that a part may have.
    """

    index: Tensor
    tasks: list[int]
    most: int

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, rows: slice) -> TaskGroups:
        return TaskGroups(self.index[rows], self.tasks[rows], self.most)

    @cached_property
    def distinct(self) -> list[int]:
        return sorted({task for task in self.tasks if task >= 0})

    @cached_property
    def order(self) -> Tensor | None:
        """What sorts the samples by task; None: they are sorted."""
        tasks = self.tasks
        if all(a <= b for a, b in pairwise(tasks)):
            return None
        return self._here(sorted(range(len(tasks)), key=tasks.__getitem__))

    @cached_property
    def parts(self) -> list[Part]:
        """Samples in their order, of at most ``most`` tasks each.

        Where all tasks do not fit at once, of half of that: while one half computes, the other one is fetched.
        """
        distinct, ordered = self.distinct, sorted(self.tasks)
        most = self.most
        if len(distinct) > most and self.index.is_cuda:
            most = max(1, most // 2)
        starts = {task: ordered.index(task) for task in distinct[most::most]}
        firsts = [0, *starts.values()]
        found = []
        for i, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(ordered)], strict=True)):
            tasks = distinct[i * most : (i + 1) * most]
            place = {task: j for j, task in enumerate(tasks)}
            local = self._here([place.get(task, len(tasks)) for task in ordered[first:end]])
            found.append(Part(slice(first, end), tuple(tasks), local))
        return found

    def _here(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.index.device, non_blocking=True)
