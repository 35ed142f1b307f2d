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
from flexkern.runs.seeds import said_seeds

__all__ = ["Rivals"]

HYBRID, CONVENTIONAL, JOINT = "hybrid", "plain SGD", "joint"
TUNED_HYBRID, ALIKE = "hybrid, tuned", "all alike, tuned"
GATED, GATED_HYBRID = "plain SGD, class-gated error", "hybrid, class-gated error"
RIDGE, LDA = "ridge head", "LDA head"
_TUNED = (TUNED_HYBRID, ALIKE, "EWC", "SI")
_GATED = (("output_gate", "frequency"),)


@dataclass(frozen=True)
class Rivals(Experiment):
    """The stream once, by the hybrid network and by EWC, SI, replay, joint training, plain SGD, ridge and LDA.

    EWC and SI have a strength, which is chosen for them: the best one on the first ``pilot`` seeds, on which
    nothing is reported; on the others the chosen one alone is trained. The hybrid network has the protocol's
    scale, and beside it one with a scale that is chosen in the same way. So has the network whose synapses are
    all alike (f = 0.5; another f is another scale): what a mixture is worth is seen against that one, not
    against one at the mixture's scale. Plain SGD and the hybrid network are trained by the class-gated error,
    too. Ridge regression (on 2,000 random ReLU features) and LDA are heads in closed form on the same frozen
    features, in one pass, told the same labels.

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
        if len(protocol.seeds) < self.pilot + 1:
            raise ValueError(
                f"seeds must be at least {self.pilot + 1} of them: strengths are chosen on the first "
                f"{self.pilot}, the others are reported; got {said_seeds(protocol.seeds)}"
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
            GATED: Network(flexibility="conventional", options=_GATED),
            GATED_HYBRID: Network(options=_GATED),
            RIDGE: Network("ridge"),
            LDA: Network("lda"),
        }

    def _candidates(self, protocol: Protocol) -> dict[str, list[str]]:
        """The networks of which one is chosen, for each that has a strength or a scale to choose."""
        names = list(self.networks(protocol))
        return {tuned: [n for n in names if n.startswith(f"{tuned}, ")] for tuned in _TUNED}

    def count(self, protocol: Protocol) -> int:
        dropped = sum(len(names) - 1 for names in self._candidates(protocol).values())
        return super().count(protocol) - dropped * (len(protocol.seeds) - self.pilot)

    def wanted(self, network: str, seed: int, records: Sequence[dict[str, Any]], protocol: Protocol) -> bool:
        for names in self._candidates(protocol).values():
            if network in names and seed not in protocol.seeds[: self.pilot]:
                on_pilot = self._on_pilot(records, protocol)
                whole = all(len(on_pilot.get(n, ())) == self.pilot for n in names)
                return whole and network == _best(names, on_pilot)
        return True

    def _on_pilot(
        self, records: Sequence[dict[str, Any]], protocol: Protocol
    ) -> dict[str, NDArray[np.float64]]:
        """Average accuracy of each network on the seeds on which strengths are chosen."""
        pilot = set(protocol.seeds[: self.pilot])
        return {n: _average(of) for n, of in by_network([r for r in records if r["seed"] in pilot]).items()}

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        reported, on_pilot = set(protocol.seeds[self.pilot :]), self._on_pilot(records, protocol)
        of = by_network([r for r in records if r["seed"] in reported])
        candidates = self._candidates(protocol)
        chosen = {tuned: _best(names, on_pilot) for tuned, names in candidates.items()}
        dropped = {n for names in candidates.values() for n in names} - set(chosen.values())
        shown = [n for n in of if n not in dropped]
        return {
            "measures": {n: memory_measures(accuracy(of[n], "stream"), of[n], "stream") for n in shown},
            "pilot": {n: round(float(v.mean()), 4) for n, v in on_pilot.items()},
            "chosen": chosen,
            "claims": _claims({n: _average(of[n]) for n in shown}, chosen),
        }


def _best(names: Sequence[str], on_pilot: Mapping[str, NDArray[np.float64]]) -> str:
    return max(names, key=lambda n: on_pilot[n].mean())


def _average(of: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """[seeds]: mean accuracy over the items after the stream."""
    return accuracy(of, "stream")[:, -1].mean(1)


def _claims(average: Mapping[str, NDArray[np.float64]], chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    tuned, alike = chosen[TUNED_HYBRID], chosen[ALIKE]
    trained = [n for n in average if n not in (RIDGE, LDA)]
    rivals = [n for n in average if n not in (HYBRID, tuned, GATED_HYBRID, JOINT)]

    def above(name: str, others: Sequence[str]) -> list[dict[str, Any]]:
        return [
            check(f"{name} above {n}, average accuracy", average[name] - average[n])
            for n in others
            if name in average and n in average  # results of before have fewer networks
        ]

    claims = [
        *(
            claim(
                what,
                f"Not in the paper: the hybrid network, {how}, remembers more than other methods that see each "
                "item once.",
                above(name, rivals),
            )
            for what, how, name in (
                ("against the field", "its scale untuned", HYBRID),
                ("against the field, tuned", "its scale tuned as their strengths are", tuned),
            )
        ),
        *(
            claim(
                f"{head} against training",
                f"Not in the paper: {sort} on the same features, in one pass, with no data kept, remembers "
                "more than every network here that is trained by its gradient.",
                above(head, trained),
            )
            for head, sort in ((RIDGE, "ridge regression"), (LDA, "LDA"))
        ),
        claim(
            "class-gated error against flexible synapses",
            "Not in the paper: plain SGD with the class-gated error remembers more than flexible synapses "
            "without it.",
            above(GATED, [CONVENTIONAL, HYBRID, tuned, alike]),
        ),
        claim(
            "flexible synapses with the class-gated error",
            "Not in the paper: with the class-gated error, too, the hybrid network remembers more than plain "
            "SGD.",
            above(GATED_HYBRID, [GATED]),
        ),
        claim(
            "joint training is no bound",
            "Not in the paper: joint training of the network on all items so far is no upper bound.",
            [c for name in (GATED, RIDGE, LDA) for c in above(name, [JOINT])],
        ),
    ]
    return [c for c in claims if c["checks"]]
