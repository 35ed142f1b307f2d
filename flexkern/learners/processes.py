"""What learners do as one over several processes: each takes its share, and all have the same result.

See docs/scaling.md. Without a group of processes (:mod:`flexkern.distributed`) nothing here does anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.distributed import agree, gathered, part, sum_, world_size
from flexkern.streams.base import Experience

__all__ = ["add_gradients", "agree_on_evaluating", "agree_on_learning", "joined", "own_rows", "tested_here"]


def agree_on_learning(learner: Any, experience: Experience, epochs: int) -> None:
    """Before an experience is learned: all processes are to learn the same, by the same learner.

    Raises:
        RuntimeError: on all processes, saying what differs, or why this learner cannot learn on several.
    """
    if world_size() == 1:
        return
    why = learner._why_alone()
    if why is not None:
        raise RuntimeError(
            f"{type(learner).__name__} on several processes: {why}. Or let each process learn for itself, "
            "inside of flexkern.distributed.alone()"
        )
    labels = experience.train_labels
    agree(
        f"learn() of {type(learner).__name__}",
        _of_learner(learner)
        | {
            "the number of epochs": epochs,
            "the experience's name": experience.name,
            "the number of its training inputs": len(labels),
            "their shape": experience.input_shape,
            "the sum of their labels": _sum_of(labels),
        },
    )


def agree_on_evaluating(learner: Any, stream: Sequence[Experience]) -> None:
    """Before an evaluation, of which each process takes a share. Raises RuntimeError as above."""
    if world_size() > 1:
        labels = {f"the sum of the test labels of {e.name}": _sum_of(e.test_labels) for e in stream}
        agree(f"evaluate() of {type(learner).__name__}", _of_learner(learner) | labels)


def _of_learner(learner: Any) -> dict[str, Any]:
    configuration = json.dumps(learner.configuration(), sort_keys=True, default=str)
    return {
        "the learner's method": learner._method_name(),
        "the learner's configuration": configuration,
        "the number of items learned": learner.items_learned,
        "the number of epochs done": learner._epochs_done,
    }


def _sum_of(labels: Tensor) -> int:
    return zlib.crc32(labels.to("cpu", torch.int64).contiguous().numpy().tobytes())


def own_rows(rows: Tensor) -> Tensor:
    """This process's share of a batch's rows."""
    return rows if world_size() == 1 else rows[part(len(rows))]


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds the gradients of all processes; that of one whose share was empty counts as 0."""
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    sum_([p.grad for p in trained if p.grad is not None])


def tested_here(experience: Experience) -> Experience:
    """The experience with this process's share of its test inputs."""
    if world_size() == 1:
        return experience
    labels = experience.test_labels
    here = part(len(labels))
    rows: Any = here
    if not isinstance(experience.test_inputs, Tensor):
        rows = torch.arange(here.start, here.stop)
    return replace(experience, test_inputs=experience.test_inputs[rows], test_labels=labels[here])


def joined(parts: Sequence[Tensor], nothing: Tensor) -> list[Tensor]:
    """What all processes found, of parts that this one found in its share; ``nothing`` is one of no rows."""
    if world_size() == 1:
        return list(parts)
    return [gathered(torch.cat([nothing, *parts]))]
