"""How well gates tell tasks apart: open rates, AUROC and the confusion of gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["auroc", "gate_quality"]


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the receiver operating characteristic of each column, by ranks (Mann and Whitney).

    Ties count half.

    Args:
        scores: [N, T].
        positive: bool [N, T].

    Returns:
        float64 [T]; NaN for a column without positives or without negatives.
    """
    columns = scores.T.contiguous()
    ordered = columns.sort(1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    rank = (below + up_to + 1).double() / 2  # 1, 2, ..., and equal scores their mean
    own = positive.T
    n_pos, n_neg = own.sum(1).double(), (~own).sum(1).double()
    return ((rank * own).sum(1) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def gate_quality(evidence: Tensor, opened: Tensor, task: Tensor) -> dict[str, Any]:
    """Open rates, AUROC and confusion of gates, in plain numbers and lists; None where nothing can be said.

    Args:
        evidence: [N, T], logits by :meth:`flexkern.nn.SynapseGate.evidence`.
        opened: [N, T], what :class:`flexkern.nn.SynapseGate` makes of it; a synapse is open where > 0.
        task: int64 [N], each sample's own.

    Returns:
        ``open_rate``: open synapses over N T; ``open_rate_own``, ``open_rate_other``: of each sample's own
        task, and of the others; ``open_per_sample``; ``none_open``: share of samples without an open synapse;
        ``auroc``: for each gate, its own task's samples against all others; ``auroc_mean``; ``confusion``: row
        i, column j: share of task i's samples that open gate j; ``best_right``: share of samples whose gate of
        largest evidence is the right one (the first of equals).
    """
    samples, tasks = evidence.shape
    own = torch.nn.functional.one_hot(task, tasks).bool()
    is_open = opened > 0
    areas = auroc(evidence, own)
    of_task = own.double()
    per_task = of_task.sum(0)
    confusion = (of_task.T @ is_open.double()) / per_task[:, None]
    known = areas[~areas.isnan()]
    return {
        "open_rate": _mean(is_open),
        "open_rate_own": _mean(is_open[own]),
        "open_rate_other": _mean(is_open[~own]),
        "open_per_sample": _mean(is_open.sum(1)),
        "none_open": _mean(~is_open.any(1)),
        "auroc": [None if a != a else a for a in areas.tolist()],
        "auroc_mean": _mean(known),
        "confusion": [
            None if not n else row for n, row in zip(per_task.tolist(), confusion.tolist(), strict=True)
        ],
        "best_right": _mean(evidence.argmax(1) == task) if samples else None,
    }


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None
