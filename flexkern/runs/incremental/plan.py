"""What a class-incremental run would do, and about how long it would take; nothing is written."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.runs.incremental.config import Config, MethodConfig
from flexkern.runs.incremental.data import check_place, load_images, make_stream
from flexkern.runs.incremental.journal import Journal
from flexkern.runs.incremental.making import Learners, Making
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import usable_device
from flexkern.streams import Experience, Stream

__all__ = ["Plan", "PlannedMethod", "PlannedTask", "plan"]

_PIECE = 96  # images that a method is tried on, about, and is tested on


class PlannedTask(NamedTuple):
    """Classes that are new with it, and how many images it has."""

    classes: int
    train: int
    test: int


class PlannedMethod(NamedTuple):
    """What is left to do for a method.

    epochs: of each task. tasks: to be learned, over all seeds. parameters_mib: of its network, counted.
    seconds: for them; None if the method could not be measured, ``why`` not.
    memory: at its fullest moment; None of a method on a perceptron.
    """

    name: str
    epochs: int
    tasks: int
    parameters_mib: float
    seconds: float | None
    why: str = ""
    memory: MemoryPlan | None = None


class Plan(NamedTuple):
    """A run that would be.

    config: all that its folder will have. added: what is new to the folder, if that holds a run.
    images_mib: of all images that are in memory, counted; 0 where they are decoded when they are needed.
    """

    config: Config
    added: list[str]
    tasks: list[PlannedTask]
    images_mib: float
    methods: list[PlannedMethod]


def plan(
    config: Config,
    *,
    restart: bool = False,
    accept_other_environment: bool = False,
    observe: Callable[[str], None] = lambda _: None,
    learners: Learners | None = None,
) -> Plan:
    """Looks at all that a run looks at before it begins, and measures each method on a piece.

    A method learns some images of the first task, in one epoch and in two, and is tested on some; the rest is
    in proportion to its images. So what grows with the number of tasks is not in it.

    Args:
        config, restart, accept_other_environment, learners: of a run.
        observe: told what is done.

    Raises:
        ValueError, FileNotFoundError, OSError: as a run.
    """
    learners = learners or Learners(tuple(METHODS), make_learner, load_learner)
    device = usable_device(config.device, auto=True)
    config = config.override(device=str(device))
    check_place(config.data)
    Making(config, device, learners).check_names()
    with tempfile.TemporaryDirectory() as folder:  # features of a perceptron would be kept beside the results
        observe("making the methods")
        Making(config, device, learners).check_options()
        journal = Journal(
            config, decides_bits(device), restart=restart, accept_other_environment=accept_other_environment
        )
        config = journal.config
        observe("reading images")
        stream = make_stream(config, *load_images(config.data), config.seeds[0])
        making = Making(config.override(out=folder), device, learners)
        making.check_names()
        done = {(r["method"], r["seed"]): len(r["tasks"]) for r in journal.results["runs"]}
        methods = []
        for method in config.methods:
            observe(f"measuring {method.name}")
            left = [range(done.get((method.name, seed), 0), len(stream)) for seed in config.seeds]
            planned = _planned(method, making, stream, left)
            memory = making.memory(making.make(method, config.seeds[0], stream), stream)
            methods.append(planned._replace(memory=memory))
    tasks = [PlannedTask(len(e.train_labels.unique()), len(e.train_labels), len(e.test_labels)) for e in stream]
    parts = [part for e in stream for part in (e.train_inputs, e.test_inputs)]
    unique = {part.data_ptr(): part.nbytes for part in parts if isinstance(part, Tensor)}
    return Plan(config, journal.added, tasks, sum(unique.values()) / 2**20, methods)


def _planned(method: MethodConfig, making: Making, stream: Stream, left: list[range]) -> PlannedMethod:
    learner = making.make(method, making.config.seeds[0], stream)
    epochs = making.epochs(method) or int(getattr(learner, "default_epochs", 1))
    tensors = [p for m in _modules(learner) for p in (*m.parameters(), *m.buffers())]
    mib = sum({p.data_ptr(): p.nbytes for p in tensors}.values()) / 2**20
    count = sum(map(len, left))
    if not count:
        return PlannedMethod(method.name, epochs, 0, mib, 0.0)
    try:
        once, each, answer = _measured(method, making, stream)
    except (ValueError, RuntimeError) as error:  # too few images for it, or too little memory
        return PlannedMethod(method.name, epochs, count, mib, None, str(error))
    learned = sum(len(stream[i].train_labels) for tasks in left for i in tasks)
    tested = sum(len(e.test_labels) for tasks in left for i in tasks for e in stream[: i + 1])
    passes = 1 if making.config.stream.online else epochs
    return PlannedMethod(method.name, epochs, count, mib, learned * (once + passes * each) + tested * answer)


def _measured(method: MethodConfig, making: Making, stream: Stream) -> tuple[float, float, float]:
    """Seconds for an image: once in a task, in each epoch, and to be answered."""
    piece = _piece(stream[0])
    seconds = []
    for epochs in (1, 1, 2):  # the first one warms up
        learner = making.make(method, making.config.seeds[0], stream)
        seconds.append(_timed(learner, partial(learner.learn, piece, epochs=epochs)))
    _, one, two = seconds
    each = max(two - one, 0.0)
    answer = _timed(learner, partial(learner.evaluate, [piece])) / len(piece.test_labels)
    return max(one - each, 0.0) / len(piece.train_labels), each / len(piece.train_labels), answer


def _timed(learner: Any, work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    if getattr(learner, "device", torch.device("cpu")).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _piece(experience: Experience) -> Experience:
    """Some images of each class."""
    changes: dict[str, Any] = {}
    for part in ("train", "test"):
        labels = getattr(experience, f"{part}_labels")
        classes = labels.unique()
        each = max(_PIECE // len(classes), 1)
        rows = torch.cat([(labels == c).nonzero().flatten()[:each] for c in classes])
        changes[f"{part}_inputs"] = getattr(experience, f"{part}_inputs")[rows]
        changes[f"{part}_labels"] = labels[rows]
    return dataclasses.replace(experience, **changes)


def _modules(learner: Any) -> list[nn.Module]:
    return [value for value in vars(learner).values() if isinstance(value, nn.Module)]
