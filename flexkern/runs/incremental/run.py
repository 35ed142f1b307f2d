"""Class-incremental learning: methods on the same stream, task after task, resumable at any moment.

The results are plain numbers in one JSON, and a learner's state is in its checkpoint; both are written after
every epoch. A run that was stopped goes on with the epoch that it was in, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.measure import Measure
from flexkern.metrics import AccuracyMatrix, Evaluation
from flexkern.plain import nearest
from flexkern.runs.folder import claim
from flexkern.runs.incremental.config import Config, MethodConfig
from flexkern.runs.incremental.config.method_options import mistake_in
from flexkern.runs.incremental.data import check_place, digest, load_images, make_stream
from flexkern.runs.incremental.journal import Journal
from flexkern.runs.incremental.summary import number, summarise
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import usable_device
from flexkern.streams import Stream

__all__ = ["RESULTS", "Event", "Learners", "run"]

RESULTS = ("results.json", "picture.png")
"""Files of a run's folder, beside its checkpoints; whoever draws the picture writes the last."""


class Event(NamedTuple):
    """What has just happened.

    kind: "images" (read), "epoch", "task" (learned and tested) or "run" (a method has ended its stream).
    method, seed: of the run; the method's label.
    task: its number, from 0; tasks: how many there are.
    epoch, epochs, loss: as the learner says them.
    record: of the whole run so far, as in the JSON.
    """

    kind: str
    method: str = ""
    seed: int = 0
    task: int = 0
    tasks: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float = math.nan
    record: dict[str, Any] | None = None


class Learners(NamedTuple):
    """Where learners come from.

    methods: the names that ``make`` takes.
    make: ``make(method, backbone, *, seed, device, **options)`` gives a learner.
    load: ``load(path, *, backbone, device)`` gives the one that was saved there.
    """

    methods: Sequence[str]
    make: Callable[..., Any]
    load: Callable[..., Any]


def _shipped_learners() -> Learners:
    return Learners(tuple(METHODS), make_learner, load_learner)


def run(
    config: Config,
    *,
    restart: bool = False,
    keep: bool = False,
    accept_other_environment: bool = False,
    observe: Callable[[Event], None] = lambda _: None,
    learners: Learners | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, every method on every seed.

    Args:
        config: the run.
        restart: discard what ``config.out`` holds.
        keep: leave the checkpoint of each learner when its run has ended.
        accept_other_environment: go on with a run that was begun with another number of threads, on another
            processor or under other versions, though not to the bits that it would have come to.
        observe: told what happens.
        learners: default: those of :mod:`flexkern.learners`.

    Returns:
        What ``results.json`` holds: plain lists and numbers.

    Raises:
        ValueError: naming the key of the configuration, before anything is trained; the folder is then as it
            was, or not there. Or if ``config.out`` holds a run that was begun in another environment and has
            not ended.
        FileNotFoundError: if there are no images, or no backbone, where they should be.
        FolderInUseError, OSError: if another run has ``config.out``, or nothing can be written there; nothing
            has been read then.
    """
    learners = learners or _shipped_learners()
    device = usable_device(config.device, auto=True)
    config = config.override(device=str(device))  # so that a run does not go on where another device is found
    _check_methods(config, learners)
    check_place(config.data)
    with claim(config.folder, "checkpoints"):
        return _run_all(
            config,
            device,
            learners,
            restart=restart,
            accept_other_environment=accept_other_environment,
            keep=keep,
            observe=observe,
        )


def _run_all(
    config: Config,
    device: torch.device,
    learners: Learners,
    *,
    restart: bool,
    accept_other_environment: bool,
    keep: bool,
    observe: Callable[[Event], None],
) -> dict[str, Any]:
    # What a learner does not take is found now: before anything is said of what the folder holds, before images
    # are read, and not after hours.
    for method in config.methods:
        _make(config, method, config.seeds[0], device, learners)
    journal = Journal(
        config, decides_bits(device), restart=restart, accept_other_environment=accept_other_environment
    )
    train, test = load_images(config.data)
    stream = make_stream(config, train, test, config.seeds[0])
    left_out = len(train.skipped) + len(test.skipped)
    fixed = config.stream.seed != "run"
    if fixed:
        del train, test  # the stream has its own copy of the images that take part
    journal.begin()
    if left_out:
        journal.results["left_out"] = left_out
    observe(Event("images", tasks=len(stream)))
    for seed in config.seeds:
        if not fixed:
            stream = make_stream(config, train, test, seed)
        fingerprint = digest(stream)
        for method in config.methods:
            one = _Run(config, method, seed, device, stream, fingerprint, journal, learners, observe)
            one.go()
            if not keep:
                one.checkpoint.unlink(missing_ok=True)
            journal.results["summary"] = summarise(journal.results)
            journal.write()
    journal.results["finished"] = True
    journal.write()
    return journal.results


def _check_methods(config: Config, learners: Learners) -> None:
    for method in config.methods:
        if method.method not in learners.methods:
            allowed = ", ".join(learners.methods)
            hint = nearest(method.method, learners.methods)
            raise ValueError(
                f"methods: {method.name!r} has method {method.method!r}; allowed are {allowed}{hint}"
            )
        mistake = mistake_in(method) if learners.make is make_learner else None
        if mistake is not None:
            raise ValueError(f"methods: {method.name!r} ({method.method}): {mistake.sentence}")


def _make(config: Config, method: MethodConfig, seed: int, device: torch.device, learners: Learners) -> Any:
    options = ({} if config.precision is None else {"precision": config.precision}) | method.options
    try:
        return learners.make(method.method, config.network, seed=seed, device=device, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"methods: {method.name!r} ({method.method}): {error}") from error


class _Run:
    """One method on one seed."""

    def __init__(
        self,
        config: Config,
        method: MethodConfig,
        seed: int,
        device: torch.device,
        stream: Stream,
        fingerprint: str,
        journal: Journal,
        learners: Learners,
        observe: Callable[[Event], None],
    ) -> None:
        self.config, self.method, self.seed, self.device = config, method, seed, device
        self.stream, self.journal, self.learners, self.observe = stream, journal, learners, observe
        self.record = journal.run(method.name, seed)
        self.checkpoint = journal.checkpoint(method.name, seed)
        known = self.record.setdefault("data", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"data: the images are not those that {journal.path} was begun with. Give the same images, "
                "another folder with --out, or discard that run with --restart"
            )
        self.record["experiences"] = stream.names
        self.weights = [len(e.test_labels) for e in stream]

    def go(self) -> None:
        """Learns and tests what has not been learned and tested yet."""
        done = len(self.record["tasks"])
        if done < len(self.stream):
            learner = self._learner(done)
            self.journal.note_environment(self.record)
            for task in range(done, len(self.stream)):
                if learner.tasks_learned == task:
                    self._learn(learner, task)
                self._test(learner, task)
        self.observe(self._event("run", len(self.stream) - 1))

    def _learner(self, done: int) -> Any:
        if not self.checkpoint.exists() and not done:
            return _make(self.config, self.method, self.seed, self.device, self.learners)
        where = f"{self.method.name!r}, seed {self.seed}"
        if not self.checkpoint.exists():
            raise ValueError(f"out: {self.checkpoint} is missing, so {where} cannot go on; use --restart")
        learner = self.learners.load(self.checkpoint, backbone=self.config.network, device=self.device)
        # Saved after a task and before its test, a learner is one task ahead of the results.
        if learner.tasks_learned not in (done, done + 1):
            raise ValueError(
                f"out: {self.checkpoint} has learned {learner.tasks_learned} tasks and {self.journal.path} has "
                f"{done} of them, so {where} cannot go on; use --restart"
            )
        return learner

    def _learn(self, learner: Any, task: int) -> None:
        """One experience. What is known of it stands in the record while it is not tested."""
        note = self.record.get("learning")
        if note is None:
            note = self.record["learning"] = {"losses": {}, "seconds": 0.0, "resumed": 0, "mib": None}
        else:
            note["resumed"] += 1
        before = note["seconds"]
        spent, saved = Measure(self.device), 0.0

        def after_epoch(progress: Any) -> None:
            nonlocal saved
            now = spent.elapsed()
            # First the note, then the learner: if the run ends between them, the epoch is done and noted again.
            note["losses"][str(progress.epoch)] = number(progress.loss)
            note["seconds"] = before + now - saved
            self.journal.write()
            learner.save(self.checkpoint)
            saved += spent.elapsed() - now
            event = self._event("epoch", task)
            self.observe(event._replace(epoch=progress.epoch, epochs=progress.epochs, loss=progress.loss))

        with spent:
            learner.learn(self.stream[task], progress=after_epoch)
        note["seconds"] = before + spent.seconds - saved
        note["mib"] = spent.mib
        self.journal.write()
        learner.save(self.checkpoint)

    def _test(self, learner: Any, task: int) -> None:
        """Accuracy on all experiences so far, into the record."""
        note = self.record.pop("learning")
        with Measure(self.device) as spent:
            evaluation = learner.evaluate(self.stream[: task + 1])
        matrix = AccuracyMatrix(weights=self.weights)
        accuracies = [float(a) for a in evaluation.accuracies]
        for row in [*(t["accuracies"] for t in self.record["tasks"]), accuracies]:
            # Nothing is ever answered with a class that has not been learned: those count as 0.
            matrix.add([*row, *[0.0] * (len(self.stream) - len(row))])
        report = {key: number(value) for key, value in learner.report.items()}
        seconds = {key: report.pop(key) for key in list(report) if key.startswith("seconds")}
        self.record["tasks"].append(
            {
                "task": task,
                "classes": int(learner.classes_seen),
                "accuracies": accuracies,
                "seen": matrix.last,
                "average": matrix.average,
                "forgetting": matrix.forgetting,
                "task_named": _task_named(evaluation, self.stream[: task + 1]),
                "parameters_added": int(learner.parameters_added),
                "losses": [note["losses"][k] for k in sorted(note["losses"], key=int)],
                "report": report,
                # What differs from one run to the next stands apart.
                "cost": {
                    "learn_seconds": round(note["seconds"], 3),
                    "predict_seconds": round(spent.seconds, 3),
                    "learn_mib": number(note["mib"], digits=1),
                    "predict_mib": number(spent.mib, digits=1),
                    "resumed": note["resumed"],
                    **seconds,
                },
            }
        )
        self.journal.write()
        self.observe(self._event("task", task))

    def _event(self, kind: str, task: int) -> Event:
        return Event(kind, self.method.name, self.seed, task, len(self.stream), record=self.record)


def _task_named(evaluation: Evaluation, experiences: Sequence[Any]) -> float:
    """Share of test images that are answered with a class of their own experience, right or wrong."""
    counts = np.asarray(evaluation.confusion)
    # Classes are numbered in the order of learning, so an experience's are a block.
    ends = np.cumsum([len(e.class_names) for e in experiences])
    experience_of = np.searchsorted(ends, np.arange(len(counts)), side="right")
    same = experience_of[:, None] == experience_of[None, :]
    return float(counts[same].sum() / counts.sum())
