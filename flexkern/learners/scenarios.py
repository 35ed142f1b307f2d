"""The kinds of streams that a learner may be able to take."""

from __future__ import annotations

from flexkern.streams.base import SCENARIOS

__all__ = ["FEW", "SCENARIOS"]

FEW = 16
"""An experience of fewer inputs than this is a piece of an online stream: nothing is fitted to it alone, such
as the temperature of probabilities, and it may cost no more than its inputs do."""
