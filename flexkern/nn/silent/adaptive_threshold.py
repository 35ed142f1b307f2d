"""A threshold that slides until silent synapses convert at the rate that is wanted.

See docs/design.md, Silent and functional synapses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flexkern.plain import number

__all__ = ["AdaptiveThreshold"]


@dataclass(frozen=True)
class AdaptiveThreshold:
    """Each unit's theta follows the coincidences of its synapses, so that a wanted share converts in each pass.

    After each pass over the synapses, for each postsynaptic unit that had silent ones, with r = converted /
    silent before the pass::

        theta <- clamp(theta exp(gain (r - target)), low, high)

    A unit that converts too much gets harder to convert, one that converts too little easier. The paper of
    silent synapses (arXiv 2410.05899) leaves adaptive thresholds open; this is a Robbins-Monro iteration of
    constant gain on log theta. What is known of it:

    - A step changes theta by a factor between ``exp(-gain target)`` and ``exp(gain (1 - target))``, and theta
      stays in [low, high], whatever the network does.
    - While no bound is met, ``sum of (r - target) = log(theta / start) / gain``: over T passes the mean rate is
      within ``log(high / low) / (gain T)`` of the target. Theta stays at ``low`` while coincidences are too
      weak for the target, at ``high`` while they are too strong, and leaves the bound when they no longer are.
    - It tracks the (1 - target) quantile of the coincidences of the silent synapses. Where their distribution
      stands still, theta comes to within the two factors above of that quantile and stays there. When
      coincidences fall by a factor q, theta takes at least ``log(q) / (gain target)`` passes to follow; when
      they rise by q, at least ``log(q) / (gain (1 - target))``.
    - The only state is theta, float32 [out], the ``threshold`` of the layer's state_dict. Nothing waits for the
      device.

    Args:
        target: wanted share of the silent synapses of a unit that convert in a pass, 0 < target < 1.
        gain: > 0. Smaller is smoother and slower.
        low, high: 0 < low <= high, the bounds of theta.
        start: theta before the first pass, in [low, high].

    Raises:
        TypeError, ValueError: naming the argument.
    """

    target: float = 1e-3
    gain: float = 1.0
    low: float = 1e-6
    high: float = 1e6
    start: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = number(getattr(self, field.name), field.name, 0, above=True)
            object.__setattr__(self, field.name, value)
        if self.target >= 1:
            raise ValueError(f"target must be a share of the silent synapses under 1, got {self.target}")
        if self.gain > 80:
            raise ValueError(f"gain must be at most 80, or its factors overflow float32, got {self.gain}")
        if not self.low <= self.start <= self.high:
            raise ValueError(f"start must be in [low, high] = [{self.low}, {self.high}], got {self.start}")
        if self.high > 1e38 or self.low < 2**-126:
            raise ValueError(
                f"low and high must be in [2**-126, 1e38], got {self.low} and {self.high}; theta is float32"
            )

    @torch.no_grad()
    def update_(self, theta: Tensor, converted: Tensor, silent: Tensor) -> None:
        """Moves ``theta`` after a pass, in place.

        Args:
            theta: float32 (or float64) [out].
            converted: integers [out], how many silent synapses of each unit the pass has converted.
            silent: integers [out], how many there were before it. Where there were none theta stays.
        """
        # Without silent synapses none was converted: 0 / 1, and the result is not used.
        rate = converted.to(theta.dtype) / silent.clamp(min=1).to(theta.dtype)
        moved = (theta * torch.exp(self.gain * (rate - self.target))).clamp(self.low, self.high)
        theta.copy_(torch.where(silent > 0, moved, theta))
