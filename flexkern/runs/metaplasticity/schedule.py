"""What a network is shown, in which order, and what it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from flexkern.runs.metaplasticity import protocol as settings
from flexkern.runs.metaplasticity.items import Raw, check_items, load_items, raw_items
from flexkern.streams import Experience

__all__ = ["Experiment", "Items", "Part", "Shown", "in_order"]


@dataclass(frozen=True)
class Shown:
    """One presentation of an item.

    item: its number; repetition: how many presentations of it came before; experience: makes its training set.
    """

    item: int
    repetition: int
    experience: Callable[[], Experience]


@dataclass(frozen=True)
class Part:
    """A stretch of presentations, with a test on the first ``tested`` items after each.

    The first part of a schedule begins with a new network. All others begin with the network as the first
    part left it: they are alternatives, not a sequence.

    by_epoch: whether to test after each epoch too.
    items: what it is of, if not of the stream's items: then these are tested, and those before are not known.
    """

    name: str
    shown: Sequence[Shown]
    tested: int
    by_epoch: bool = False
    items: Items | None = None


class Items(Protocol):
    """What a stream is made of: two-digit items, or tasks of several classes."""

    def __len__(self) -> int: ...

    def experience(self, number: int, turn: int = 0) -> Experience:
        """An item's training set and its test set, when it was shown ``turn`` times before."""

    def test(self, number: int) -> Experience:
        """Its test set alone."""


class Experiment:
    """A figure of the paper. It is sent to other processes, so it is a frozen dataclass of plain values."""

    name: ClassVar[str]
    title: ClassVar[str]

    @classmethod
    def command(cls) -> str:
        """What runs it, less the options."""
        return f"flexkern run {cls.name}"

    def items(self, protocol: settings.Protocol) -> int:
        """How many items there must be."""
        return protocol.items

    def classes(self, protocol: settings.Protocol) -> int:
        """How many outputs a network has; of two-digit items, one for each, from the first."""
        return self.items(protocol)

    def check(self, protocol: settings.Protocol) -> None:
        """Whether the items of all seeds can be made, as far as that is seen without making features.

        Raises:
            ValueError, FileNotFoundError: naming the setting.
        """
        check_items(protocol, items=self.items(protocol))

    def load(
        self, protocol: settings.Protocol, seed: int, cache: Path, progress: Callable[[str], None]
    ) -> Items:
        """The items of one seed, as features."""
        return load_items(protocol, seed, cache, items=self.items(protocol), progress=progress)

    def raw(self, protocol: settings.Protocol, seed: int) -> Raw:
        """The items of :meth:`load` before there are features of them."""
        return raw_items(protocol, seed, items=self.items(protocol))

    def networks(self, protocol: settings.Protocol) -> Mapping[str, settings.Network]:
        """The learners that are compared, by name."""
        raise NotImplementedError

    def count(self, protocol: settings.Protocol) -> int:
        """How many times a network is trained on a seed, in all."""
        return len(self.networks(protocol)) * len(protocol.seeds)

    def wanted(
        self, network: str, seed: int, records: Sequence[dict[str, Any]], protocol: settings.Protocol
    ) -> bool:
        """Whether a network is to be trained on a seed, as far as the records tell that there are.

        It is asked again when all that was wanted has been done.
        """
        return True

    def schedule(self, items: Any, protocol: settings.Protocol, seed: int) -> Sequence[Part]:
        """What each network is shown; ``items`` are those of :meth:`load`. By default all of them, once."""
        return [Part("stream", in_order(items, range(len(items))), len(items))]

    def summarise(self, records: Sequence[dict[str, Any]], protocol: settings.Protocol) -> dict[str, Any]:
        """Numbers for tables and pictures, and under "claims" the paper's claims."""
        raise NotImplementedError


def in_order(items: Items, numbers: Sequence[int], repetition: int = 0) -> list[Shown]:
    """These items once, as they are."""
    return [Shown(i, repetition, partial(items.experience, i, repetition)) for i in numbers]
