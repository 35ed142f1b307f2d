"""The tasks of a fit as rows and events: see :mod:`flexkern.runs.events`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flexkern.runs.events import Learned
from flexkern.runs.fitting.fit_config import BEST_METHOD

__all__ = ["COLUMNS", "KEYS", "all_tasks", "method_of", "of_task"]

_MEASURED = ("seen", "average", "earlier", "learn_seconds", "test_seconds")
COLUMNS = (
    "seed", "method", "task", "classes", "train_images", "test_images", *_MEASURED, "accuracies"
)  # fmt: skip
"""``classes``: how many the task has; ``earlier``: accuracy on those that the model knew before."""
KEYS = 3


def method_of(record: dict[str, Any]) -> str:
    """By the name that it is asked for: a learner calls itself after its family (ease is an artsy)."""
    configuration, learner = record["configuration"], record["learner"]["method"]
    return configuration.get("method") or (learner if configuration.get("from") else BEST_METHOD)


def of_task(record: dict[str, Any], task: int) -> Learned:
    """A task of what came of a fit."""
    measured = record["tasks"][task]
    which = {
        "seed": record["configuration"]["seed"],
        "method": method_of(record),
        "task": task,
    }
    counts = {
        "classes": len(measured["classes"]),
        "train_images": measured["images"]["train"],
        "test_images": measured["images"]["test"],
    }
    values = {name: measured[name] for name in _MEASURED}
    row = which | counts | values | {"accuracies": measured["accuracies"]}
    event = {
        "event": "task",
        **which,
        "classes": measured["classes"],
        **{name: measured[name] for name in ("accuracies", "seen", "average", "earlier")},
        "seconds": measured["learn_seconds"],
        "test_seconds": measured["test_seconds"],
    }
    return Learned(event, [row])


def all_tasks(record: dict[str, Any]) -> Iterator[Learned]:
    """Those that have been learned and tested."""
    for task in range(len(record["tasks"])):
        yield of_task(record, task)
