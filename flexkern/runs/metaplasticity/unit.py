"""One network on one seed, shown its schedule: the unit of work, which can be stopped at any moment."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexkern.files import write_json
from flexkern.learners import MLP_METHODS, Progress, load_mlp
from flexkern.metrics import Evaluation, memorised
from flexkern.runs.metaplasticity.flexibility import flexibility
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.schedule import Experiment, Part
from flexkern.runs.provenance import decides_bits
from flexkern.streams import Experience

__all__ = ["Unit", "make_learner"]

# Of a part's record, one entry per presentation: what was shown, and how the network did after it.
_COLUMNS = ("items", "turns", "accuracy", "memorised", "epochs", "losses")
_SAVE_EVERY = 30.0  # seconds of learning that may be lost; a checkpoint of a wide network takes a second or two


@dataclass(frozen=True)
class Unit:
    """One network on one seed.

    Args:
        experiment, protocol: what is done; the protocol as this network has it.
        name, network: of :meth:`Experiment.networks`.
        seed: of everything that is random.
        folder: for the record and the checkpoints of this unit.
        cache: for features.
    """

    experiment: Experiment
    protocol: Protocol
    name: str
    network: Network
    seed: int
    folder: Path
    cache: Path

    @property
    def stem(self) -> str:
        """The name of its files, without an ending."""
        plain = re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_")
        return f"{plain}_seed{self.seed}"

    @property
    def path(self) -> Path:
        """Of its record."""
        return self.folder / f"{self.stem}.json"

    def record(self) -> dict[str, Any]:
        """What has been written of it so far; an empty record if nothing has."""
        with suppress(FileNotFoundError):
            return json.loads(self.path.read_text(encoding="utf-8"))
        return {"network": self.name, "seed": self.seed, "finished": False, "seconds": 0.0, "parts": {}}

    def run(self, notify: Callable[[float, str], None] = lambda *_: None) -> dict[str, Any]:
        """Does what has not been done yet, and returns the record.

        Args:
            notify: called after each presentation with the share of the unit that is done, and what was done.
        """
        record = self.record()
        if record["finished"]:
            notify(1.0, f"{self.name}, seed {self.seed}, done before")
            return record
        here = decides_bits(torch.device(self.protocol.device))
        environments = record.setdefault("environments", [])
        if environments[-1:] != [here]:
            environments.append(here)
        items = self.experiment.load(self.protocol, self.seed, self.cache, lambda what: notify(0.0, what))
        # Test sets alone: their training sets are put together when they are shown.
        tests = [items.test(i) for i in range(len(items))]
        parts = list(self.experiment.schedule(items, self.protocol, self.seed))
        total = sum(len(part.shown) for part in parts)
        for number, part in enumerate(parts):
            own = part.items
            of = tests if own is None else [own.test(i) for i in range(len(own))]
            self._part(part, parts[0] if number else None, of, record, total, notify)
        for part in parts:
            self._checkpoint(part).unlink(missing_ok=True)
        record["finished"] = True
        write_json(self.path, record)
        return record

    def _part(
        self,
        part: Part,
        first: Part | None,
        tests: list[Experience],
        record: dict[str, Any],
        total: int,
        notify: Callable[[float, str], None],
    ) -> None:
        new: dict[str, list[Any]] = {column: [] for column in _COLUMNS}
        rows = record["parts"].setdefault(part.name, new)
        # Of a first part a whole record is not enough: others begin with its checkpoint, which comes after it.
        if len(rows["items"]) == len(part.shown) and first is not None:
            return
        before = 0 if first is None else len(first.shown)
        learner = self._learner(part, first, tests[0].input_shape)
        # The record is written first, so it may be ahead of the learner, and is cut back to what that knows.
        done = learner.items_learned - before
        for column in rows.values():
            del column[done:]
        known = set() if first is None or part.items is not None else {shown.item for shown in first.shown}
        known |= set(rows["items"])
        start = time.perf_counter()
        for number in range(done, len(part.shown)):
            known.add(part.shown[number].item)
            for column, value in self._present(learner, part, number, tests[: part.tested], known).items():
                rows[column].append(value)
            last, now = number == len(part.shown) - 1, time.perf_counter()
            if last or now - start > _SAVE_EVERY:
                record["seconds"] = round(record["seconds"] + now - start, 2)
                record["scale"] = _scale(learner)
                write_json(self.path, record)
                if not last or first is None:  # the end of a first part is where the others begin
                    learner.save(self._checkpoint(part))
                start = time.perf_counter()
            done_of_all = sum(len(p["items"]) for p in record["parts"].values())
            what = f"{self.name}, seed {self.seed}, {part.name} {number + 1}/{len(part.shown)}"
            notify(done_of_all / total, what)

    def _present(
        self, learner: Any, part: Part, number: int, tests: list[Experience], known: set[int]
    ) -> dict[str, Any]:
        """One presentation and the test after it: an entry for each of ``_COLUMNS``."""
        shown = part.shown[number]
        epochs: list[list[float]] = []
        losses: list[float] = []

        def after_epoch(progress: Progress) -> None:
            losses.append(round(progress.loss, 5))
            if part.by_epoch and progress.epoch < progress.epochs:
                epochs.append(_accuracies(learner.evaluate(tests)))

        learner.learn(shown.experience(), epochs=self.protocol.epochs, progress=after_epoch)
        evaluation = learner.evaluate(tests)
        row = _accuracies(evaluation)
        return {
            "items": shown.item,
            "turns": shown.repetition,
            "accuracy": row,
            "memorised": _memorised(evaluation, tests, sorted(known)),
            "epochs": [*epochs, row] if part.by_epoch else [],
            "losses": losses,
        }

    def _learner(self, part: Part, first: Part | None, input_shape: tuple[int, ...]) -> Any:
        for path in (self._checkpoint(part), None if first is None else self._checkpoint(first)):
            if path is not None and path.exists():
                return load_mlp(path, device=self.protocol.device)
        classes = self.experiment.classes(self.protocol)
        return make_learner(self.network, self.protocol, input_shape, classes, self.seed)

    def _checkpoint(self, part: Part) -> Path:
        plain = re.sub(r"[^a-z0-9.]+", "_", part.name.lower()).strip("_")
        return self.folder / f"{self.stem}.{plain}.safetensors"


def make_learner(
    network: Network, protocol: Protocol, input_shape: tuple[int, ...], classes: int, seed: int
) -> Any:
    """A network of an experiment that has not learned anything.

    Raises:
        TypeError, ValueError: naming the setting or the option that is outside its range.
    """
    p, width, options = protocol, protocol.width, dict(network.options)
    if network.method == "metaplastic":
        sizes = (*input_shape, width, width, classes)
        options |= {"network": flexibility(network.flexibility, sizes, seed, p.device), "scale": p.scale}
    return MLP_METHODS[network.method](
        input_shape, classes, widths=(width, width), lr=p.lr, batch_size=p.batch_size, seed=seed,
        device=p.device, precision=p.precision, **options,
    )  # fmt: skip


def _accuracies(evaluation: Evaluation) -> list[float]:
    return [round(float(a), 4) for a in evaluation.accuracies]


def _memorised(evaluation: Evaluation, tests: list[Experience], known: list[int]) -> list[int]:
    """The items that are remembered, of those shown so far; of several classes, as one of them."""
    item_of = np.full(len(evaluation.confusion), len(tests))  # of a class that no tested item has: none
    for test in tests:
        item_of[test.test_labels.unique().numpy(force=True)] = test.number
    counts = np.zeros((len(tests) + 1,) * 2, dtype=np.int64)
    np.add.at(counts, (item_of[:, None], item_of[None, :]), evaluation.confusion)
    if not counts[:, -1].any():  # nobody answered "none"
        counts = counts[:-1, :-1]
    return [int(i) for i in np.flatnonzero(memorised(counts, learned=known))]


def _scale(learner: Any) -> float | None:
    if learner.optimizer is None:  # nothing is trained
        return None
    (scale,) = learner.optimizer.scales()
    return None if scale is None else float(f"{float(scale):.6g}")
