"""Thresholds of gates: from held-out data of the own task, or sliding with the data of others.

See docs/design.md, Artsy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from torch import Tensor

from flexkern.plain import number

__all__ = ["THRESHOLDS", "SlidingThreshold", "quantile_threshold"]

THRESHOLDS = ("fixed", "quantile", "adaptive")


def quantile_threshold(evidence: Tensor, target: float) -> Tensor:
    """For each of G gates, the largest threshold that opens on a share ``target`` of the own task's fresh data.

    With n held-out samples it is the k-th smallest evidence, k = floor((n + 1) (1 - target)). For exchangeable
    samples a fresh one has evidence >= it with probability at least ``1 - k / (n + 1) >= target`` (and, without
    ties, exactly the former): split conformal prediction. With k = 0 (n is too small for the target) it is
    -inf: always open.

    Args:
        evidence: [n, G].
        target: true-positive rate, in (0, 1).

    Returns:
        [G].
    """
    n = len(evidence)
    k = math.floor((n + 1) * (1 - target) + 1e-9)  # 1e-9: 1 - target is rounded, and (n + 1) times it too
    if k == 0:
        return evidence.new_full(evidence.shape[1:], -math.inf)
    return evidence.sort(0).values[k - 1]


@dataclass(frozen=True)
class SlidingThreshold:
    """A threshold, as a logit, that slides until a wanted share of other tasks' data opens the gate.

    For each batch of other tasks' data, with r the share of it that opened the gate::

        theta <- clamp(theta + gain (r - target), low, high)

    It is a Robbins-Monro iteration of constant gain, as :class:`flexkern.nn.AdaptiveThreshold` is on log theta:

    - A step is at most ``gain (1 - target)`` upwards and ``gain target`` downwards, and theta stays in [low,
      high].
    - While no bound is met ``sum of (r - target) = (theta - start) / gain``: over B batches the mean rate is
      within ``(high - low) / (gain B)`` of the target.
    - It follows the (1 - target) quantile of the evidence on other tasks' data, and does not look at the own
      task's. Where the two overlap much, the threshold therefore also closes the gate to its own data; ``high``
      limits that.

    Args:
        target: wanted share of other tasks' data that opens the gate, 0 < target < 1.
        gain: > 0, in logits.
        low, high: bounds of theta in logits, low <= high.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    target: float = 0.1
    gain: float = 0.5
    low: float = -8.0
    high: float = 8.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, number(getattr(self, field.name), field.name))
        if not 0 < self.target < 1:
            raise ValueError(f"target must be in (0, 1), a share of other tasks' data, got {self.target}")
        if self.gain <= 0:
            raise ValueError(f"gain must be > 0, got {self.gain}")
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")

    def slide(self, theta: Tensor, evidence: Tensor, batch: int) -> Tensor:
        """Theta after some data, batch by batch.

        Args:
            theta: float32 [G], in logits.
            evidence: [n, G], of other tasks' data, in the order in which it comes.
            batch: samples of one step; the last may be fewer.

        Returns:
            float32 [G].
        """
        for part in evidence.split(batch):
            rate = (part >= theta).to(theta.dtype).mean(0)
            theta = (theta + self.gain * (rate - self.target)).clamp(self.low, self.high)
        return theta
