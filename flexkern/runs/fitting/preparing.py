"""What a fit looks at before it decodes an image: the folder, the file, and whether all can be learned."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flexkern.learners import checkpoint, load_learner, make_learner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.runs.fitting.data import classes_in, open_images
from flexkern.runs.fitting.fit_config import BEST_METHOD, FitConfig, read_size
from flexkern.runs.fitting.tasks import at_a_time, read_tasks
from flexkern.runs.incremental.growth import differences
from flexkern.runs.start import path_given, usable_device
from flexkern.streams.base import Experience
from flexkern.streams.by_tasks import by_tasks, numbers_of
from flexkern.streams.image_source import identity_of
from flexkern.streams.labelled import Images

__all__ = ["Prepared", "check_fits", "memory_of", "prepared"]

_FORMAT = 1
_PARTS = ("train", "test")


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


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
