"""Class-incremental learning: methods on the same stream, task after task, resumable at any moment.

The results are plain numbers in one JSON, and a learner's state is in its checkpoint; both are written after
every epoch. A run that was stopped goes on with the epoch that it was in, to the same bits. Of an online
stream, whose experiences are learned in small parts, both are written after every hundredth part, and a run
goes on from there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, NamedTuple

import torch

from flexkern.distributed import is_lead, world_size
from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.measure import Measure
from flexkern.runs.events import EVENTS, ROWS, Sink
from flexkern.runs.folder import claim
from flexkern.runs.incremental.config import Config, MethodConfig
from flexkern.runs.incremental.data import check_place, digests, load_images, make_stream
from flexkern.runs.incremental.journal import Journal
from flexkern.runs.incremental.making import Learners, Making
from flexkern.runs.incremental.measures import Measures
from flexkern.runs.incremental.summary import number, summarise
from flexkern.runs.provenance import decides_bits
from flexkern.runs.start import usable_device
from flexkern.runs.torchrun import alike, lead_only, processes
from flexkern.streams import OnlineStream, Stream
from flexkern.streams.online import Parts

__all__ = ["RESULTS", "Event", "Learners", "run"]

RESULTS = ("results.json", "picture.png", EVENTS, ROWS)
"""Files of a run's folder, beside its checkpoints; whoever draws the picture writes the last."""
_PARTS = 100  # of an online stream, after which the learner is saved


class Event(NamedTuple):
    """What has just happened.

    kind: "reading" (images are read from now on), "images" (they are), "memory" (of a method, before its first
        seed), "epoch", "part" (of an experience of an online stream), "task" (learned and tested) or "run" (a
        method has ended its stream).
    method, seed: of the run; the method's label.
    task: its number, from 0; tasks: how many there are.
    epoch, epochs, loss: as the learner says them; of an online stream the part, and how many there are.
    record: of the whole run so far, as in the JSON.
    memory: of "memory": what the method takes at its fullest moment.
    config, added: of "images": all that the folder will have, and what of it is new to it, a phrase each.
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
    config: Config | None = None
    added: tuple[str, ...] = ()
    memory: MemoryPlan | None = None


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
    sinks: Iterable[Sink] = (),
) -> dict[str, Any]:
    """Runs, or goes on with, every method on every seed.

    A folder grows: seeds and methods that it does not have are added to those that it has, and tasks to the end
    of its stream, where that begins as it did and the learners were kept.

    Args:
        config: the run.
        restart: discard what ``config.out`` holds.
        keep: leave the checkpoint of each learner when its run has ended.
        accept_other_environment: go on with a run that was begun with another number of threads, on another
            processor or under other versions, though not to the bits that it would have come to.
        observe: told what happens.
        learners: of methods on a transformer; default: those of :mod:`flexkern.learners`.
        sinks: of :func:`flexkern.runs.sinks.sinks_named`; told of each task that is learned.

    Returns:
        What ``results.json`` holds: plain lists and numbers.

    Raises:
        ValueError: naming the key of the configuration, before anything is trained; the folder is then as it
            was, or not there. Or if ``config.out`` holds a run that was begun in another environment and has
            not ended.
        FileNotFoundError: if there are no images, or no backbone, where they should be.
        FolderInUseError, OSError: if another run has ``config.out``, or nothing can be written there; nothing
            has been read then.

    On several processes (``torchrun``) each takes its share, and the first one writes.
    """
    with processes():
        return _run(
            config, restart, keep, accept_other_environment, observe, learners or _shipped_learners(), sinks
        )


def _run(
    config: Config,
    restart: bool,
    keep: bool,
    accept_other_environment: bool,
    observe: Callable[[Event], None],
    learners: Learners,
    sinks: Iterable[Sink],
) -> dict[str, Any]:
    device = usable_device(config.device, auto=True)
    config = config.override(device=_name(device))  # so that a run does not go on where another device is found
    making = Making(config, device, learners)
    making.check_names()
    check_place(config.data)
    with lead_only(claim, config.folder, "checkpoints"):
        return _run_all(
            config,
            device,
            making,
            restart=restart,
            accept_other_environment=accept_other_environment,
            keep=keep,
            observe=observe,
            sinks=sinks,
        )


def _name(device: torch.device) -> str:
    """Of several processes each has a GPU of its own, and none is the run's."""
    return device.type if world_size() > 1 else str(device)


def _run_all(
    config: Config,
    device: torch.device,
    making: Making,
    *,
    restart: bool,
    accept_other_environment: bool,
    keep: bool,
    observe: Callable[[Event], None],
    sinks: Iterable[Sink],
) -> dict[str, Any]:
    # What a learner does not take is found now: before anything is said of what the folder holds, before images
    # are read, and not after hours.
    making.check_options()
    journal = Journal(
        config,
        alike(decides_bits(device)),
        restart=restart,
        accept_other_environment=accept_other_environment,
        sinks=sinks,
    )
    if journal.config.methods != config.methods:  # the folder has others too
        making = Making(journal.config, device, making.learners)
        making.check_names()
        making.check_options()
    config = journal.config
    observe(Event("reading"))
    train, test = load_images(config.data)
    left_out = len(train.skipped) + len(test.skipped)
    fixed = config.stream.seed != "run"

    @functools.lru_cache(maxsize=1)  # runs lie seed by seed
    def made(seed: int) -> tuple[Stream, list[str]]:
        stream = make_stream(config, train, test, seed)
        return stream, digests(stream)

    def of_seed(seed: int) -> tuple[Stream, list[str]]:
        return made(config.seeds[0] if fixed else seed)

    stream, _ = of_seed(config.seeds[0])
    if fixed:
        del train, test  # the stream has its own copy of the images that take part
    for record in journal.results["runs"]:
        stream, fingerprints = of_seed(record["seed"])
        method = next(m for m in config.methods if m.name == record["method"])
        _Run(method, record["seed"], device, stream, fingerprints, journal, making, observe).check()
    journal.begin()
    if left_out:
        journal.results["left_out"] = left_out
    observe(Event("images", tasks=len(stream), config=config, added=tuple(journal.added)))
    with closing(journal.log):
        for seed in config.seeds:
            stream, fingerprints = of_seed(seed)
            for method in config.methods:
                one = _Run(method, seed, device, stream, fingerprints, journal, making, observe)
                one.go()
                one.end(keep=keep)
                journal.results["summary"] = summarise(journal.results)
                journal.write()
        if is_lead():
            making.forget_features()
        journal.end()
    return journal.results


class _Run:
    """One method on one seed."""

    def __init__(
        self,
        method: MethodConfig,
        seed: int,
        device: torch.device,
        stream: Stream,
        fingerprints: list[str],
        journal: Journal,
        making: Making,
        observe: Callable[[Event], None],
    ) -> None:
        self.method, self.seed, self.device = method, seed, device
        self.stream, self.journal, self.making, self.observe = stream, journal, making, observe
        self.measures = Measures(stream)
        self.fingerprints = fingerprints
        self.record = journal.run(method.name, seed)
        self.checkpoint = journal.checkpoint(method.name, seed)
        # Items that a learner has learned when each experience begins, and at the end.
        self.begins = [0]
        for i in range(len(stream)):
            parts = len(stream.parts(i)) if isinstance(stream, OnlineStream) else 1
            self.begins.append(self.begins[-1] + parts)

    def check(self) -> None:
        """Whether what was learned before can go on with this stream; nothing is changed.

        Raises:
            ValueError: saying why not.
        """
        before = len(self.record.get("experiences", self.stream))
        anew = "or give another folder with --out, or discard that run with --restart"
        known = self.record.get("data")
        if known is None:
            return
        if before > len(self.stream) or known != self.fingerprints[before - 1]:
            raise ValueError(
                f"data: the images are not those that {self.journal.path} was begun with"
                f"{_because(self.journal.added, before)}. Give the same images, {anew}"
            )
        learned = len(self.record["tasks"])
        if before == len(self.stream) or not (learned or "learning" in self.record):
            return
        where = f"{self.method.name!r}, seed {self.seed}"
        if self.making.is_perceptron(self.method) and self.measures.classes(before - 1) < self.stream.classes:
            raise ValueError(
                f"methods: {where}, was made with an output for each class of its stream, and cannot learn "
                f"tasks of more classes. Leave them out, {anew}"
            )
        if learned == before and not self.checkpoint.exists():
            raise ValueError(
                f"out: {where}, has learned its {before} tasks and was not kept (--keep), so it cannot go on "
                f"to {len(self.stream)}. Leave the new tasks out, {anew}"
            )
        self.journal.check_environment(self.record)

    def _grow(self) -> None:
        """The stream of the run is this one; it may have been a shorter one."""
        before = len(self.record.get("experiences", self.stream))
        self.record |= {"data": self.fingerprints[-1], "experiences": self.stream.names}
        last = self.record["tasks"][before - 1 :]
        if before == len(self.stream) or not last or self.measures.next_domain(before - 1) is None:
            return
        # The last task has a next one now, which it is to be tested on: it is tested again.
        (task,) = last
        self.record["tasks"].remove(task)
        cost = task["cost"]
        self.record["learning"] = {
            "losses": {str(i + 1): loss for i, loss in enumerate(task["losses"])},
            "seconds": cost["learn_seconds"],
            "resumed": cost["resumed"],
            "mib": cost["learn_mib"],
        }

    def end(self, *, keep: bool) -> None:
        """The learner has learned all: it is kept if it is to be, or was when this run ended."""
        if keep and self.checkpoint.exists():
            self.record["kept"] = True
        elif not self.record.get("kept") and is_lead():
            self.checkpoint.unlink(missing_ok=True)

    def go(self) -> None:
        """Learns and tests what has not been learned and tested yet."""
        self._grow()
        done = len(self.record["tasks"])
        if done < len(self.stream):
            learner = self._learner(done)
            memory = (
                self.making.memory(learner, self.stream) if self.seed == self.making.config.seeds[0] else None
            )
            if memory is not None:
                self.observe(self._event("memory", done)._replace(memory=memory))
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            self.journal.note_environment(self.record)
            for task in range(done, len(self.stream)):
                if _learned(learner) < self.begins[task + 1]:
                    self._learn(learner, task)
                self._test(learner, task)
        self.observe(self._event("run", len(self.stream) - 1))

    def _learner(self, done: int) -> Any:
        if not self.checkpoint.exists() and not done:
            return self.making.make(self.method, self.seed, self.stream)
        where = f"{self.method.name!r}, seed {self.seed}"
        if not self.checkpoint.exists():
            raise ValueError(f"out: {self.checkpoint} is missing, so {where} cannot go on; use --restart")
        learner = self.making.load(self.method, self.checkpoint)
        # Saved after a task and before its test, a learner is one task ahead of the results.
        if not self.begins[done] <= _learned(learner) <= self.begins[done + 1]:
            what = "parts of tasks" if isinstance(self.stream, OnlineStream) else "tasks"
            raise ValueError(
                f"out: {self.checkpoint} has learned {_learned(learner)} {what} and {self.journal.path} has "
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

        def keep(step: int, loss: float | None) -> None:
            nonlocal saved
            now = spent.elapsed()
            # First the note, then the learner: if the run ends between them, the step is done and noted again.
            note["losses"][str(step)] = number(loss)
            note["seconds"] = before + now - saved
            self.journal.write()
            learner.save(self.checkpoint)
            saved += spent.elapsed() - now

        with spent:
            if isinstance(self.stream, OnlineStream):
                self._learn_parts(learner, self.stream.parts(task), task, keep)
            else:
                self._learn_whole(learner, task, keep)
        note["seconds"] = before + spent.seconds - saved
        note["mib"] = spent.mib
        self.journal.write()
        learner.save(self.checkpoint)

    def _learn_whole(self, learner: Any, task: int, keep: Callable[[int, float | None], None]) -> None:
        def after_epoch(progress: Any) -> None:
            keep(progress.epoch, progress.loss)
            event = self._event("epoch", task)
            self.observe(event._replace(epoch=progress.epoch, epochs=progress.epochs, loss=progress.loss))

        epochs = self.making.epochs(self.method)
        options = {} if epochs is None else {"epochs": epochs}
        learner.learn(self.stream[task], progress=after_epoch, **options)

    def _learn_parts(
        self, learner: Any, parts: Parts, task: int, keep: Callable[[int, float | None], None]
    ) -> None:
        """Each part once; what is noted after each _PARTS of them is the mean of their losses."""
        losses: list[float] = []
        first = _learned(learner) - self.begins[task]

        def after_epoch(progress: Any) -> None:
            losses.append(progress.loss)

        for done, part in enumerate(parts[first:], first + 1):
            # A part that was begun when the run was stopped had not been saved: it is learned anew.
            learner.learn(part, epochs=1, progress=after_epoch)
            loss = losses[-1] if losses else math.nan
            if done % _PARTS == 0 or done == len(parts):
                keep(done, sum(losses) / len(losses) if losses else None)
                losses.clear()
            event = self._event("part", task)
            self.observe(event._replace(epoch=done, epochs=len(parts), loss=loss))

    def _test(self, learner: Any, task: int) -> None:
        """Accuracy on all experiences so far, into the record."""
        note = self.record.pop("learning")
        with Measure(self.device) as spent:
            evaluation = learner.evaluate(self.measures.tests(task))
        report = {key: number(value) for key, value in learner.report.items()}
        seconds = {key: report.pop(key) for key in list(report) if key.startswith("seconds")}
        following = self.measures.next_domain(task)
        before = None if following is None else float(learner.evaluate([following]).accuracies[0])
        self.record["tasks"].append(
            {
                "task": task,
                "classes": self.measures.classes(task),
                **self.measures.of_task(self.record["tasks"], evaluation, before),
                "parameters_added": _parameters_added(learner),
                "memory_bytes": int(learner.memory_bytes),
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
        self.journal.learned(self.record)
        self.observe(self._event("task", task))

    def _event(self, kind: str, task: int) -> Event:
        return Event(kind, self.method.name, self.seed, task, len(self.stream), record=self.record)


def _because(added: list[str], tasks: int) -> str:
    """Which settings may have made other tasks of those that were learned."""
    changed = [phrase for phrase in added if " was " in phrase]
    if not changed:
        return ""
    return f" ({'; '.join(changed)}: tasks 1 to {tasks} are other ones with that, or their images are)"


def _learned(learner: Any) -> int:
    """How many items, which are tasks or their parts, a learner has learned."""
    return int(learner.items_learned if hasattr(learner, "items_learned") else learner.tasks_learned)


def _parameters_added(learner: Any) -> int:
    """Beside the frozen backbone: all parameters of a perceptron."""
    if hasattr(learner, "parameters_added"):
        return int(learner.parameters_added)
    return sum(p.numel() for p in learner.model.parameters())
