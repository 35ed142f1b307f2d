"""Heads and statistics of running sums that several processes fill together, each with its own samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flexkern.distributed import group_of
from flexkern.nn.growing import GrowingState

__all__ = ["learning_together"]


@contextmanager
def learning_together(head: GrowingState, group: Any = None) -> Iterator[None]:
    """In this block each process updates its copy of ``head`` with samples of its own; after it all have all::

        with learning_together(head):
            for x, y in batches_of_this_process:
                head.update(x, y)

    All processes come with the same head, and leave with the one that a single process has that was given all
    samples: class counts exactly, sums up to rounding. Which classes a process sees, in what order and how many
    samples of each, is its own affair; it may see none. The sums are added once, when the block ends: as many
    numbers as the head keeps. Without a group of processes the block does nothing.

    Args:
        head: a :class:`flexkern.nn.RidgeHead`, :class:`flexkern.nn.LDAHead`,
            :class:`flexkern.nn.PrototypeClassifier` or :class:`flexkern.nn.FeatureStatistics`. A
            :class:`flexkern.nn.SynapseGate` or :class:`flexkern.nn.ExpertHead` learns from all features of a
            task at once: give it ``flexkern.distributed.gathered(features)`` on all processes.
        group: of processes; None: all.

    Raises:
        TypeError: if it is no such head. What is raised in the block leaves the head as it was.
    """
    if not isinstance(head, GrowingState) or not head.adds_up:
        raise TypeError(
            "head must be a RidgeHead, LDAHead, PrototypeClassifier or FeatureStatistics, whose sums can be "
            f"added, got {type(head).__name__}; give it gathered(features) on all processes instead"
        )
    group = group_of(group)
    if group is None:
        yield
        return
    before = dict(head._buffers)
    for name, buffer in before.items():
        if buffer is not None and name in head.adds_up:
            # What was learned before is counted once, by the first process.
            first = torch.distributed.get_rank(group) == 0
            head._buffers[name] = buffer.clone() if first else torch.zeros_like(buffer)
    head._changed()
    try:
        yield
        head._grow(_most_classes(head, group))
        head._add_up(group)
    except BaseException:
        head._buffers.update(before)
        raise
    finally:
        head._changed()


def _most_classes(head: Any, group: Any) -> int:
    count = torch.tensor(head.classes, device=next(b for b in head.buffers()).device)
    torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX, group=group)
    return int(count)
