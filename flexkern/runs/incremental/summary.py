"""Class-incremental runs over several seeds: means and spreads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["MEASURES", "number", "summarise"]

MEASURES = (
    "learning_accuracy", "backward_transfer", "forward_transfer",
    "masked", "top5", "macro", "per_class", "anytime",
)  # fmt: skip
"""What came to be measured later than accuracy and forgetting: :mod:`flexkern.runs.incremental.measures`."""


def number(value: Any, digits: int | None = None) -> float | None:
    """A number for JSON, which has no NaN and no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if digits is None else round(float(value), digits)


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds of each method, from the runs that have ended.

    Returns:
        For each method: ``seeds``; ``average``, ``last``, ``forgetting`` and what else was measured after the
        last task (:data:`MEASURES`; what a run of before has not measured is left out); and for each task, as
        lists, ``classes``, ``seen`` and what the method reports (``open_rate`` and so on).
    """
    summary: dict[str, Any] = {}
    # While a folder's stream becomes longer, runs that are not there yet have fewer tasks.
    tasks = max((len(r["experiences"]) for r in results["runs"] if "experiences" in r), default=0)
    for method in [m["name"] for m in results["configuration"]["methods"]]:
        ended = [r["tasks"] for r in results["runs"] if r["method"] == method and len(r["tasks"]) == tasks]
        if not ended:
            continue
        reported = sorted(set.intersection(*(set(t["report"]) for tasks in ended for t in tasks)))
        summary[method] = {
            "seeds": len(ended),
            **{key: _spread([tasks[-1][key] for tasks in ended]) for key in ("average", "forgetting")},
            "last": _spread([tasks[-1]["seen"] for tasks in ended]),
            **{
                key: _spread([tasks[-1][key] for tasks in ended])
                for key in MEASURES
                if all(key in tasks[-1] for tasks in ended)
            },
            "classes": [t["classes"] for t in ended[0]],
            "seen": _spread([[t["seen"] for t in tasks] for tasks in ended]),
            "task_named": _spread([[t["task_named"] for t in tasks] for tasks in ended]),
            "parameters_added": ended[0][-1]["parameters_added"],
            "memory_bytes": ended[0][-1].get("memory_bytes"),  # runs of before did not count it
            "report": {
                key: _spread([[t["report"][key] for t in tasks] for tasks in ended]) for key in reported
            },
            "cost": {key: _costs(ended, key) for key in ("learn_seconds", "predict_seconds")},
            "mib": _peak(ended),
        }
    return summary


def _spread(values: Sequence[Any]) -> dict[str, Any]:
    """Over the first axis; what one run does not know (None) nobody knows."""
    numbers = np.array(
        [[math.nan if v is None else v for v in np.atleast_1d(row)] for row in values], dtype=float
    )
    std = numbers.std(0, ddof=1) if len(numbers) > 1 else np.zeros(numbers.shape[1])
    mean = [number(v) for v in numbers.mean(0)]
    deviation = [number(v) for v in std]
    single = np.ndim(values[0]) == 0
    return {"mean": mean[0] if single else mean, "std": deviation[0] if single else deviation}


def _costs(ended: Sequence[Any], key: str) -> dict[str, Any]:
    return _spread([sum(t["cost"][key] for t in tasks) for tasks in ended])


def _peak(ended: Sequence[Any]) -> float | None:
    """MiB, the most that any task of any run took."""
    peaks = [t["cost"][key] for tasks in ended for t in tasks for key in ("learn_mib", "predict_mib")]
    return max((p for p in peaks if p is not None), default=None)
