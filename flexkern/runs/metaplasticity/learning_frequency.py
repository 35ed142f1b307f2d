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

__all__ = ["LearningFrequency", "order"]

_ORDER = 53  # what numpy's generator is for, so that no other use shares its numbers
_UNRELATED = 0.1  # the largest rank correlation of frequency and last-seen position that is let pass


@dataclass(frozen=True)
class LearningFrequency(Experiment):
    """With 10 items 55 presentations: one item is shown once, one twice, ..., one ten times.

    The order is random, such that how often an item is shown says nothing of when it is seen last.
    """

    name: ClassVar[str] = "learning-frequency"
    title: ClassVar[str] = "Items shown once to many times"

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return THREE

    def schedule(self, items: TwoDigitItems, protocol: Protocol, seed: int) -> Sequence[Part]:
        shown: list[Shown] = []
        repetitions = [0] * len(items)
        for item in order(len(items), seed):
            shown += in_order(items, [item], repetitions[item])
            repetitions[item] += 1
        return [Part("frequency", shown, len(items))]

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        measures, found = {}, {}
        for name, of in by_network(records).items():
            final = accuracy(of, "frequency")[:, -1]
            often = np.array([np.bincount(r["parts"]["frequency"]["items"]) for r in of])
            last = np.array([_last_seen(r["parts"]["frequency"]["items"]) for r in of])
            found[name] = {
                "frequency": np.array([spearman(f, o) for f, o in zip(final, often, strict=True)]),
                "last seen": np.array([spearman(f, p) for f, p in zip(final, last, strict=True)]),
            }
            by_rank = [np.argsort(o) for o in often]
            measures[name] = {
                "by_frequency": describe(np.stack([f[k] for f, k in zip(final, by_rank, strict=True)])),
                "by_last_seen": describe(
                    np.stack([f[np.argsort(p)] for f, p in zip(final, last, strict=True)])
                ),
                "average": describe(final.mean(1)),
                **{f"correlation with {what}": describe(rho) for what, rho in found[name].items()},
            }
        hybrid, conventional = found["hybrid"], found["conventional"]
        claims = [
            claim(
                "frequency decides",
                "The hybrid network keeps what it met often, and not only what it met last.",
                [
                    check("hybrid: accuracy goes with frequency", hybrid["frequency"]),
                    check(
                        "hybrid: with frequency more than with last-seen position",
                        hybrid["frequency"] - hybrid["last seen"],
                    ),
                ],
            ),
            claim(
                "conventional: recency decides",
                "The conventional network keeps what it met last, however often.",
                [
                    check("conventional: accuracy goes with last-seen position", conventional["last seen"]),
                    check(
                        "conventional: with last-seen position more than with frequency",
                        conventional["last seen"] - conventional["frequency"],
                    ),
                    check(
                        "hybrid goes with frequency more than conventional does",
                        hybrid["frequency"] - conventional["frequency"],
                    ),
                ],
            ),
        ]
        return {"measures": measures, "claims": claims}


def order(items: int, seed: int) -> list[int]:
    """Which item is shown at each presentation: a random one of them once, another twice, and so on.

    Drawn anew until frequency and last-seen position have a rank correlation of at most 0.1 either way. By
    chance frequent items are seen last later: of ten items some 2 % of the orders pass.
    """
    rng = np.random.default_rng([_ORDER, seed])
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
