"""Data poisoning (arXiv 2407.07133, Fig. 4): well repeated memories against one pass of false lessons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.hebb_repetition import PASSES, repeated
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network, memorised_count
from flexkern.runs.metaplasticity.schedule import Experiment, Part, Shown, in_order
from flexkern.runs.metaplasticity.serial_position import THREE
from flexkern.runs.statistics import describe
from flexkern.streams import Experience, TwoDigitItems
from flexkern.streams.poison import (
    deranged_labels,
    derangement,
    flipped_labels,
    foreign_inputs,
    perturbed_inputs,
)

__all__ = ["CLEAN", "DERANGED", "Poisoning"]

CLEAN, DERANGED = "clean", "deranged labels"
_FOREIGN = 5  # items outside the stream, whose images are the foreign ones
_DERANGEMENT = 61  # what numpy's generator is for, so that no other use shares its numbers


@dataclass(frozen=True)
class Poisoning(Experiment):
    """The stream several times as it is, and then once more: clean, or attacked in one of four ways.

    The paper's attack gives each item's images the label of another item. The release shuffles the labels and
    so leaves some items right; here it is a true derangement. The other attacks are not in the paper. Accuracy
    is on true labels always.

    Args:
        passes: clean ones, before the attack.
        rate: share of an item's images that are flipped, or replaced by foreign ones.
        noise: of perturbed features, relative to how the item's features spread.
    """

    passes: int = PASSES
    rate: float = 0.5
    noise: float = 1.0

    name: ClassVar[str] = "poisoning"
    title: ClassVar[str] = "Repeated memories against poisoned data"

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {self.rate}")
        if not self.noise > 0:
            raise ValueError(f"noise must be > 0, got {self.noise}")

    def items(self, protocol: Protocol) -> int:
        if protocol.items + _FOREIGN > 45:
            raise ValueError(
                f"items must be at most {45 - _FOREIGN}, so that there are foreign images, got {protocol.items}"
            )
        return protocol.items + _FOREIGN

    def classes(self, protocol: Protocol) -> int:
        return protocol.items

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return THREE

    def schedule(self, items: TwoDigitItems, protocol: Protocol, seed: int) -> Sequence[Part]:
        stream = items.head(protocol.items)
        permutation = derangement(len(stream), np.random.default_rng([_DERANGEMENT, seed]))

        def foreign(experience: Experience) -> Experience:
            inputs = torch.cat(items.train[protocol.items :])
            return foreign_inputs(experience, inputs, self.rate, seed=seed)

        attacks: dict[str, Callable[[Experience], Experience]] = {
            CLEAN: lambda e: e,
            DERANGED: lambda e: deranged_labels(e, permutation),
            f"{self.rate:.0%} flipped labels": lambda e: flipped_labels(e, self.rate, len(stream), seed=seed),
            f"{self.rate:.0%} foreign images": foreign,
            f"noise of {self.noise:g} spread": lambda e: perturbed_inputs(e, self.noise, seed=seed),
        }
        parts = [Part("repetition", repeated(stream, self.passes), len(stream))]
        for name, attack in attacks.items():
            shown = [_attacked(s, attack) for s in in_order(stream, range(len(stream)), self.passes)]
            parts.append(Part(name, shown, len(stream)))
        return parts

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        networks = by_network(records)
        attacks = [name for name in records[0]["parts"] if name != "repetition"]
        before = {name: accuracy(of, "repetition")[:, -1] for name, of in networks.items()}
        after = {
            name: {attack: accuracy(of, attack)[:, -1] for attack in attacks} for name, of in networks.items()
        }
        measures = {
            name: {
                "before": describe(before[name].mean(1)),
                "memorised before": describe(memorised_count(of, "repetition")[:, -1]),
                "after": {attack: describe(final.mean(1)) for attack, final in after[name].items()},
                "items after": {attack: describe(final) for attack, final in after[name].items()},
                "memorised after": {attack: describe(memorised_count(of, attack)[:, -1]) for attack in attacks},
            }
            for name, of in networks.items()
        }
        return {"measures": measures, "claims": self._claims(before, after, attacks)}

    def _claims(
        self,
        before: dict[str, NDArray[np.float64]],
        after: dict[str, dict[str, NDArray[np.float64]]],
        attacks: Sequence[str],
    ) -> list[dict[str, Any]]:
        lost = {
            name: {attack: (before[name] - final).mean(1) for attack, final in of.items()}
            for name, of in after.items()
        }
        others = [a for a in attacks if a not in (CLEAN, DERANGED)]
        chance = 1 / before["hybrid"].shape[1]
        return [
            claim(
                "poison is filtered out",
                "Repeated memories of the hybrid network withstand a pass of wrongly labelled images.",
                [
                    check(
                        "hybrid: keeps more than half of its accuracy",
                        (after["hybrid"][DERANGED] - before["hybrid"] / 2).mean(1),
                    ),
                    check(
                        "hybrid keeps a larger share of its accuracy than conventional",
                        _share_kept(before["hybrid"], after["hybrid"][DERANGED])
                        - _share_kept(before["conventional"], after["conventional"][DERANGED]),
                    ),
                    # Beside the share, because a network that knows little has little to lose.
                    check(
                        "hybrid loses less accuracy than conventional",
                        lost["conventional"][DERANGED] - lost["hybrid"][DERANGED],
                    ),
                    check(
                        "hybrid ends above conventional",
                        (after["hybrid"][DERANGED] - after["conventional"][DERANGED]).mean(1),
                    ),
                    check("hybrid stays above chance", after["hybrid"][DERANGED].mean(1) - chance),
                ],
            ),
            claim(
                "other attacks",
                "Not in the paper: the hybrid network knows more than the conventional after other attacks, "
                "too.",
                [
                    check(
                        f"{attack}: hybrid ends above conventional",
                        (after["hybrid"][attack] - after["conventional"][attack]).mean(1),
                    )
                    for attack in others
                ],
            ),
            claim(
                "at no cost to learning",
                "Not in the paper: what withstands poison still takes in a clean pass.",
                [
                    check(
                        "hybrid: a clean pass leaves more than a deranged one",
                        (after["hybrid"][CLEAN] - after["hybrid"][DERANGED]).mean(1),
                    ),
                    check("hybrid: a clean pass adds to what was known", -lost["hybrid"][CLEAN]),
                ],
            ),
        ]


def _attacked(shown: Shown, attack: Callable[[Experience], Experience]) -> Shown:
    return Shown(shown.item, shown.repetition, lambda: attack(shown.experience()))


def _share_kept(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """[seeds]: mean accuracy after, relative to before; 0 where nothing was known before."""
    had = before.mean(1)
    return np.divide(after.mean(1), had, out=np.zeros_like(had), where=had > 0)
