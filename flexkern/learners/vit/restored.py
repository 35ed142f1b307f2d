"""Whether the parts of a learner that were loaded fit together, and what its record says."""

from __future__ import annotations

from torch import nn

from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.feature_statistics import FeatureStatistics
from flexkern.nn.gates.synapse_gate import SynapseGate
from flexkern.nn.growing import GrowingState
from flexkern.nn.heads.experts import ExpertHead
from flexkern.nn.heads.prototype import PrototypeClassifier

__all__ = ["check_parts", "check_same"]


def check_parts(modules: nn.Module, *, classes: int, tasks: int, adapters: int) -> None:
    """Raises ValueError unless each part has so many classes, tasks, or tasks with adapters."""
    parts = dict(modules.named_modules())
    # What is not used is empty: prototypes beside experts, statistics of gates that have no scores.
    scored = any(p.mlp or p.detector for p in parts.values() if isinstance(p, SynapseGate))
    experts = any(isinstance(p, ExpertHead) for p in parts.values())
    for name, part in parts.items():
        if isinstance(part, PrototypeClassifier) and experts:
            continue
        if isinstance(part, FeatureStatistics) and not scored:
            continue
        if isinstance(part, AdapterBank):
            check_same(name, "tasks", part.tasks, adapters)
        elif isinstance(part, GrowingState):
            check_same(name, "classes", getattr(part, "classes", classes), classes)
            check_same(name, "tasks", getattr(part, "tasks", tasks), tasks)


def check_same(part: str, what: str, have: int, expected: int) -> None:
    """Raises ValueError unless a part has as many as expected."""
    if have != expected:
        raise ValueError(f"model.{part} has {have} {what}, and the record says {expected}")
