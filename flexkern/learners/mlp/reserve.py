"""The reserve of silent synapses that the hidden layers of a metaplastic learner can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flexkern.nn import AdaptiveThreshold
from flexkern.ops.choices import INSERTS, RULES
from flexkern.plain import choice, number

__all__ = ["Reserve"]

# Found on two-digit items (docs/results/silent_reserve). It starts above the coincidences there are, because
# under them half the reserve would convert at once; of the silent synapses one in 2,000 converts in a step.
_THRESHOLD = AdaptiveThreshold(target=5e-4, gain=30.0, start=10.0)


@dataclass(frozen=True)
class Reserve:
    """How many synapses begin silent, and how they become functional.

    Args:
        silent_fraction: share of the synapses that begins silent, 0 to 1. The functional ones have the weights
            that they have without a reserve.
        threshold: that a silent synapse has to pass to become functional: a number, or an
            :class:`flexkern.nn.AdaptiveThreshold`.
        rule, insert, eta: what is compared with it, and the weight that a synapse begins with, see
            :class:`flexkern.nn.SilentLinear`.
        prune: where it is above 0, functional synapses of a magnitude under it go silent.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    silent_fraction: float = 0.0
    threshold: float | AdaptiveThreshold = _THRESHOLD
    rule: str = "rate"
    insert: str = "init"
    eta: float = 1.0
    prune: float = 0.0

    def __post_init__(self) -> None:
        fraction = number(self.silent_fraction, "silent_fraction")
        if not 0 <= fraction <= 1:
            raise ValueError(f"silent_fraction must be a share of synapses in [0, 1], got {fraction}")
        plain = {"silent_fraction": fraction}
        if not isinstance(self.threshold, AdaptiveThreshold):
            # A tensor with an entry for each unit would have to fit all hidden layers.
            if isinstance(self.threshold, float) and not self.threshold >= 0:
                raise ValueError(f"threshold must be >= 0, got {self.threshold}")
            plain["threshold"] = number(self.threshold, "threshold", 0, kind="a number or an AdaptiveThreshold")
        for name in ("eta", "prune"):
            plain[name] = number(getattr(self, name), name, 0)
        choice(self.rule, "rule", RULES)
        choice(self.insert, "insert", INSERTS)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def layer_options(self) -> dict[str, Any] | None:
        """Arguments of :class:`flexkern.nn.SilentLinear`; None where no synapse is ever silent."""
        if not (self.silent_fraction > 0 or self.prune > 0):
            return None
        return {
            "silent": float(self.silent_fraction), "threshold": self.threshold, "rule": self.rule,
            "insert": self.insert, "eta": self.eta, "prune": self.prune,
        }  # fmt: skip
