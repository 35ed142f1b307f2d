"""Bytes of the tensors that a piece of work makes, moment by moment, and how they grow with its size."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Cost", "LiveBytes", "cost_of"]


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the bytes of tensors that are made and not yet freed.

    Memory behind several tensors counts once, and with the first of them. What there was before does not count,
    nor what an operator takes for itself while it runs; so it is less than an allocator says, which rounds up.

    Attributes:
        now: bytes.
        moments: that after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.moments: list[int] = []
        self._seen: dict[int, weakref.ref[Any]] = {}

    @property
    def peak(self) -> int:
        """The most that there was after an operation."""
        return max(self.moments, default=0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._notice(storage, 0)
        found = func(*args, **kwargs)
        for storage in _storages(found):
            self._notice(storage, storage.nbytes())
        self.moments.append(self.now)
        return found

    def _notice(self, storage: Any, size: int) -> None:
        """A storage that was not seen yet has so many bytes."""
        key = storage._cdata
        if key in self._seen:
            return
        self.now += size

        def freed(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, freed)


def _storages(thing: Any) -> Iterator[Any]:
    for leaf in tree_leaves(thing):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()


@dataclass(frozen=True)
class Cost:
    """Bytes of a piece of work at each of its moments: ``fixed + each * n`` for n samples.

    Its fullest moment may be another one with more samples, which a line through two peaks would not know.
    """

    fixed: tuple[int, ...]
    each: tuple[int, ...]

    def peak(self, n: int) -> int:
        """Of n samples, at the fullest moment."""
        return max((fixed + each * n for fixed, each in zip(self.fixed, self.each, strict=True)), default=0)


def cost_of(make: Callable[[int], Any], work: Callable[[Any], object]) -> Cost:
    """How the memory of ``work(make(n))`` grows with n, from runs with two samples and with three.

    A run with one goes before them: what is made once and kept is no part of it. (And a sample alone is a
    special case to many operators.)

    Args:
        make: gives the input of n samples, which is not counted.
        work: does the same operations for any n.
    """
    work(make(1))
    few, more = (_moments(work, make(n)) for n in (2, 3))
    if len(few) != len(more):
        few, more = [max(few, default=0)], [max(more, default=0)]
    each = tuple(b - a for a, b in zip(few, more, strict=True))
    return Cost(tuple(a - 2 * e for a, e in zip(few, each, strict=True)), each)


def _moments(work: Callable[[Any], object], given: Any) -> list[int]:
    with LiveBytes() as counted:
        work(given)
    return counted.moments
