"""Learning frequency (arXiv 2407.07133, Fig. 5): items that are shown once, others up to ten times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network
from flexkern.runs.metaplasticity.schedule import Experiment, Part, Shown, in_order
from flexkern.runs.metaplasticity.serial_position import THREE
from flexkern.runs.statistics import describe, spearman
from flexkern.streams import TwoDigitItems
from flexkern.streams.two_digit import CLASSES

__all__ = ["FIRST", "SECOND", "LearningFrequency", "order"]

FIRST, SECOND = "frequency", "second profile"  # parts
_ORDER, _SECOND = 53, 54  # what numpy's generators are for, so that no other use shares their numbers
_UNRELATED = 0.1  # the largest rank correlation of frequency and last-seen position that is let pass


@dataclass(frozen=True)
class LearningFrequency(Experiment):
    """With 10 items 55 presentations: one item is shown once, one twice, ..., one ten times.

    The order is random, such that how often an item is shown says nothing of when it is seen last. With
    --as-released the trained networks go on with a second profile: items drawn anew from all 45, under the same
    labels, in another such order.
    """

    name: ClassVar[str] = "learning-frequency"
    title: ClassVar[str] = "Items shown once to many times"

    def items(self, protocol: Protocol) -> int:
        if protocol.as_released and 2 * protocol.items > len(CLASSES):
            raise ValueError(
                f"items must be at most {len(CLASSES) // 2} with as_released, which has a second set of them, "
                f"got {protocol.items}"
            )
        return protocol.items * (2 if protocol.as_released else 1)

    def classes(self, protocol: Protocol) -> int:
        return protocol.items

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return THREE

    def schedule(self, items: TwoDigitItems, protocol: Protocol, seed: int) -> Sequence[Part]:
        count = protocol.items
        parts = [Part(FIRST, _profile(items.head(count), order(count, seed)), count)]
        if protocol.as_released:
            others = items.select(_drawn_anew(count, seed))
            parts.append(Part(SECOND, _profile(others, order(count, seed, profile=1)), count, items=others))
        return parts

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        measures, found = _measured(records, FIRST)
        summary: dict[str, Any] = {"measures": measures, "claims": _claims(found)}
        if protocol.as_released:
            summary["second"], found = _measured(records, SECOND)
            summary["claims"] += _claims(found, "second profile, ")
        return summary


def _profile(items: TwoDigitItems, numbers: Sequence[int]) -> list[Shown]:
    """The items in this order."""
    shown: list[Shown] = []
    repetitions = [0] * len(items)
    for item in numbers:
        shown += in_order(items, [item], repetitions[item])
        repetitions[item] += 1
    return shown


def _drawn_anew(items: int, seed: int) -> list[int]:
    """A second set of items out of all classes, as places in a stream of twice as many items as each set has.

    The first set are the first places. The stream's order is random, so whichever others are drawn, the places
    that follow may stand for them.
    """
    drawn = np.random.default_rng([_SECOND, seed]).permutation(len(CLASSES))[:items]
    others = iter(range(items, 2 * items))
    return [int(place) if place < items else next(others) for place in drawn]


Found = dict[str, dict[str, NDArray[np.float64]]]


def _measured(records: Sequence[dict[str, Any]], part: str) -> tuple[dict[str, Any], Found]:
    """What is shown of a profile, and how accuracy goes with frequency and recency, [seeds], by network."""
    measures, found = {}, {}
    for name, of in by_network(records).items():
        final = accuracy(of, part)[:, -1]
        often = np.array([np.bincount(r["parts"][part]["items"]) for r in of])
        last = np.array([_last_seen(r["parts"][part]["items"]) for r in of])
        found[name] = {
            "frequency": np.array([spearman(f, o) for f, o in zip(final, often, strict=True)]),
            "last seen": np.array([spearman(f, p) for f, p in zip(final, last, strict=True)]),
        }
        by_rank = [np.argsort(o) for o in often]
        measures[name] = {
            "by_frequency": describe(np.stack([f[k] for f, k in zip(final, by_rank, strict=True)])),
            "by_last_seen": describe(np.stack([f[np.argsort(p)] for f, p in zip(final, last, strict=True)])),
            "average": describe(final.mean(1)),
            **{f"correlation with {what}": describe(rho) for what, rho in found[name].items()},
        }
    return measures, found


def _claims(found: Found, what: str = "") -> list[dict[str, Any]]:
    """The claims on a profile; ``what``: how its checks begin."""
    hybrid, conventional = found["hybrid"], found["conventional"]
    where = f"In the {what}t" if what else "T"
    return [
        claim(
            f"{what}frequency decides",
            f"{where}he hybrid network keeps what it met often, and not only what it met last.",
            [
                check(f"{what}hybrid: accuracy goes with frequency", hybrid["frequency"]),
                check(
                    f"{what}hybrid: with frequency more than with last-seen position",
                    hybrid["frequency"] - hybrid["last seen"],
                ),
            ],
        ),
        claim(
            f"{what}conventional: recency decides",
            f"{where}he conventional network keeps what it met last, however often.",
            [
                check(f"{what}conventional: accuracy goes with last-seen position", conventional["last seen"]),
                check(
                    f"{what}conventional: with last-seen position more than with frequency",
                    conventional["last seen"] - conventional["frequency"],
                ),
                check(
                    f"{what}hybrid goes with frequency more than conventional does",
                    hybrid["frequency"] - conventional["frequency"],
                ),
            ],
        ),
    ]


def order(items: int, seed: int, profile: int = 0) -> list[int]:
    """Which item is shown at each presentation: a random one of them once, another twice, and so on.

    Drawn anew until frequency and last-seen position have a rank correlation of at most 0.1 either way. By
    chance frequent items are seen last later: of ten items some 2 % of the orders pass. Each ``profile`` of a
    seed has another order.
    """
    rng = np.random.default_rng([_ORDER, seed, profile] if profile else [_ORDER, seed])
    often = rng.permutation(items) + 1
    shown = np.repeat(np.arange(items), often)
    while True:
        rng.shuffle(shown)
        if abs(spearman(often, _last_seen(shown.tolist()))) <= _UNRELATED:
            return [int(i) for i in shown]


def _last_seen(shown: Sequence[int]) -> NDArray[np.int64]:
    """The position of each item's last presentation."""
    where = {item: position for position, item in enumerate(shown)}
    return np.array([where[item] for item in sorted(where)])
