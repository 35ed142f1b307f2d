"""Checks of the data that gates learn from and are asked about."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.nn.growing import check_features, check_labels

__all__ = ["check_task", "check_task_features", "check_true_task"]


def check_task(labels: Tensor, first: int, least: int) -> int:
    """How many classes a new task has, if its labels are right: class ``first`` and on, at least ``least`` of
    them.

    Raises:
        ValueError: naming the argument.
    """
    if not len(labels):
        raise ValueError("h0 has no samples; a task needs some")
    seen = labels.unique().tolist()
    if seen != list(range(first, first + len(seen))):
        raise ValueError(
            f"labels must be the next classes, {first}, {first + 1}, ... without a gap, got {seen[:10]}"
            f"{' ...' if len(seen) > 10 else ''}; number classes in the order in which they are learned"
        )
    if len(seen) < least:
        raise ValueError(f"labels must have at least {least} classes a task for this gate, got {len(seen)}")
    if len(labels) <= len(seen):
        raise ValueError(f"h0 has {len(labels)} samples of {len(seen)} classes; some class needs two samples")
    return len(seen)


def check_task_features(h0: Tensor, labels: Tensor, width: int) -> None:
    """Raises TypeError or ValueError, naming the argument, unless these are a task's features and labels."""
    check_features(h0, width)
    check_labels(labels, len(h0))
    if len(h0) and not bool(torch.isfinite(h0).all()):
        raise ValueError("h0 has infinite or NaN elements; look at the images and the pre-trained network")


def check_true_task(task: object, n: int, tasks: int | None = None) -> Tensor:
    """``task`` as int64, if it is integers [n] in 0 ... tasks - 1; else ValueError."""
    if not isinstance(task, Tensor):
        raise ValueError(f"task must be int64 [{n}], each sample's true task, got {task!r}")
    if task.dtype not in (torch.int64, torch.int32) or tuple(task.shape) != (n,):
        raise ValueError(f"task must be int64 [{n}], got {task.dtype} {tuple(task.shape)}")
    if n and tasks is not None and not 0 <= int(task.min()) <= int(task.max()) < tasks:
        raise ValueError(f"task must be in 0 ... {tasks - 1}, got {int(task.min())} ... {int(task.max())}")
    return task.long()
