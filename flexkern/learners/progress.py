"""What a learner reports while it learns and answers: after each epoch, and after each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = ["BatchProgress", "Progress", "Watch", "check_watch", "tell", "unwatched", "watched"]


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


class BatchProgress(NamedTuple):
    """Where a learner is within an epoch, or within an answer, after each batch.

    doing: "training", "taking in" (the pass over an item's images that ends it) or "answering".
    item: number of the item that is being learned, from 0; while it answers, how many were learned.
    epoch: the epoch that runs, from 1 to ``epochs``; 0 where there is none.
    epochs: how many there are.
    done: inputs of this pass that are done, at least 1.
    total: how many the pass has.
    """

    doing: str
    item: int
    epoch: int
    epochs: int
    done: int
    total: int


Watch = Callable[[BatchProgress], None]


@dataclass
class _Watching:
    watch: Watch
    item: int
    epoch: int
    epochs: int
    before: int  # inputs of the pass that calls before this one had
    total: int | None  # of the pass, where it has several calls


_WATCHING: ContextVar[_Watching | None] = ContextVar("watching", default=None)  # of the thread that computes


@contextmanager
def watched(
    watch: Watch | None, *, item: int = 0, epoch: int = 0, epochs: int = 0, before: int = 0,
    total: int | None = None,
) -> Iterator[None]:  # fmt: skip
    """In this block :func:`tell` tells ``watch``; None: who was told before."""
    if watch is None:
        yield
        return
    token = _WATCHING.set(_Watching(watch, item, epoch, epochs, before, total))
    try:
        yield
    finally:
        _WATCHING.reset(token)


@contextmanager
def unwatched() -> Iterator[None]:
    """In this block nobody is told."""
    token = _WATCHING.set(None)
    try:
        yield
    finally:
        _WATCHING.reset(token)


def check_watch(watch: object) -> None:
    """Raises TypeError unless it can be told."""
    if watch is not None and not callable(watch):
        raise TypeError(f"watch must be callable or None, got {watch!r}")


def tell(doing: str, done: int, total: int, devices: Sequence[torch.device] = ()) -> None:
    """A batch is done. What the one who watches draws from torch's generators does not reach what is computed.

    Args:
        doing, done, total: see :class:`BatchProgress`.
        devices: CUDA devices whose generators are kept, beside the CPU's.
    """
    now = _WATCHING.get()
    if now is None:
        return
    total = total if now.total is None else now.total
    told = BatchProgress(doing, now.item, now.epoch, now.epochs, now.before + done, total)
    with unwatched(), torch.random.fork_rng(devices):  # who watches may ask the learner
        now.watch(told)
