"""The tasks of class-incremental runs as rows and events: see :mod:`flexkern.runs.events`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flexkern.runs.events import Learned

__all__ = ["COLUMNS", "KEYS", "all_tasks", "of_task", "shortly"]

_MEASURED = (
    "classes", "seen", "average", "forgetting", "task_named", "learning_accuracy", "backward_transfer",
    "forward_transfer", "masked", "top5", "macro", "anytime", "parameters_added", "memory_bytes",
)  # fmt: skip
_REPORTED = ("open_rate", "passes")
_COSTS = ("learn_seconds", "predict_seconds", "learn_mib", "predict_mib", "resumed")
COLUMNS = ("seed", "method", "task", *_MEASURED, *_REPORTED, *_COSTS, "accuracies")
"""As docs/configuration.md has them; ``accuracies`` are those on each task so far, with blanks between."""
KEYS = 3


def of_task(run: dict[str, Any], task: int) -> Learned:
    """A task of an entry of ``runs`` in the results."""
    measured = run["tasks"][task]
    which = {"seed": run["seed"], "method": run["method"], "task": task}
    values = {name: measured.get(name) for name in _MEASURED}
    values |= {name: measured["report"].get(name) for name in _REPORTED}
    cost = measured["cost"]
    row = which | values | {name: cost.get(name) for name in _COSTS} | {"accuracies": measured["accuracies"]}
    event = {
        "event": "task",
        **which,
        "accuracies": measured["accuracies"],
        **{name: measured[name] for name in ("classes", "seen", "average", "forgetting")},
        "seconds": cost["learn_seconds"],
        "test_seconds": cost["predict_seconds"],
    }
    return Learned(event, [row])


def all_tasks(results: dict[str, Any]) -> Iterator[Learned]:
    """Those that have been learned and tested."""
    for run in results["runs"]:
        for task in range(len(run["tasks"])):
            yield of_task(run, task)


def shortly(summary: dict[str, Any]) -> dict[str, Any]:
    """What the end of a run says of each method: means over its seeds."""
    measures = ("average", "last", "forgetting")
    return {
        method: {"seeds": of["seeds"], **{name: of[name]["mean"] for name in measures}}
        for method, of in summary.items()
    }
