"""What an experiment would do, and about how long it would take; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from flexkern.features import FeatureCache, extract
from flexkern.features.extraction import is_kept
from flexkern.learners import MLP_METHODS
from flexkern.runs.metaplasticity.items import Raw
from flexkern.runs.metaplasticity.protocol import Protocol
from flexkern.runs.metaplasticity.runner import (
    check,
    check_environment,
    check_same,
    configuration_of,
    default_jobs,
    grown,
    one_thread,
    read,
    units,
)
from flexkern.runs.metaplasticity.schedule import Experiment, Part
from flexkern.runs.metaplasticity.unit import Unit, make_learner
from flexkern.runs.pace import Pace, images_trained, network_mib, pace, some
from flexkern.runs.start import check_files
from flexkern.streams import Experience

__all__ = ["Plan", "PlannedNetwork", "plan"]

_PIECE = 64  # images of which features are taken


class PlannedNetwork(NamedTuple):
    """What is left to do for a network.

    times: it is trained, once for each seed. presentations: of items, in all of them. mib: of its weights,
    counted. seconds: for them, on one thread; None if it could not be measured, ``why`` not.
    """

    name: str
    times: int
    presentations: int
    mib: float
    seconds: float | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """An experiment that would be.

    protocol: with all seeds that its folder will have. added: seeds that are new to the folder, if that holds a
    run. jobs: networks that are trained at once. networks: that are left. later: how many are trained after
    these, which ones they decide, and later_seconds: for them. inputs, width: of the features of all seeds that
    are left; features_seconds: for them; 0 where those of the first one are kept already.
    """

    protocol: Protocol
    added: tuple[int, ...]
    jobs: int
    networks: list[PlannedNetwork]
    later: int = 0
    later_seconds: float = 0.0
    inputs: int = 0
    width: int = 0
    features_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all that could be measured, as if networks that are trained at once did not disturb each other."""
        known = [n for n in self.networks if n.seconds is not None]
        of_all = self.features_seconds + self.later_seconds + sum(n.seconds or 0.0 for n in known)
        return max([of_all / self.jobs, *((n.seconds or 0.0) / n.times for n in known)])


def plan(
    experiment: Experiment,
    protocol: Protocol,
    *,
    out: Path,
    cache: Path | None = None,
    jobs: int | None = None,
    restart: bool = False,
    accept_other_environment: bool = False,
    observe: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Looks at all that a run looks at before it begins, and measures each kind of network on a piece.

    Features of some images are taken. A network learns them, repeated to the number of an item's images, as
    :mod:`flexkern.runs.pace` does it.

    Args:
        experiment, protocol, out, cache, jobs, restart, accept_other_environment: of a run.
        observe: told what is done.

    Raises:
        ValueError, FileNotFoundError, OSError: as a run.
    """
    cache = out.parent / "features" if cache is None else cache
    check_files(cache, "features.safetensors")
    check_files(out, "results.json")
    known, given = None if restart else read(out / "results.json"), protocol
    if known is not None and known["experiment"] == experiment.name:
        protocol = grown(protocol, known)
    check(experiment, protocol)
    if known is not None:
        check_same(known, experiment.name, configuration_of(experiment, given), out)
    there = () if known is None else tuple(known["configuration"]["seeds"])
    added = tuple(s for s in protocol.seeds if s not in there) if known is not None else ()
    records = {} if known is None else {(r["network"], r["seed"]): r for r in known.get("runs", [])}
    todo = [u for u in units(experiment, protocol, out, cache) if (u.name, u.seed) not in records]
    first = [u for u in todo if experiment.wanted(u.name, u.seed, list(records.values()), protocol)]
    for unit in first if not restart else ():
        check_environment(unit, out, accept=accept_other_environment)
    jobs = default_jobs(protocol, len(first)) if jobs is None else jobs
    if not first:
        return Plan(protocol, added, jobs, [])
    with one_thread():
        work = _Work(experiment, FeatureCache(cache), first[0].seed, observe)
        networks = [
            work.planned(name, [u for u in first if u.name == name], restart=restart)
            for name in dict.fromkeys(u.name for u in first)
        ]
        later = max(experiment.count(protocol) - len(records) - len(first), 0)
        chosen = [u for u in todo if u not in first]
        each = [seconds for u in chosen if (seconds := work.seconds(u)) is not None]
        seeds = len({u.seed for u in first})
        return Plan(
            protocol,
            added,
            jobs,
            networks,
            later,
            later * sum(each) / max(len(each), 1),
            seeds * max(p.raw.images for p in work.pieces.values()),
            next(iter(work.pieces.values())).width,
            seeds * max(p.seconds for p in work.pieces.values()),
        )


class _Piece(NamedTuple):
    """Items as images; one of them, of features that stand for its own; how many features; seconds for all."""

    raw: Raw
    item: Experience
    width: int
    seconds: float


class _Work:
    """Knows what each network is to do, and how fast it is."""

    def __init__(
        self, experiment: Experiment, cache: FeatureCache, seed: int, observe: Callable[[str], None]
    ) -> None:
        self.experiment, self.cache, self.seed, self.observe = experiment, cache, seed, observe
        self.pieces: dict[Protocol, _Piece] = {}
        self._found: dict[Any, tuple[float, float]] = {}  # MiB and seconds, by the kind of the network
        self._parts: dict[Protocol, list[Part]] = {}

    def planned(self, name: str, todo: Sequence[Unit], *, restart: bool) -> PlannedNetwork:
        """What is left of a network on some seeds."""
        unit = todo[0]
        total, _, _ = self._amounts(unit, MLP_METHODS[unit.network.method])
        shares = [1 - (0 if restart else _done(u)) / total for u in todo]
        left = round(sum(shares) * total)
        try:
            mib, seconds = self._measured(unit)
        except (ValueError, RuntimeError) as error:
            return PlannedNetwork(name, len(todo), left, 0.0, None, str(error))
        return PlannedNetwork(name, len(todo), left, mib, sum(shares) * seconds)

    def seconds(self, unit: Unit) -> float | None:
        """Of a whole unit; None if it could not be measured."""
        try:
            return self._measured(unit)[1]
        except (ValueError, RuntimeError):
            return None

    def _measured(self, unit: Unit) -> tuple[float, float]:
        network, p = unit.network, unit.protocol
        # What does not change the time: how flexible a synapse is, a scale, a strength.
        is_flexible = network.flexibility != "conventional"
        options = tuple((k, v) for k, v in network.options if not isinstance(v, float))
        kind = (network.method, is_flexible, options, replace(p, scale="auto", lr=1.0, seeds=(0,)))
        if kind not in self._found:
            self.observe(f"measuring {unit.name}")
            piece = self._piece(p)
            learner = make_learner(network, p, piece.item.input_shape, self.experiment.classes(p), self.seed)
            total, images, answers = self._amounts(unit, MLP_METHODS[network.method])

            def whole(found: Pace) -> float:
                return found.seconds(items=total, images=images, passes=p.epochs, answers=answers)

            self._found[kind] = network_mib(learner), whole(pace(learner, piece.item, p.epochs, whole))
        return self._found[kind]

    def _amounts(self, unit: Unit, method: type[Any]) -> tuple[int, int, int]:
        """Presentations, images that are trained in them, and images that are answered."""
        piece, parts = self._piece(unit.protocol), self._schedule(unit.protocol)
        size, tests = len(piece.item.train_labels), len(piece.item.test_labels)
        total = images = answers = 0
        for part in parts:
            shown, before = len(part.shown), 0 if part is parts[0] else len(parts[0].shown)
            total += shown
            images += sum(images_trained(method, [size] * (before + shown))[before:])
            answers += shown * part.tested * tests * (unit.protocol.epochs if part.by_epoch else 1)
        return total, images, answers

    def _schedule(self, protocol: Protocol) -> list[Part]:
        if protocol not in self._parts:
            items = self._piece(protocol).raw.items
            self._parts[protocol] = list(self.experiment.schedule(items, protocol, self.seed))
        return self._parts[protocol]

    def _piece(self, protocol: Protocol) -> _Piece:
        images = replace(protocol, scale="auto", lr=1.0, seeds=(0,), epochs=1, width=1, batch_size=1)
        if images not in self.pieces:
            self.observe("taking features of some images")
            self.pieces[images] = self._made(protocol)
        return self.pieces[images]

    def _made(self, protocol: Protocol) -> _Piece:
        raw = self.experiment.raw(protocol, self.seed)
        whole, device = raw.items.experience(0), protocol.device
        extract(some(whole, 1), raw.extractor, device=device)  # warms up
        piece, begin = some(whole, _PIECE), perf_counter()
        taken = extract(piece, raw.extractor, device=device)
        each = (perf_counter() - begin) / (len(piece.train_labels) + len(piece.test_labels))
        kept = is_kept(raw.extractor, raw.items.test(0).test_inputs, cache=self.cache, device=device)
        # Of mean square 1: a step must not go astray. Their number, and not their values, takes time.
        features = taken.train_inputs / taken.train_inputs.square().mean().sqrt().clamp(min=1e-6)
        parts = {
            f"{part}_inputs": features[torch.arange(len(labels)) % len(features)]
            for part, labels in (("train", whole.train_labels), ("test", whole.test_labels))
        }
        item = replace(whole, **parts)
        return _Piece(raw, item, features.shape[1], 0.0 if kept else raw.images * each)


def _done(unit: Unit) -> int:
    """Presentations of a network that was stopped."""
    return sum(len(part["items"]) for part in unit.record()["parts"].values())
