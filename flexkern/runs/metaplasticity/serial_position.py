"""Serial position (arXiv 2407.07133, Fig. 2 and 3): what is left of each item of a stream learned once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network, memorised_count, of_network
from flexkern.runs.metaplasticity.schedule import Experiment, Part, in_order
from flexkern.runs.statistics import describe
from flexkern.streams import TwoDigitItems

__all__ = ["THREE", "SerialPosition", "memory_measures"]

THREE = {name: Network(flexibility=name) for name in ("conventional", "hybrid", "stable")}


@dataclass(frozen=True)
class SerialPosition(Experiment):
    """The stream once; then the same networks, untouched, go on with a stream that turns out longer.

    The longer stream has the first items in common with the expected one, so the networks just go on: nothing
    of them, their scale included, is changed.

    Args:
        longer: items of the longer stream, 0 for none.
    """

    longer: int = 30

    name: ClassVar[str] = "serial-position"
    title: ClassVar[str] = "What is left of each item after the last one"

    def items(self, protocol: Protocol) -> int:
        return max(protocol.items, self.longer)

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return THREE

    def schedule(self, items: TwoDigitItems, protocol: Protocol, seed: int) -> Sequence[Part]:
        expected = items.head(protocol.items)
        parts = [Part("stream", in_order(expected, range(len(expected))), len(expected), by_epoch=True)]
        if self.longer > protocol.items:
            parts.append(Part("longer", in_order(items, range(protocol.items, self.longer)), self.longer))
        return parts

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        measures = {
            name: memory_measures(accuracy(of, "stream"), of, "stream")
            for name, of in by_network(records).items()
        }
        summary: dict[str, Any] = {"measures": measures, "claims": _claims(records)}
        if self.longer > protocol.items:
            summary["longer"] = {
                name: memory_measures(_whole(of, self.longer), of, "longer")
                for name, of in by_network(records).items()
            }
            summary["claims"] += _claims_longer(records, protocol.items, self.longer)
        return summary


def memory_measures(matrix: NDArray[np.float64], of: Sequence[dict[str, Any]], part: str) -> dict[str, Any]:
    """What the paper plots of a stream.

    Args:
        matrix: accuracy [seeds, presentations, items] on each item after each presentation.
        of: the records of one network, one per seed.
        part: of the schedule, for how many items are memorised.

    Returns:
        final: of each item after the last. learned: of each right after its own. average memory: mean accuracy
        of the items learned so far, after each; gross memory: its sum, in items. memorised: how many items
        are above chance, after each presentation of the part.
    """
    steps = np.arange(1, matrix.shape[1] + 1)
    gross = np.stack([matrix[:, k, : k + 1].sum(1) for k in range(matrix.shape[1])], 1)
    return {
        "final": describe(matrix[:, -1]),
        "learned": describe(np.stack([np.diag(m) for m in matrix])),
        "average_memory": describe(gross / steps),
        "gross_memory": describe(gross),
        "memorised": describe(memorised_count(of, part)),
    }


def _whole(of: Sequence[dict[str, Any]], items: int) -> NDArray[np.float64]:
    """Accuracies over the whole longer stream; items that were not in the expected one count 0 until then."""
    first, then = accuracy(of, "stream"), accuracy(of, "longer")
    padded = np.pad(first, ((0, 0), (0, 0), (0, items - first.shape[2])))
    return np.concatenate([padded, then], 1)


def _claims(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    final = {n: accuracy(of_network(records, n), "stream")[:, -1] for n in THREE}
    conventional, hybrid, stable = (final[n] for n in ("conventional", "hybrid", "stable"))
    memorised = {n: memorised_count(of_network(records, n), "stream")[:, -1] for n in THREE}
    half = hybrid.shape[1] // 2
    middle = hybrid[:, 1:-1].mean(1)
    more = memorised["hybrid"]
    return [
        claim(
            "conventional forgets",
            "A network of conventional synapses keeps only what it learned last.",
            [
                check("conventional: last item above the first half", _gap(conventional, [-1], range(half))),
                check(
                    "conventional: second half above the first", _gap(conventional, _second(half), range(half))
                ),
            ],
        ),
        claim(
            "stable cannot learn",
            "A network of stable synapses keeps the first items and cannot learn later ones.",
            [check("stable: first half above the second", _gap(stable, range(half), _second(half)))],
        ),
        claim(
            "hybrid remembers more",
            "Mixing stable and flexible synapses holds more in memory than either alone.",
            [
                check("hybrid above conventional, average accuracy", (hybrid - conventional).mean(1)),
                check("hybrid above stable, average accuracy", (hybrid - stable).mean(1)),
                check("hybrid above conventional, memorised items", more - memorised["conventional"]),
                check("hybrid above stable, memorised items", more - memorised["stable"]),
            ],
        ),
        claim(
            "serial position",
            "The hybrid network has the serial-position curve of human memory: primacy and recency.",
            [
                check("hybrid: first item above the middle", hybrid[:, 0] - middle),
                check("hybrid: last item above the middle", hybrid[:, -1] - middle),
            ],
        ),
    ]


def _second(half: int) -> slice:
    return slice(half, None)


def _gap(final: NDArray[np.float64], above: Any, below: Any) -> NDArray[np.float64]:
    """[seeds]: mean accuracy of some items less that of others."""
    return final[:, above].mean(1) - final[:, below].mean(1)


def _claims_longer(records: Sequence[dict[str, Any]], items: int, longer: int) -> list[dict[str, Any]]:
    of = {n: of_network(records, n) for n in THREE}
    average = {n: accuracy(of[n], "longer")[:, -1].mean(1) for n in THREE}
    hybrid, hybrid_ends = _whole(of["hybrid"], longer), average["hybrid"]
    more = memorised_count(of["hybrid"], "longer")[:, -1] - memorised_count(of["hybrid"], "stream")[:, -1]
    learned = np.stack([np.diag(m) for m in hybrid])[:, items:].mean(1)
    return [
        claim(
            "unexpectedly longer",
            f"The same hybrid network, untouched, goes on learning when {items} items become {longer}.",
            [
                check(f"hybrid: items {items + 1} to {longer} are learned, accuracy above twice chance",
                      learned - 2 / longer),
                check("hybrid above conventional, average accuracy", hybrid_ends - average["conventional"]),
                check("hybrid above stable, average accuracy", hybrid_ends - average["stable"]),
            ],
        ),
        claim(
            "capacity against performance",
            "With more items the hybrid network holds more in all, and each less well.",
            [
                check(f"hybrid: more memorised after {longer} items than after {items}", more),
                check(f"hybrid: gross memory is larger after {longer} items",
                      hybrid[:, -1].sum(1) - hybrid[:, items - 1, :items].sum(1)),
                check(f"hybrid: average memory is smaller after {longer} items",
                      hybrid[:, items - 1, :items].mean(1) - hybrid[:, -1].mean(1)),
            ],
        ),
    ]  # fmt: skip
