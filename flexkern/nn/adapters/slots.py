"""Slots on the device, in which adapters lie while they are used: which task is in which."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch

__all__ = ["LayerSlots", "Slots"]

_all: weakref.WeakSet[Slots] = weakref.WeakSet()


class LayerSlots:
    """The slots of one layer.

    Whoever uses them has ``lock``, from the moment it asks what is in them until it has launched what reads
    them.

    Attributes:
        held: what is in each; None where that is not known.
        ready: on an NVIDIA GPU, the last copy into one of them.
        used: there, the last use of each.
    """

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.held: list[Hashable | None] = [None] * count
        self.ready: torch.cuda.Event | None = None
        self.used: list[torch.cuda.Event | None] = [None] * count
        self._turn, self._turns = 0, [0] * count

    def assign(self, wanted: Sequence[Hashable]) -> tuple[list[int], list[int]]:
        """The slot of each thing that is wanted, all different, and the places in ``wanted`` of those that have
        to be put there first: in the slots that were not used for the longest time.

        Raises:
            ValueError: if there are fewer slots.
        """
        if len(wanted) > len(self.held):
            raise ValueError(f"{len(wanted)} tasks at once need as many slots, and there are {len(self.held)}")
        known = {key: slot for slot, key in enumerate(self.held) if key is not None}
        slots = [known.get(key, -1) for key in wanted]
        free = iter(sorted(set(range(len(self.held))) - set(slots), key=self._turns.__getitem__))
        missing = [i for i, slot in enumerate(slots) if slot < 0]
        for i in missing:
            slots[i] = next(free)
            self.held[slots[i]] = None  # until it has been filled, which may fail
        self._turn += 1
        for slot in slots:
            self._turns[slot] = self._turn
        return slots, missing


class Slots:
    """The slots of all layers. A copy knows of none what is in it.

    Args:
        layers: how many.
        count: slots of each.
    """

    def __init__(self, layers: int, count: int) -> None:
        self._sizes = layers, count
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Nothing is known of what is in them; nobody uses them."""
        layers, count = self._sizes
        self.layers = [LayerSlots(count) for _ in range(layers)]
        self.stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Slots, self._sizes


def _begin_anew() -> None:
    """In a forked process: the threads that held locks are not in it."""
    for slots in list(_all):
        slots.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
