"""The networks of experiments as rows and events: see :mod:`flexkern.runs.events`."""

from __future__ import annotations

from typing import Any

import numpy as np

from flexkern.runs.events import Learned

__all__ = ["COLUMNS", "KEYS", "of_network"]

COLUMNS = ("seed", "method", "part", "task", "item", "repetition", "own", "accuracy", "memorised", "loss")
"""A row for each presentation of an item, ``task``: its number in the part, from 0. After it: ``own``, the
accuracy on that item, ``accuracy``, the mean over all items of the test, and how many are ``memorised``;
``loss`` of its last epoch."""
KEYS = 4


def of_network(record: dict[str, Any]) -> Learned:
    """A network that has seen its schedule, with one seed: an entry of ``runs`` in the results."""
    which = {"seed": record["seed"], "method": record["network"]}
    rows, parts = [], {}
    for part, shown in record["parts"].items():
        columns = zip(
            shown["items"], shown["turns"], shown["accuracy"], shown["memorised"], shown["losses"], strict=True
        )
        for task, (item, turn, accuracy, memorised, losses) in enumerate(columns):
            rows.append(
                which
                | {
                    "part": part,
                    "task": task,
                    "item": item,
                    "repetition": turn,
                    "own": accuracy[item] if item < len(accuracy) else None,
                    "accuracy": round(float(np.mean(accuracy)), 4) if accuracy else None,
                    "memorised": len(memorised),
                    "loss": losses[-1] if losses else None,
                }
            )
        parts[part] = {"presentations": len(shown["items"]), "accuracies": shown["accuracy"][-1:]}
    event = {"event": "network", **which, "parts": parts, "seconds": record["seconds"]}
    return Learned(event, rows)
