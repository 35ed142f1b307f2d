"""Which classes an experience brings: new ones, known ones again, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.streams.base import Experience

__all__ = ["begun_by", "known_classes", "new_classes", "places"]


def begun_by(experience: Experience, classes_seen: int, takes: Sequence[str], learner: str) -> dict[str, Any]:
    """What is noted of an experience while it is learned, as JSON: its name, how many classes it has, and
    ``known``, how many of them were learned before, where there are any.

    Raises:
        ValueError: unless its labels are known classes and the next new ones; ``takes`` says whether known ones
            may be among them, ``learner`` is named where they may not.
    """
    present = experience.train_labels.unique()
    known = int((present < classes_seen).sum())
    new = torch.arange(classes_seen, classes_seen + len(present) - known, device=present.device)
    again = any(scenario != "class-incremental" for scenario in takes)
    sound = len(present) and int(present[0]) >= 0 and torch.equal(present[known:], new)
    if not sound or (known and not again):
        either = f"known classes, under {classes_seen}, or " if again and classes_seen else ""
        only = f"; {learner} takes {', '.join(takes)} streams only" if known and not again else ""
        raise ValueError(
            f"experience: its labels must be {either}the classes from {classes_seen} on, numbered in the order "
            f"of learning without gaps, got {present.tolist()}; the streams of flexkern.streams number them so"
            f"{only}"
        )
    return {"name": experience.name, "classes": len(present)} | ({"known": known} if known else {})


def known_classes(begun: dict[str, Any]) -> int:
    """How many classes of an experience were learned before it."""
    return begun.get("known", 0)


def new_classes(begun: dict[str, Any]) -> int:
    """How many classes an experience brings that were not learned before."""
    return begun["classes"] - known_classes(begun)


def places(labels: Tensor) -> Tensor:
    """The place of each label, int64 [n], among those that occur, in their order."""
    return torch.searchsorted(labels.unique(), labels)
