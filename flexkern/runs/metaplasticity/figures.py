"""All experiments, by the names of their commands."""

from __future__ import annotations

from typing import Any

from flexkern.runs.metaplasticity.flexibility_distribution import FlexibilityDistribution
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.learning_frequency import LearningFrequency
from flexkern.runs.metaplasticity.poisoning import Poisoning
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from flexkern.runs.metaplasticity.split_cifar100 import SplitCIFAR100

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, type[Any]] = {
    one.name: one
    for one in (
        SerialPosition,
        HebbRepetition,
        Poisoning,
        LearningFrequency,
        FlexibilityDistribution,
        Rivals,
        SplitCIFAR100,
    )
}
