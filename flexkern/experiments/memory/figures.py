"""All experiments, by the names of their commands."""

from __future__ import annotations

from typing import Any

from flexkern.experiments.memory.flexibility_distribution import FlexibilityDistribution
from flexkern.experiments.memory.hebb_repetition import HebbRepetition
from flexkern.experiments.memory.learning_frequency import LearningFrequency
from flexkern.experiments.memory.poisoning import Poisoning
from flexkern.experiments.memory.rivals import Rivals
from flexkern.experiments.memory.scale_study import ScaleStudy
from flexkern.experiments.memory.serial_position import SerialPosition
from flexkern.experiments.memory.split_cifar100 import SplitCIFAR100

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        SerialPosition,
        HebbRepetition,
        Poisoning,
        LearningFrequency,
        FlexibilityDistribution,
        Rivals,
        SplitCIFAR100,
        ScaleStudy,
    )
}
