"""What a class-incremental run would do, and about how long it would take; nothing is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.runs.incremental.config import Config, MethodConfig
from flexkern.runs.incremental.data import check_place, load_images, make_stream
from flexkern.runs.incremental.journal import Journal
from flexkern.runs.incremental.making import Learners, Making
from flexkern.runs.pace import Pace, images_trained, network_mib, pace, pace_of_parts
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import usable_device
from flexkern.streams import Experience, OnlineStream, Stream

__all__ = ["Plan", "PlannedMethod", "PlannedTask", "plan"]


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
    features: of how many images the frozen backbone's features are taken, once for all methods that share them,
        and features_seconds: for them.
    """

    config: Config
    added: list[str]
    tasks: list[PlannedTask]
    images_mib: float
    methods: list[PlannedMethod]
    features: int = 0
    features_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all that could be measured."""
        return self.features_seconds + sum(m.seconds for m in self.methods if m.seconds is not None)


def plan(
    config: Config,
    *,
    restart: bool = False,
    accept_other_environment: bool = False,
    observe: Callable[[str], None] = lambda _: None,
    learners: Learners | None = None,
) -> Plan:
    """Looks at all that a run looks at before it begins, and measures each method on a piece.

    A method learns some images of the first task, and is tested on some, as :mod:`flexkern.runs.pace` does it;
    the rest is in proportion to its images. So what grows with the number of tasks is not in it.

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
        methods, features = [], _Features(making)
        for method in config.methods:
            observe(f"measuring {method.name}")
            left = [range(done.get((method.name, seed), 0), len(stream)) for seed in config.seeds]
            methods.append(_planned(method, making, stream, left, features))
    tasks = [PlannedTask(len(e.train_labels.unique()), len(e.train_labels), len(e.test_labels)) for e in stream]
    parts = [part for e in stream for part in (e.train_inputs, e.test_inputs)]
    unique = {part.data_ptr(): part.nbytes for part in parts if isinstance(part, Tensor)}
    mib = sum(unique.values()) / 2**20
    if not features.each:
        return Plan(config, journal.added, tasks, mib, methods)
    images = sum(t.train + t.test for t in tasks) * (len(config.seeds) if config.stream.seed == "run" else 1)
    return Plan(config, journal.added, tasks, mib, methods, images, images * features.each)


class _Features:
    """Takes features of pieces for learners that find them then, and knows the seconds for an image."""

    def __init__(self, making: Making) -> None:
        self.making, self.each, self._largest = making, 0.0, 0

    def take(self, piece: Experience) -> Experience:
        begin, images = time.perf_counter(), len(piece.train_labels) + len(piece.test_labels)
        self.making.take_features(piece)
        if images > self._largest:  # else another method has taken them
            self.each, self._largest = (time.perf_counter() - begin) / images, images
        return piece


def _planned(
    method: MethodConfig, making: Making, stream: Stream, left: list[range], features: _Features
) -> PlannedMethod:
    learner = making.make(method, making.config.seeds[0], stream)
    epochs = making.epochs(method) or int(getattr(learner, "default_epochs", 1))
    count, memory = sum(map(len, left)), making.memory(learner, stream)
    planned = PlannedMethod(method.name, epochs, count, network_mib(learner), 0.0, memory=memory)
    if not count:
        return planned
    trained = images_trained(learner, [len(e.train_labels) for e in stream])
    learned = [i for tasks in left for i in tasks]
    if isinstance(stream, OnlineStream):
        epochs = 1

    def whole(found: Pace) -> float:
        return found.seconds(
            items=sum(len(stream.parts(i)) for i in learned) if isinstance(stream, OnlineStream) else count,
            images=sum(trained[i] for i in learned),
            passes=epochs,
            answers=sum(len(e.test_labels) for i in learned for e in stream[: i + 1]),
        )

    try:
        if isinstance(stream, OnlineStream):
            found = pace_of_parts(learner, stream.parts(0), stream[0], whole)
        else:
            kept = [features.take] if making.keeps_features(method) else []
            found = pace(learner, stream[0], epochs, whole, *kept)
    except (ValueError, RuntimeError) as error:  # too few images for it, or too little memory
        return planned._replace(seconds=None, why=str(error))
    return planned._replace(seconds=whole(found))
