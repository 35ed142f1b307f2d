"""A learner from a folder of images: task after task, saved after every epoch, going on where it was stopped.

All that a fit needs to go on is in the one file that it writes, the learner's checkpoint: what is to be
learned, how, and what came of it, as notes beside the learner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flexkern.distributed import is_lead
from flexkern.files import check_writable
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.measure import Measure
from flexkern.runs.events import EventLog, Sink
from flexkern.runs.fitting.data import check_decodes, in_memory
from flexkern.runs.fitting.fit_config import FitConfig
from flexkern.runs.fitting.fit_rows import COLUMNS, KEYS, all_tasks, of_task
from flexkern.runs.fitting.preparing import check_fits, memory_of, prepared
from flexkern.runs.folder import claim_file
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import path_given
from flexkern.runs.torchrun import alike, lead_only, processes
from flexkern.streams.base import Experience

__all__ = ["MOST_TEST", "MOST_TRAIN", "Event", "fit", "log_of"]

MOST_TRAIN = 2 << 30
"""Bytes of a task's images that are kept decoded."""
MOST_TEST = 1 << 30
"""And of all test images."""


class Event(NamedTuple):
    """What has just happened.

    kind: "begin" (all is checked; ``record`` says what there is), "images" (``done`` of ``total``), "epoch" or
        "task" (learned and tested).
    task: its number in this fit, from 0; tasks: how many there are.
    doing, done, total: of "images": "reading", or as the learner says it.
    epoch, epochs, loss: as the learner says them.
    record: of the fit so far.
    memory: of "begin": what the learner takes at its fullest moment.
    """

    kind: str
    record: dict[str, Any]
    task: int = 0
    tasks: int = 0
    doing: str = ""
    done: int = 0
    total: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float = math.nan
    memory: MemoryPlan | None = None


Observer = Callable[[Event], None]


def log_of(out: Path, sinks: Iterable[Sink] = ()) -> EventLog:
    """The log of a fit, whose files lie beside its own: ``a.safetensors`` has ``a.results.csv`` and so on."""
    return EventLog(out.parent, COLUMNS, KEYS, prefix=f"{out.stem}.", sinks=sinks)


def fit(
    config: FitConfig,
    *,
    restart: bool = False,
    observe: Observer = lambda _: None,
    sinks: Iterable[Sink] = (),
) -> dict[str, Any]:
    """Learns the folder, or goes on with it where the file ``out`` has the beginning of the same fit.

    Args:
        config: what and how.
        restart: discard what ``out`` holds.
        observe: told what happens.
        sinks: of :func:`flexkern.runs.sinks.sinks_named`; told of each task that is learned.

    Returns:
        What came of it, plain lists and numbers: ``classes`` in the learner's order, and for each of ``tasks``
        its classes, ``accuracies`` on the test images of each task so far, and ``seen``, that on all of them.

    Raises:
        TypeError, ValueError: naming the argument, before anything is learned; or if ``out`` holds something
            else.
        OSError: if a file is missing or cannot be written; nothing has been learned then.
        FolderInUseError: if another fit writes to ``out``.

    On several processes (``torchrun``) each takes its share, and the first one writes.
    """
    config.check()
    with processes():
        return _fit(config, sinks, restart=restart, observe=observe)


def _fit(config: FitConfig, sinks: Iterable[Sink], *, restart: bool, observe: Observer) -> dict[str, Any]:
    out = path_given(config.out, "out")
    log = log_of(out, sinks)
    if is_lead():
        for path in (out, log.events, log.table):
            check_writable(path)
        log.check()
    with lead_only(claim_file, out), closing(log):
        found = prepared(config, out, restart=restart)
        one = _Fit(config, found.learner, found.before, found.tasks, found.record, out, observe, log)
        if not found.begun:
            check_fits(found)
            if config.broken == "raise":
                check_decodes(found.sources, one.looks)
        log.open(all_tasks(found.record), anew=found.anew)
        observe(Event("begin", found.record, tasks=len(found.tasks), memory=memory_of(found)))
        one.go()
    return found.record


class _Fit:
    """The tasks that are still to be learned and tested."""

    def __init__(
        self,
        config: FitConfig,
        learner: Any,
        before: list[Experience],
        experiences: list[Experience],
        record: dict[str, Any],
        out: Path,
        observe: Observer,
        log: EventLog,
    ) -> None:
        self.config, self.learner = config, learner
        self.before, self.experiences = before, experiences  # those before are tested only
        self.record, self.out, self.observe, self.log = record, out, observe, log
        self._kept = 0  # bytes of test images
        self._task = 0

    def go(self) -> None:
        """Learns and tests what is not learned and tested yet."""
        for task in range(len(self.experiences)):
            self._task = task
            tested, learned = (
                len(self.record["tasks"]),
                self.learner.items_learned - self.record["first_number"],
            )
            if task < tested:
                continue
            self.log.began(
                experiment="fit",
                configuration={**self.record["configuration"], "tasks": self.record["planned"]},
                learner=self.record["learner"],
                environment=alike(decides_bits(self.learner.device)),
            )
            if task == learned:
                self._learn()
            self._test()
        if not self.record["finished"]:
            self.record["finished"] = True
            self._save()
        last = self.record["tasks"][-1]
        self.log.ended(**{name: last[name] for name in ("seen", "average")})

    def _learn(self) -> None:
        """One task; what is known of it is in the record until it is tested."""
        note = self.record["learning"] or {"losses": [], "seconds": 0.0}
        self.record["learning"] = note
        before, saved = note["seconds"], 0.0
        with Measure(self.learner.device) as spent:
            whole = self.experiences[self._task]
            images = in_memory(whole.train_inputs, MOST_TRAIN, partial(self._tell, "reading"))

            def after_epoch(progress: Any) -> None:
                nonlocal saved
                now = spent.elapsed()
                note["losses"] = [*note["losses"][: progress.epoch - 1], _number(progress.loss)]
                note["seconds"] = round(before + now - saved, 3)
                self._save()
                saved += spent.elapsed() - now
                self.observe(
                    self._event("epoch")._replace(
                        epoch=progress.epoch, epochs=progress.epochs, loss=progress.loss
                    )
                )

            self.learner.learn(
                dataclasses.replace(whole, train_inputs=images),
                epochs=self.config.epochs,
                progress=after_epoch,
                watch=self._watch,
            )
        note["seconds"] = round(before + spent.seconds - saved, 3)
        self._save()

    def _test(self) -> None:
        """Accuracy on the test images of all tasks so far."""
        note, task = self.record["learning"] or {"losses": [], "seconds": 0.0}, self._task
        for experiences, count in ((self.before, 1), (self.experiences, task + 1)):
            for i, experience in enumerate(experiences[:count]):
                kept = in_memory(experience.test_inputs, MOST_TEST - self._kept, partial(self._tell, "reading"))
                if kept is not experience.test_inputs:
                    self._kept += kept.numel()
                    experiences[i] = dataclasses.replace(experience, test_inputs=kept)
        tested = [*self.before, *self.experiences[: task + 1]]
        with Measure(self.learner.device) as spent:
            evaluation = self.learner.evaluate(tested, watch=self._watch)
        accuracies = [float(a) for a in evaluation.accuracies]
        seen = float(np.average(accuracies, weights=[len(e.test_labels) for e in tested]))
        earlier = accuracies.pop(0) if self.before else None
        experience = self.experiences[task]
        self.record["tasks"].append(
            {
                "name": experience.name,
                "classes": list(experience.class_names),
                "images": {"train": len(experience.train_labels), "test": len(experience.test_labels)},
                "earlier": earlier,
                "accuracies": accuracies,
                "seen": seen,
                "average": float(np.mean([*(t["seen"] for t in self.record["tasks"]), seen])),
                "losses": note["losses"],
                "learn_seconds": note["seconds"],
                "test_seconds": round(spent.seconds, 3),
            }
        )
        self.record["learning"] = None
        self._save()
        self.log.learned(of_task(self.record, task))
        self.observe(self._event("task"))

    def looks(self, done: int, total: int) -> None:
        """So many images were found to be sound."""
        self._tell("looking", done, total)

    def _save(self) -> None:
        self.learner.save(self.out, notes={"fit": self.record})

    def _watch(self, progress: Any) -> None:
        self._tell(progress.doing, progress.done, progress.total, epoch=progress.epoch, epochs=progress.epochs)

    def _tell(self, doing: str, done: int, total: int, *, epoch: int = 0, epochs: int = 0) -> None:
        event = self._event("images")._replace(doing=doing, done=done, total=total)
        self.observe(event._replace(epoch=epoch, epochs=epochs))

    def _event(self, kind: str) -> Event:
        return Event(kind, self.record, self._task, len(self.experiences))


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
