"""Hebb repetition (arXiv 2407.07133, Fig. 4): the same stream again and again, in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network, memorised_count, of_network
from flexkern.runs.metaplasticity.schedule import Experiment, Part, Shown, in_order
from flexkern.runs.metaplasticity.serial_position import THREE
from flexkern.runs.statistics import describe
from flexkern.streams import TwoDigitItems

__all__ = ["PASSES", "HebbRepetition", "repeated"]

PASSES = 9  # the paper's


@dataclass(frozen=True)
class HebbRepetition(Experiment):
    """The stream several times.

    Args:
        passes: how many times, at least 2.
    """

    passes: int = PASSES

    name: ClassVar[str] = "hebb-repetition"
    title: ClassVar[str] = "The same stream again and again"

    def __post_init__(self) -> None:
        if self.passes < 2:
            raise ValueError(f"passes must be at least 2, got {self.passes}")

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return THREE

    def schedule(self, items: TwoDigitItems, protocol: Protocol, seed: int) -> Sequence[Part]:
        return [Part("repetition", repeated(items, self.passes), len(items))]

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        passes = {name: _after_passes(of, protocol.items) for name, of in by_network(records).items()}
        measures = {
            name: {
                "mean": describe(final.mean(2)),
                "minimum": describe(final.min(2)),
                "items": describe(final),
                "memorised": describe(
                    memorised_count(of_network(records, name), "repetition")[:, _ends(final, protocol)]
                ),
            }
            for name, final in passes.items()
        }
        hybrid, conventional, stable = (passes[n] for n in ("hybrid", "conventional", "stable"))
        gain = {n: p[:, -1].mean(1) - p[:, 0].mean(1) for n, p in passes.items()}
        claims = [
            claim(
                "repetition helps",
                "Repeating a sequence makes the hybrid network's memory of all its items better.",
                [
                    check("hybrid: mean accuracy, last pass above first", gain["hybrid"]),
                    check(
                        "hybrid: worst item, last pass above first", hybrid[:, -1].min(1) - hybrid[:, 0].min(1)
                    ),
                ],
            ),
            claim(
                "repetition helps the hybrid network only",
                "Repetition helps the hybrid network more than the others.",
                [
                    check("hybrid gains more than conventional", gain["hybrid"] - gain["conventional"]),
                    check("hybrid gains more than stable", gain["hybrid"] - gain["stable"]),
                    check("hybrid ends above conventional", (hybrid - conventional)[:, -1].mean(1)),
                    check("hybrid ends above stable", (hybrid - stable)[:, -1].mean(1)),
                ],
            ),
        ]
        return {"measures": measures, "claims": claims}


def repeated(items: TwoDigitItems, passes: int) -> list[Shown]:
    """All items in order, ``passes`` times."""
    return [shown for k in range(passes) for shown in in_order(items, range(len(items)), k)]


def _after_passes(of: Sequence[dict[str, Any]], items: int) -> NDArray[np.float64]:
    """[seeds, passes, items]: accuracy after each whole pass."""
    return accuracy(of, "repetition")[:, items - 1 :: items]


def _ends(final: NDArray[np.float64], protocol: Protocol) -> list[int]:
    return [(k + 1) * protocol.items - 1 for k in range(final.shape[1])]
