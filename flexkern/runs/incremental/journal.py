"""What a class-incremental run has done so far: one JSON, and the checkpoints of its learners."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flexkern.distributed import barrier, is_lead
from flexkern.files import write_json
from flexkern.runs.events import EVENTS, ROWS, EventLog, Sink
from flexkern.runs.incremental.config import Config
from flexkern.runs.incremental.growth import grow
from flexkern.runs.incremental.logged_tasks import COLUMNS, KEYS, all_tasks, of_task, shortly
from flexkern.runs.provenance import refuse_another
from flexkern.runs.seeds import said_seeds

__all__ = ["Journal", "checkpoint_path"]

_FORMAT = 1
_OWN = ("results.json", "picture.png", EVENTS, ROWS, "checkpoints/*.safetensors")  # what --restart removes
_TEMPORARY = (".results*.tmp", "checkpoints/.*.tmp")


class Journal:
    """``results.json`` in the folder ``config.out``.

    Args:
        config: the run. What a folder already holds must be of the same configuration, but for paths, seeds,
            methods, and tasks at the end of the stream: it grows by these.
        environment: of :func:`flexkern.runs.provenance.decides_bits`. ``environments`` of the results has all
            that the folder was worked on in, and ``environments`` of a run the places of its own in that list.
        restart: discard what the folder holds, when the run begins (:meth:`begin`).
        accept_other_environment: go on with what was begun in another one.
        sinks: that are told of tasks too.

    Attributes:
        config: all that the folder has, or will have.
        log: of what happens; whoever makes a journal that is begun closes it.
        added: what of it is new, a phrase each; nothing where the folder held no run.

    Raises:
        ValueError: if the folder holds another run, a file that is not one of ours, or a run that was begun in
            another environment and has not ended.
    """

    def __init__(
        self,
        config: Config,
        environment: dict[str, Any],
        *,
        restart: bool = False,
        accept_other_environment: bool = False,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.folder = config.folder
        self.path = self.folder / "results.json"
        self.log = EventLog(self.folder, COLUMNS, KEYS, sinks=sinks)
        self.log.check()
        # A process that was killed while it wrote leaves its temporary file.
        self._leftovers = (*_TEMPORARY, *(_OWN if restart else ()))
        self.config, self.added = config, list[str]()
        known = None if restart else self._read()
        self._is_new = known is None
        if known is not None:
            self.config, self.added, differs = grow(known["configuration"], config)
            if differs:
                raise ValueError(
                    f"out: {os.fspath(self.folder)!r} holds a run of another configuration "
                    f"({'; '.join(differs)}): {_said(known)}. Give another folder with --out, or discard that "
                    "run with --restart"
                )
        self.results: dict[str, Any] = known or {
            "experiment": "class-incremental",
            "format": _FORMAT,
            "configuration": {},
            "environments": [],
            "finished": False,
            "summary": {},
            "runs": [],
        }
        self.results["configuration"] = self.config.asdict()
        self._new = environment
        self._accept = accept_other_environment
        for run in self.results["runs"]:
            if _is_going_on(run):
                self.check_environment(run)
        if environment not in self.results["environments"]:
            self.results["environments"].append(environment)
        self._environment = self.results["environments"].index(environment)

    def check_environment(self, run: dict[str, Any]) -> None:
        """Raises ValueError if the run was begun in another environment, and is not to go on in this one."""
        environments = [self.results["environments"][i] for i in run.get("environments", ())]
        what = f"{run['method']!r}, seed {run['seed']}, a run"
        begun = environments[-1] if environments else None
        refuse_another(begun, self._new, self.folder, accept=self._accept, what=what)

    def begin(self) -> None:
        """The run can begin: what it is to discard is removed now, and not if it was refused."""
        barrier()  # of several processes all have read what is there
        for pattern in self._leftovers if is_lead() else ():
            for path in self.folder.glob(pattern):
                path.unlink()
        self.log.open(all_tasks(self.results), anew=self._is_new)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            results = json.loads(self.path.read_text(encoding="utf-8"))
            ours = results["experiment"] == "class-incremental" and results["format"] == _FORMAT
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise ValueError(
                f"out: {os.fspath(self.path)!r} was not written by this version of flexkern run "
                "class-incremental. Give another folder with --out, or discard it with --restart"
            )
        return results

    def run(self, method: str, seed: int) -> dict[str, Any]:
        """The record of one method on one seed, new if there is none; :meth:`write` keeps what is put in it."""
        for run in self.results["runs"]:
            if run["method"] == method and run["seed"] == seed:
                return run
        new: dict[str, Any] = {"method": method, "seed": seed, "tasks": []}
        self.results["runs"].append(new)
        names, seeds = [m.name for m in self.config.methods], self.config.seeds
        # As they would be, had all been learned in one go: means over them are the same to the bit.
        self.results["runs"].sort(key=lambda run: (seeds.index(run["seed"]), names.index(run["method"])))
        return new

    def note_environment(self, run: dict[str, Any]) -> None:
        """A run begins, or goes on, here and now."""
        self.log.began(
            experiment=self.results["experiment"],
            configuration=self.results["configuration"],
            environment=self._new,
        )
        places = run.setdefault("environments", [])
        if places[-1:] != [self._environment]:
            places.append(self._environment)

    def learned(self, run: dict[str, Any]) -> None:
        """The last task in the record of a run is learned and tested."""
        self.write()
        self.log.learned(of_task(run, len(run["tasks"]) - 1))

    def checkpoint(self, method: str, seed: int) -> Path:
        """Where the learner of that run is saved."""
        return checkpoint_path(self.folder, [m.name for m in self.config.methods], method, seed)

    def end(self) -> None:
        """All has been learned."""
        self.results["finished"] = True
        self.write()
        self.log.ended(summary=shortly(self.results["summary"]))
        with contextlib.suppress(OSError):  # there is none, or learners were kept
            (self.folder / "checkpoints").rmdir()

    def write(self) -> None:
        """Puts the results in place in one step: who reads them finds the old file or the new one."""
        if is_lead():
            write_json(self.path, self.results)


def checkpoint_path(folder: Path, methods: Sequence[str], method: str, seed: int) -> Path:
    """Where the learner of a method, one of those of the run by their labels, lies in its folder."""
    # The number keeps apart what differs only in characters that a file name cannot have.
    plain = re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")
    return folder / "checkpoints" / f"{list(methods).index(method)}_{plain}_seed{seed}.safetensors"


def _is_going_on(run: dict[str, Any]) -> bool:
    """Whether something of the run is learned, and not all of it."""
    tasks = len(run["tasks"])
    return (tasks > 0 or "learning" in run) and tasks < len(run.get("experiences", ()))


def _said(results: dict[str, Any]) -> str:
    """What a folder holds."""
    known = results["configuration"]
    methods = ", ".join(repr(m["name"]) for m in known["methods"])
    return f"{methods}, seeds {said_seeds(known['seeds'])}{'' if results['finished'] else ', not ended'}"
