"""A metaplastic optimizer that can only have been the plain one says so, once."""

from __future__ import annotations

import warnings

__all__ = ["LONG", "SHORT", "NoEffect"]

LONG = 1000  # so many steps without consolidate() are hardly one item
SHORT = 10  # fewer steps by the end are a trial


class NoEffect:
    """Counts the steps before the first consolidate().

    It does not know its optimizer, so that it can speak when that one is gone.

    Args:
        name: of the optimizer's class.

    Attributes:
        steps: taken so far; only counted until it is settled.
        is_settled: there is nothing (more) to say.
        was_saved: the state was taken, so that training may go on elsewhere.
    """

    __slots__ = ("is_settled", "name", "steps", "was_saved")

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0
        self.is_settled = self.was_saved = False

    def look(self) -> None:
        """In all steps so far all synapses moved freely."""
        if self.steps >= LONG:
            self._warn(f"has taken {self.steps} steps")

    def end(self) -> None:
        """The optimizer is gone, or the program ends."""
        if not self.is_settled and not self.was_saved and self.steps >= SHORT:
            self._warn(f"took {self.steps} steps and is gone")

    def nothing_is_flexible(self) -> None:
        """No parameter that it has resists being moved, though their flexibility is not 1."""
        self.is_settled = True
        warnings.warn(
            f"{self.name} has no flexible parameter: those of fewer than two dimensions move freely, and there "
            "are no others, so it steps as the plain optimizer does. Where a wrapper has flattened the weights "
            "(FullyShardedDataParallel), use fully_shard (FSDP2), which keeps their shapes; or set "
            "flexible_vectors=True",
            stacklevel=4,
        )

    def _warn(self, what: str) -> None:
        self.is_settled = True
        warnings.warn(
            f"{self.name} {what} without consolidate(). Up to its first call all synapses move freely, "
            "as with the plain optimizer, and nothing is protected. Call optimizer.consolidate() where an "
            "item (task) ends, or every N steps where there are no items (flexkern.integrations does it in "
            "Trainer, Lightning and Avalanche); with gate='step' and a number for scale it is not needed",
            stacklevel=4,
        )
