"""What is known after each task of a run, from a learner's answers to all tests so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flexkern.metrics import AccuracyMatrix, Evaluation, anytime_accuracy
from flexkern.runs.incremental.summary import number
from flexkern.streams import Experience, OnlineStream, Stream

__all__ = ["TOP", "Measures", "scenario_of"]

TOP = 5
"""Among how many of the likeliest classes an answer is right in "top5"."""


def scenario_of(stream: Stream) -> str:
    """What a stream is, whether it comes in small parts or not."""
    return stream.of if isinstance(stream, OnlineStream) else stream.scenario


class Measures:
    """Those of one run: a method on a stream.

    Args:
        stream: of the run. Experiences without test inputs are left out of all means.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream, self.scenario = stream, scenario_of(stream)
        self.tested = [len(e.test_labels) > 0 for e in stream]
        self._weights = [max(len(e.test_labels), 1) for e in stream]

    def tests(self, task: int) -> list[Experience]:
        """The experiences up to this one that have tests."""
        return [e for e in self.stream[: task + 1] if len(e.test_labels)]

    def next_domain(self, task: int) -> Experience | None:
        """The experience after this one, where accuracy on it before it is learned says something."""
        following = self.stream[task + 1 : task + 2]
        if self.scenario != "domain-incremental" or not following or not self.tested[task + 1]:
            return None
        return following[0]

    def classes(self, task: int) -> int:
        """How many classes have been told so far."""
        return len({c for e in self.stream[: task + 1] for c in e.train_labels.unique().tolist()})

    def of_task(
        self, earlier: Sequence[dict[str, Any]], evaluation: Evaluation, before_next: float | None
    ) -> dict[str, Any]:
        """What the record of a task says of its accuracies.

        Args:
            earlier: records of the tasks before it.
            evaluation: on :meth:`tests`.
            before_next: accuracy on :meth:`next_domain`.

        Returns:
            accuracies: on each experience so far; None where it has no tests.
            seen, average, forgetting: of :class:`flexkern.metrics.AccuracyMatrix`, over all test inputs so far.
            learning_accuracy, backward_transfer: likewise.
            forward_transfer: over chance, from the second task of a domain-incremental stream on; None in
                other streams, where what was not learned is never answered, and before.
            before_next: see above.
            task_named: share of test inputs answered with a class of their own experience; None where an
                experience has no classes of its own.
            masked: task-incremental accuracy over all test inputs so far.
            top5, macro, per_class: see :class:`flexkern.metrics.Evaluation`.
            anytime: of :func:`flexkern.metrics.anytime_accuracy`, of an online stream, tested after each
                experience.
        """
        task, found = len(earlier), iter(evaluation.accuracies)
        accuracies = [float(next(found)) if tested else None for tested in self.tested[: task + 1]]
        rows = [*(t["accuracies"] for t in earlier), accuracies]
        befores = [*(t.get("before_next") for t in earlier), before_next]
        weights = {"tested": self.tested} if not all(self.tested) else {}
        matrix = AccuracyMatrix(weights=self._weights, **weights)
        for row, before in zip(rows, befores, strict=True):
            # Nothing is ever answered with a class that has not been learned: those count as 0.
            unknown = [0.0] * (len(self.stream) - len(row))
            if before is not None:
                unknown[0] = before
            matrix.add([*(0.0 if a is None else a for a in row), *unknown])
        values = {
            "accuracies": accuracies,
            "seen": matrix.last,
            "average": matrix.average,
            "forgetting": matrix.forgetting,
            "task_named": self._task_named(evaluation, task),
            "learning_accuracy": matrix.learning_accuracy,
            "backward_transfer": matrix.backward_transfer,
            "forward_transfer": self._forward_transfer(matrix, befores),
            "masked": self._mean(evaluation.masked, task),
            "top5": self._mean(evaluation.top_accuracies, task) if evaluation.top == TOP else None,
            "macro": evaluation.macro,
            "per_class": [number(share) for share in evaluation.per_class],
        }
        if before_next is not None:
            values["before_next"] = before_next
        if isinstance(self.stream, OnlineStream):
            samples = [len(e.train_labels) for e in self.stream[: task + 1]]
            values["anytime"] = anytime_accuracy([*(t["seen"] for t in earlier), matrix.last], samples)
        return values

    def _mean(self, shares: Any, task: int) -> float | None:
        if shares is None:
            return None
        return float(np.average(shares, weights=[len(e.test_labels) for e in self.tests(task)]))

    def _forward_transfer(self, matrix: AccuracyMatrix, befores: Sequence[float | None]) -> float | None:
        known = next((i for i, before in enumerate(befores) if before is None), len(befores))
        if self.scenario != "domain-incremental" or not known:
            return None
        # Of the last task on there is no next one.
        return AccuracyMatrix(matrix.array[:known]).forward_transfer(1 / self.stream.classes)

    def _task_named(self, evaluation: Evaluation, task: int) -> float | None:
        if self.scenario != "class-incremental":
            return None
        counts = np.asarray(evaluation.confusion)
        # Classes are numbered in the order of learning, so an experience's are a block.
        ends = np.cumsum([len(e.train_labels.unique()) for e in self.stream[: task + 1]])
        experience_of = np.searchsorted(ends, np.arange(len(counts)), side="right")
        same = experience_of[:, None] == experience_of[None, :]
        return float(counts[same].sum() / counts.sum())
