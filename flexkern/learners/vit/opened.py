"""What the synapses did in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.processes import joined
from flexkern.nn.gates.quality import gate_quality

__all__ = ["COUNTED", "Seen", "counting", "report_of"]

Seen = tuple[Tensor, Tensor, Tensor]
"""Of some images the evidence and the openings, [n, tasks] each, and the true tasks, [n]."""
COUNTED: ContextVar[list[Seen] | None] = ContextVar("counted", default=None)
"""Of the images that an evaluation sees; of the thread that evaluates."""


@contextmanager
def counting() -> Iterator[list[Seen]]:
    """The list that ``COUNTED`` is in this block."""
    counted: list[Seen] = []
    token = COUNTED.set(counted)
    try:
        yield counted
    finally:
        COUNTED.reset(token)


def report_of(
    counted: Sequence[Seen], tasks: int, share: float, device: torch.device
) -> tuple[dict[str, Any], dict[str, float]]:
    """The quality of the gates (:func:`flexkern.nn.gates.quality.gate_quality`), and plain numbers.

    Args:
        counted: of all images; of several processes each has those of its share.
        tasks: learned.
        share: of the network's blocks, that an open synapse runs once more.
        device: where they lie.
    """
    nothing = torch.zeros((0, tasks), dtype=torch.float32, device=device)
    of_each = (nothing, nothing, torch.zeros(0, dtype=torch.int64, device=device))
    evidence, openings, task = (
        torch.cat(joined([seen[i] for seen in counted], of_each[i])) for i in range(len(of_each))
    )
    known = task < tasks  # a stream may have tasks that are still to come
    quality = gate_quality(evidence[known], openings[known], task[known])
    per_sample = float((openings > 0).sum(1).double().mean())
    report = {
        "open_per_sample": per_sample,
        "open_rate": per_sample / tasks,
        "passes": 1 + share * per_sample,
        "best_gate_right": quality["best_right"],
    }
    area = quality["auroc_mean"]
    return quality, report if area is None else report | {"gate_auroc": area}
