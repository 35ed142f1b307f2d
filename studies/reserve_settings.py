"""What the study of silent reserves compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flexkern.nn import AdaptiveThreshold

__all__ = ["CONTROL", "METHODS", "NEVER", "NONE", "StudyConfig", "condition"]

NONE, CONTROL = "no reserve", "never converted"
# How a synapse converts. A drawn weight is as large as those of the functional synapses; a small one is 0.001
# times the coincidence that converted it, so that the network does at first what it did before.
METHODS: dict[str, dict[str, Any]] = {
    "rate, drawn weight": {"rule": "rate", "insert": "init"},
    "rate, small weight": {"rule": "rate", "insert": "hebbian", "eta": 1e-3},
    "hebbian, small weight": {"rule": "hebbian", "insert": "hebbian", "eta": 1e-3},
}
NEVER = 1e30  # a threshold that no coincidence reaches


@dataclass(frozen=True)
class StudyConfig:
    """Sizes of the study. ``targets``: of the adaptive threshold, tried in the pilot.

    Raises:
        ValueError: naming the argument. (Items, epochs and the like are checked where they are used.)
    """

    seeds: int = 8
    first_seed: int = 0
    pilot_seeds: int = 3
    first_pilot_seed: int = 100
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    pilot_share: float = 0.5
    targets: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    items: int = 10
    epochs: int = 2
    train_per_item: int = 500
    test_per_item: int = 200
    lr: float = 5e-3
    batch_size: int = 50
    width: int = 128
    channels: int = 16
    grid: int = 8

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, or differences have no spread, got {self.seeds}")
        if self.pilot_seeds < 1:
            raise ValueError(f"pilot_seeds must be at least 1, got {self.pilot_seeds}")
        reported = range(self.first_seed, self.first_seed + self.seeds)
        if set(reported) & set(self.pilot()):
            raise ValueError(
                f"first_pilot_seed: the pilot's seeds {list(self.pilot())} must not be among the reported "
                f"ones, {list(reported)}"
            )

    def pilot(self) -> range:
        """The pilot's seeds."""
        return range(self.first_pilot_seed, self.first_pilot_seed + self.pilot_seeds)

    def threshold(self, target: float) -> AdaptiveThreshold:
        """It starts above the coincidences there are; under them half the reserve would convert at once."""
        return AdaptiveThreshold(target=target, gain=30.0, start=10.0)


def condition(method: str, share: float) -> str:
    """The name of a network in the results."""
    return method if method == NONE else f"{share:.0%}, {method}"
