"""Against the field: the hybrid network beside other ways not to forget, on the same stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network
from flexkern.runs.metaplasticity.schedule import Experiment
from flexkern.runs.metaplasticity.serial_position import memory_measures

__all__ = ["Rivals"]

HYBRID, CONVENTIONAL, JOINT = "hybrid", "plain SGD", "joint"
TUNED_HYBRID, ALIKE = "hybrid, tuned", "all alike, tuned"
_TUNED = (TUNED_HYBRID, ALIKE, "EWC", "SI")


@dataclass(frozen=True)
class Rivals(Experiment):
    """The stream once, by the hybrid network and by EWC, SI, replay, joint training and plain SGD.

    EWC and SI have a strength, which is chosen for them: the best one on the first ``pilot`` seeds, on which
    nothing else is reported. The hybrid network has the protocol's scale, and beside it one with a scale that
    is chosen in the same way. So has the network whose synapses are all alike (f = 0.5; another f is another
    scale): what a mixture is worth is seen against that one, not against one at the mixture's scale.

    Args:
        pilot: seeds on which strengths are chosen; there must be more seeds than these.
        scales: of the tuned hybrid network and of the one of synapses all alike, those that are tried.
        ewc, si: strengths that are tried.
        memory: training inputs that replay keeps.
    """

    pilot: int = 2
    scales: tuple[float, ...] = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5)
    ewc: tuple[float, ...] = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
    si: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0)
    memory: int = 200

    name: ClassVar[str] = "rivals"
    title: ClassVar[str] = "Other ways not to forget, on the same stream"

    def items(self, protocol: Protocol) -> int:
        if protocol.seeds < self.pilot + 1:
            raise ValueError(
                f"seeds must be at least {self.pilot + 1}: strengths are chosen on the first {self.pilot}, the "
                f"others are reported; got {protocol.seeds}"
            )
        return protocol.items

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return {
            HYBRID: Network(),
            **{f"{TUNED_HYBRID}, scale {s:g}": Network(changes=(("scale", s),)) for s in self.scales},
            **{f"{ALIKE}, scale {s:g}": Network(flexibility=0.5, changes=(("scale", s),)) for s in self.scales},
            CONVENTIONAL: Network(flexibility="conventional"),
            **{f"EWC, strength {s:g}": Network("ewc", options=(("strength", s),)) for s in self.ewc},
            **{f"SI, strength {s:g}": Network("si", options=(("strength", s),)) for s in self.si},
            f"replay of {self.memory}": Network("replay", options=(("memory", self.memory),)),
            JOINT: Network("joint"),
        }

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        pilot, reported = set(protocol.seed_list[: self.pilot]), set(protocol.seed_list[self.pilot :])
        on_pilot = {n: _average(of) for n, of in by_network([r for r in records if r["seed"] in pilot]).items()}
        of = by_network([r for r in records if r["seed"] in reported])
        candidates = {tuned: [n for n in of if n.startswith(f"{tuned}, ")] for tuned in _TUNED}
        chosen = {tuned: max(names, key=lambda n: on_pilot[n].mean()) for tuned, names in candidates.items()}
        dropped = {n for names in candidates.values() for n in names} - set(chosen.values())
        shown = [n for n in of if n not in dropped]
        average = {n: _average(of[n]) for n in shown}
        ours = (HYBRID, chosen[TUNED_HYBRID])
        rivals = [n for n in shown if n not in (*ours, JOINT)]
        return {
            "measures": {n: memory_measures(accuracy(of[n], "stream"), of[n], "stream") for n in shown},
            "pilot": {n: round(float(v.mean()), 4) for n, v in on_pilot.items()},
            "chosen": chosen,
            "claims": [
                claim(
                    what,
                    f"Not in the paper: the hybrid network, {how}, remembers more than other methods that see "
                    "each item once.",
                    [check(f"{name} above {n}, average accuracy", average[name] - average[n]) for n in rivals],
                )
                for what, how, name in (
                    ("against the field", "its scale untuned", HYBRID),
                    ("against the field, tuned", "its scale tuned as their strengths are", ours[1]),
                )
            ],
        }


def _average(of: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """[seeds]: mean accuracy over the items after the stream."""
    return accuracy(of, "stream")[:, -1].mean(1)
