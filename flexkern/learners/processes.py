"""What learners do as one over several processes: each takes its share, and all have the same result.

See docs/scaling.md. Without a group of processes (:mod:`flexkern.distributed`) nothing here does anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flexkern.distributed import agree, gathered, part, sum_, world_size
from flexkern.streams.base import Experience

__all__ = [
    "Share", "add_gradients", "agree_on_evaluating", "agree_on_learning", "joined", "own_rows", "own_share",
    "share_of", "tested_here",
]  # fmt: skip


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


def own_rows(rows: Any) -> Any:
    """This process's share of the rows of a tensor, or of the images of a source."""
    if world_size() == 1:
        return rows
    here = part(len(rows))
    return rows[here] if isinstance(rows, Tensor) else rows[torch.arange(here.start, here.stop)]


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds the gradients of all processes. Those without one, which no share reaches, stay without."""
    if world_size() > 1:
        sum_([p.grad for p in parameters if p.grad is not None])


def own_share(inputs: Any, labels: Tensor) -> tuple[Any, Tensor]:
    """This process's share of inputs, a tensor or a source, and of their labels."""
    return own_rows(inputs), own_rows(labels)


def tested_here(experience: Experience) -> Experience:
    """The experience with this process's share of its test inputs."""
    if world_size() == 1:
        return experience
    inputs, labels = own_share(experience.test_inputs, experience.test_labels)
    return replace(experience, test_inputs=inputs, test_labels=labels)


class Share(NamedTuple):
    """This process's share of a batch.

    rows: that it computes on; the batch's first one where its share is empty, so that it draws as many random
        numbers as the others.
    first: the place of the first of them in the batch.
    weight: of their losses' sum in the batch's mean: 0 where the share is empty.
    """

    rows: Tensor
    first: int
    weight: float


def share_of(batch: Tensor) -> Share:
    """This process's share of a batch, given its rows."""
    here = part(len(batch))
    if here.start == here.stop:
        return Share(batch[:1], 0, 0.0)
    return Share(batch[here], here.start, 1 / len(batch))


def joined(parts: Sequence[Tensor], nothing: Tensor) -> list[Tensor]:
    """What all processes found, of parts that this one found in its share; ``nothing`` is one of no rows."""
    if world_size() == 1:
        return list(parts)
    return [gathered(torch.cat([nothing, *parts]))]
