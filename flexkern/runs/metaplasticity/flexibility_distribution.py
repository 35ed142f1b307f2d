"""Flexibility distributions (supplement of arXiv 2407.07133): which mixture of synapses remembers most?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.flexibility import DISTRIBUTIONS
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network, memorised_count
from flexkern.runs.metaplasticity.schedule import Experiment
from flexkern.runs.metaplasticity.serial_position import memory_measures

__all__ = ["FlexibilityDistribution"]

FULL = "uniform 0 to 1"


@dataclass(frozen=True)
class FlexibilityDistribution(Experiment):
    """The stream once, by networks that differ in how the flexibility of their synapses is distributed."""

    name: ClassVar[str] = "flexibility-distribution"
    title: ClassVar[str] = "How the flexibility of synapses is distributed"

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return {name: Network(flexibility=value) for name, value in DISTRIBUTIONS.items()}

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        networks = by_network(records)
        final = {name: accuracy(of, "stream")[:, -1] for name, of in networks.items()}
        memorised = {name: memorised_count(of, "stream")[:, -1] for name, of in networks.items()}
        measures = {
            name: memory_measures(accuracy(of, "stream"), of, "stream") for name, of in networks.items()
        }
        average = {name: f.mean(1) for name, f in final.items()}
        fixed = [name for name in networks if name.startswith("fixed")]
        mixed = [name for name in networks if name not in (FULL, *fixed)]
        best = max(fixed, key=lambda name: average[name].mean())
        claims = [
            claim(
                "mixtures beat single kinds",
                "Synapses of mixed flexibility remember more than synapses that are all alike, whatever kind "
                "that is.",
                [check(f"uniform 0 to 1 above {name}", average[FULL] - average[name]) for name in fixed],
            ),
            claim(
                "the whole range is needed",
                "The mixture has to reach from stable to flexible.",
                [
                    check("uniform 0 to 1 above uniform 0 to 0.5", average[FULL] - average["uniform 0 to 0.5"]),
                    check(
                        "memorised items: uniform 0 to 1 above uniform 0 to 0.5",
                        memorised[FULL] - memorised["uniform 0 to 0.5"],
                    ),
                ],
            ),
            claim(
                "the form of the mixture hardly matters",
                "Other mixtures over the whole range remember more than the best single kind, too.",
                [
                    check(f"{name} above {best}", average[name] - average[best])
                    for name in mixed
                    if name != "uniform 0 to 0.5"
                ],
            ),
        ]
        return {"measures": measures, "claims": claims}
