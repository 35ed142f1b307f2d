"""Kills at random moments, and what is left then: each run goes on until it is finished, to the same bits."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from reliability.forks import Ended, Moment, fast_folder, run_child
from reliability.subjects import SIGNALLED, Subject, subjects, warm

__all__ = ["run"]

_ROW = 8  # kills of one run, after which it is left to end
_STOPPED = "the same command goes on"  # what a command says that was stopped and not killed
_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class _Known:
    """Of an undisturbed run: its result, seconds, steps of writes, and the length of its longest file."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        folder = scratch / f"undisturbed {subject.name}"
        folder.mkdir()
        start = time.perf_counter()
        ended = run_child(subject.work, folder, Moment())
        self.seconds = time.perf_counter() - start
        assert ended.code == 0, f"{subject.name} ended with {ended.code}:\n{ended.said}"
        self.result = subject.result(folder)
        self.longest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        shutil.rmtree(folder)
        folder.mkdir()
        self.steps = run_child(subject.work, folder, Moment("count")).steps
        shutil.rmtree(folder)


def _moment(known: _Known, rng: np.random.Generator, signalled: bool) -> Moment:
    kind = rng.choice(["time", "step", "byte"], p=[0.5, 0.3, 0.2])
    ends = signal.SIGKILL
    if kind == "time" and signalled and rng.random() < 0.3:
        ends = signal.SIGTERM if rng.random() < 0.5 else signal.SIGINT
    if kind == "byte":
        return Moment("byte", int(rng.integers(1, known.longest)))
    # Early ones too: a run that has been resumed has less to do.
    most = known.seconds if kind == "time" else known.steps
    value = rng.uniform(0, most) * rng.choice([1, 1, 0.3])
    return Moment(str(kind), value if kind == "time" else max(1, int(value)), ends)


def _one_run(
    subject: Subject, known: _Known, folder: Path, rng: np.random.Generator, most: int, counts: Counter[str]
) -> int:
    """One run, killed again and again, and then left to end; returns how many kills it had."""
    folder.mkdir()
    done = kills = 0
    for _ in range(_ROW):
        if kills == most:
            break
        moment = _moment(known, rng, subject.name.startswith(SIGNALLED))
        ended = run_child(subject.work, folder, moment)
        done = subject.whole(folder, done, ended.saves)
        if ended.code == 0:
            break
        _judge(ended, moment, folder)
        kills += 1
        counts[_word(ended, moment)] += 1
    ended = run_child(subject.work, folder, Moment())
    assert ended.code == 0, f"it does not go on, and ends with {ended.code}:\n{ended.said[-3000:]}"
    subject.whole(folder, done, ended.saves)
    assert subject.result(folder) == known.result, "another result"
    left = [str(p.relative_to(folder)) for p in folder.rglob("*.tmp")]
    assert not left, f"temporaries stay: {left}"
    shutil.rmtree(folder)
    return kills


def _judge(ended: Ended, moment: Moment, folder: Path) -> None:
    """It ended by the signal that it was sent, and not by itself."""
    number = signal.SIGXFSZ if moment.kind == "byte" else moment.signal
    if ended.code == -number:
        return
    said = f"it ended with {ended.code} at {moment}:\n{ended.said[-3000:]}"
    assert number in _CODES, said
    if ended.code == _CODES[number] and _STOPPED in " ".join(ended.said.split()):
        return
    # Before the command has begun its work, or after it, Python or the command line ends.
    results = folder / "results.json"
    assert not ended.said.strip() or json.loads(results.read_text())["finished"], said


def _word(ended: Ended, moment: Moment) -> str:
    kinds = {
        "time": "SIGKILL at any time", "step": "SIGKILL before a step of a write",
        "byte": "SIGXFSZ within a write",
    }  # fmt: skip
    return moment.signal.name if moment.signal in _CODES else kinds[moment.kind]


def run(count: int, *, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """Kills until there are ``count``.

    Returns:
        ``kills`` and ``runs`` by subject, ``moments`` by kind, ``faults`` with what was wrong, ``seconds``.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        scratch = Path(name)
        groups = subjects(scratch)
        warm(scratch, groups)
        gc.collect()
        gc.freeze()  # a child writes to no page of what is there already
        drivers = []
        for number in range(processes):
            share = count // processes + (number < count % processes)
            pid = os.fork()
            if not pid:
                _driver(groups, share, seed, number, processes, scratch)
            drivers.append(pid)
        for pid in drivers:
            os.waitpid(pid, 0)
        parts = [json.loads((scratch / f"{number}.json").read_text()) for number in range(processes)]
    found: dict[str, Any] = {"kills": Counter(), "runs": Counter(), "moments": Counter(), "faults": []}
    for part in parts:
        for key, value in part.items():
            if key == "faults":
                found["faults"] += value
            else:
                found[key].update(value)
    for key in ("kills", "runs", "moments"):
        found[key] = dict(sorted(found[key].items()))
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def _driver(
    groups: list[tuple[float, list[Subject]]], count: int, seed: int, number: int, processes: int, scratch: Path
) -> None:
    """One of several processes that share the kills; it never returns."""
    found: dict[str, Any] = {"kills": Counter(), "runs": Counter(), "moments": Counter(), "faults": []}
    try:
        own = scratch / f"driver{number}"
        own.mkdir()
        known: dict[str, _Known] = {}
        ends = [round(count * share) for share in itertools.accumulate(share for share, _ in groups)]
        for place, (_, group) in enumerate(groups):
            left = ends[place] - (ends[place - 1] if place else 0)
            turn = 0
            while left > 0:
                # Each driver begins elsewhere among the subjects of a group.
                subject = group[(turn * processes + number) % len(group)]
                rng = np.random.default_rng([seed, number, place, turn])
                turn += 1
                try:
                    if subject.name not in known:
                        known[subject.name] = _Known(subject, own)
                    before = Counter(found["moments"])
                    kills = _one_run(
                        subject, known[subject.name], own / f"run{place}_{turn}", rng, left, found["moments"]
                    )
                except Exception:
                    found["faults"].append({"subject": subject.name, "error": traceback.format_exc()})
                    kills = max(1, sum((found["moments"] - before).values())) if subject.name in known else left
                left -= kills
                found["kills"][subject.name] += kills
                found["runs"][subject.name] += 1
    except BaseException:
        found["faults"].append({"subject": "the driver", "error": traceback.format_exc()})
    finally:
        (scratch / f"{number}.json").write_text(json.dumps(found))
        os._exit(0)
