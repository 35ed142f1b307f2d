"""A learner from a folder of images: task after task, saved after every epoch, going on where it was stopped.

All that a fit needs to go on is in the one file that it writes, the learner's checkpoint: what is to be
learned, how, and what came of it, as notes beside the learner.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flexkern.distributed import is_lead
from flexkern.files import check_writable
from flexkern.learners import checkpoint, load_learner, make_learner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.measure import Measure
from flexkern.runs.events import EventLog, Sink
from flexkern.runs.fitting.data import check_decodes, classes_in, in_memory, open_images
from flexkern.runs.fitting.fit_config import BEST_METHOD, FitConfig, read_size
from flexkern.runs.fitting.fit_rows import COLUMNS, KEYS, all_tasks, of_task
from flexkern.runs.fitting.tasks import at_a_time, read_tasks
from flexkern.runs.folder import claim_file
from flexkern.runs.incremental.growth import differences
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import path_given, usable_device
from flexkern.runs.torchrun import alike, lead_only, processes
from flexkern.streams.base import Experience
from flexkern.streams.by_tasks import by_tasks, numbers_of
from flexkern.streams.image_source import identity_of
from flexkern.streams.labelled import Images

__all__ = [
    "MOST_TEST", "MOST_TRAIN", "Event", "Prepared", "check_fits", "fit", "log_of", "memory_of", "prepared",
]  # fmt: skip

_FORMAT = 1
MOST_TRAIN = 2 << 30
"""Bytes of a task's images that are kept decoded."""
MOST_TEST = 1 << 30
"""And of all test images."""
_PARTS = ("train", "test")


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


class Prepared(NamedTuple):
    """A fit that has been looked at, and not begun.

    out: its file. record: of what it holds, or will hold. anew: whether it holds none. begun: whether something
    of it is learned. make: the learner that it begins with. tasks: its items. before: what is tested beside
    them. sources: of all images.
    """

    out: Path
    record: dict[str, Any]
    anew: bool
    begun: bool
    make: Callable[[], Any]
    learner: Any
    tasks: list[Experience]
    before: list[Experience]
    sources: list[Any]


def prepared(config: FitConfig, out: Path, *, restart: bool = False) -> Prepared:
    """Looks at all that a fit looks at before it decodes an image.

    Raises:
        TypeError, ValueError, OSError: as :func:`fit`.
    """
    named = None if config.tasks is None else read_tasks(config.tasks)
    device = usable_device(config.device, auto=True)
    wanted = _wanted(config)
    record = None if restart or not out.exists() else _begun(out, wanted)
    learner = _learner(config, out if record else config.start, device)
    folder = path_given(config.folder, "folder")
    there = classes_in(folder)
    if there is not None:  # looking at all images may take an hour, and names are known now
        numbers_of(_tasks(config, there) if named is None else named, there)
    reading: dict[str, Any] = {
        "size": config.size or learner.decoded_size or read_size(learner.image_size),
        **{name: getattr(config, name) for name in ("test_share", "seed", "broken", "background", "workers")},
    }
    train, test = open_images(folder, **reading)
    before = [] if config.earlier is None else [open_images(config.earlier, **reading)[1]]
    tasks = _tasks(config, train.names) if named is None else named
    anew = record is None
    if record is None:
        record = _new(learner, wanted, train, test, tasks)
        record["data"] = _digest(train, test, *before)
    else:
        _check_same(record, out, _digest(train, test, *before), tasks)
    return Prepared(
        out,
        record,
        anew,
        bool(record["tasks"]) or record["learning"] is not None,
        partial(_learner, config, config.start, device),
        learner,
        by_tasks(train, test, tasks, first_class=record["first_class"], first_number=record["first_number"]),
        [_of_earlier(images, record["earlier"]) for images in before],
        [images.images for images in (train, test, *before)],
    )


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


def memory_of(found: Prepared) -> MemoryPlan:
    """What the learner takes at its fullest moment."""
    record = found.record
    return found.learner.memory_plan(
        classes=record["first_class"] + sum(len(e.class_names) for e in found.tasks),
        tasks=record["first_number"] + len(found.tasks),
        images=max(len(e.train_labels) for e in found.tasks),
        size=found.tasks[0].input_shape[-1],
    )


def check_fits(found: Prepared) -> None:
    """Raises ValueError if one of the tasks cannot be learned; before the first one is."""
    learned = set(found.learner.class_names)
    for experience in found.tasks:
        again = [name for name in experience.class_names if name in learned]
        if again:
            raise ValueError(
                f"folder: the learner knows {_listed(again)} already; a class is learned once. Name those "
                "that are new with --tasks"
            )
        # Which class comes next is the first thing that is looked at: as if each task were the first.
        ahead = int(experience.train_labels[0]) - found.learner.classes_seen
        labels = {f"{part}_labels": getattr(experience, f"{part}_labels") - ahead for part in _PARTS}
        try:
            found.learner.check(dataclasses.replace(experience, **labels))
        except ValueError as error:
            hint = "give more images, or another method: ranpac and simplecil take any number"
            raise ValueError(f"{error}; {hint}") from error


def _wanted(config: FitConfig) -> dict[str, Any]:
    """What decides the result, beside the images and the backbone; JSON."""
    free = ("folder", "out", "backbone", "start", "earlier", "increment", "tasks", "order", "device", "workers")
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    start = None if config.start is None else _sum_of(Path(config.start))
    return values | {"background": list(config.background), "from": start}


def _sum_of(file: Path) -> str:
    digest = hashlib.sha256()
    if not file.is_file():
        raise FileNotFoundError(f"from: there is no file {os.fspath(file)!r}")
    with file.open("rb") as stream:
        for part in iter(partial(stream.read, 1 << 24), b""):
            digest.update(part)
    return digest.hexdigest()


def _begun(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the file says of the fit that it is of."""
    anew = "Give another file with --out, or discard this one with --restart"
    try:
        record = checkpoint.read_notes(out).get("fit")
    except ValueError as error:
        raise ValueError(f"out: {os.fspath(out)!r} is there, and no learner: {error}. {anew}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"out: {os.fspath(out)!r} is there, and not of a fit. {anew}")
    changed = differences(record["configuration"], wanted)
    if changed:
        raise ValueError(f"out: {os.fspath(out)!r} is of another fit ({'; '.join(changed)}). {anew}")
    return record


def _count(images: Images, tasks: Any) -> int:
    """How many images are of classes of the tasks."""
    taken = {name for task in tasks for name in task}
    return sum(images.names[c] in taken for c in images.labels.tolist())


def _new(learner: Any, wanted: dict[str, Any], train: Images, test: Images, tasks: Any) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "configuration": wanted,
        "learner": {"method": learner.method, "first": learner.items_learned},
        "first_class": learner.classes_seen,
        "first_number": learner.items_learned,
        "earlier": list(learner.class_names),
        "planned": [list(task) for task in tasks],
        "left_out": sorted(set(train.names) - {name for task in tasks for name in task}),
        "images": {"train": _count(train, tasks), "test": _count(test, tasks)},
        "skipped": [[os.fspath(path), why] for path, why in (*train.skipped, *test.skipped)],
        "tasks": [],
        "learning": None,
        "finished": False,
    }


def _check_same(record: dict[str, Any], out: Path, data: str, tasks: Any) -> None:
    anew = "Give another file with --out, or discard that fit with --restart"
    if record["planned"] != [list(task) for task in tasks]:
        raise ValueError(f"out: {os.fspath(out)!r} is of a fit of other tasks: {record['planned']}. {anew}")
    if record["data"] != data:
        raise ValueError(f"out: {os.fspath(out)!r} is of a fit of other images. {anew}")


def _of_earlier(test: Images, names: Sequence[str]) -> Experience:
    """The test images of classes that the learner knew before, by its numbers; there is nothing to learn."""
    known = {name: i for i, name in enumerate(names)}
    numbers = torch.tensor([known.get(name, -1) for name in test.names])[test.labels]
    rows = (numbers >= 0).nonzero().flatten()
    if not len(rows):
        raise ValueError(f"earlier: the learner knows none of {_listed(test.names)}; it knows {_listed(names)}")
    none = rows[:0]
    return Experience("earlier", 0, test.images[none], none, test.images[rows], numbers[rows])


def _digest(*parts: Images) -> str:
    """Of what decides the pixels, without decoding them."""
    digest = hashlib.sha256()
    for images, labels, *_ in parts:
        digest.update(identity_of(images).encode())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _tasks(config: FitConfig, names: Sequence[str]) -> list[list[str]]:
    if config.increment is not None and config.increment > len(names):
        raise ValueError(f"increment is {config.increment}, and there are {len(names)} classes")
    return at_a_time(names, config.increment, config.order)


def _learner(config: FitConfig, path: Any, device: torch.device) -> Any:
    """A new learner, or that of a file."""
    given = {} if config.backbone is None else {"backbone": config.backbone}
    if path is not None:
        learner = load_learner(path, device=device, **given)
        if learner.family != "vit":
            raise ValueError(f"from: {os.fspath(path)!r} is {learner.method!r}, which takes no photographs")
        return learner
    method = config.method or BEST_METHOD
    own = {name: getattr(config, name) for name in ("image_size", "normalize")}
    options = {name: value for name, value in own.items() if value is not None}
    return make_learner(method, seed=config.seed, device=device, **given, **options)


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


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
