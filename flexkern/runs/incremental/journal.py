"""What a class-incremental run has done so far: one JSON, and the checkpoints of its learners."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexkern.distributed import barrier, is_lead
from flexkern.files import write_json
from flexkern.runs.incremental.config import Config
from flexkern.runs.provenance import refuse_another

__all__ = ["Journal", "checkpoint_path", "differences"]

_FORMAT = 1
# May change between two calls of one run: where things lie, not what they are.
_FREE = ("out", "data.path", "data.in_memory")
_OWN = ("results.json", "picture.png", "checkpoints/*.safetensors")  # what --restart removes
_TEMPORARY = (".results*.tmp", "checkpoints/.*.tmp")


class Journal:
    """``results.json`` in the folder ``config.out``.

    Args:
        config: the run. What a folder already holds must be of the same configuration, but for paths.
        environment: of :func:`flexkern.runs.provenance.decides_bits`. ``environments`` of the results has all
            that the folder was worked on in, and ``environments`` of a run the places of its own in that list.
        restart: discard what the folder holds, when the run begins (:meth:`begin`).
        accept_other_environment: go on with what was begun in another one.

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
    ) -> None:
        self.folder = config.folder
        self.path = self.folder / "results.json"
        # A process that was killed while it wrote leaves its temporary file.
        self._leftovers = (*_TEMPORARY, *(_OWN if restart else ()))
        configuration = config.asdict()
        self.results: dict[str, Any] = (None if restart else self._read()) or {
            "experiment": "class-incremental",
            "format": _FORMAT,
            "configuration": configuration,
            "environments": [],
            "finished": False,
            "summary": {},
            "runs": [],
        }
        changed = differences(self.results["configuration"], configuration)
        if changed:
            raise ValueError(
                f"out: {os.fspath(self.folder)!r} holds a run of another configuration ({'; '.join(changed)}). "
                "Give another folder with --out, or discard that run with --restart"
            )
        self.results["configuration"] = configuration
        for run in self.results["runs"]:
            if not _is_going_on(run):
                continue
            environments = [self.results["environments"][i] for i in run.get("environments", ())]
            what = f"{run['method']!r}, seed {run['seed']}, a run"
            begun = environments[-1] if environments else None
            refuse_another(begun, environment, self.folder, accept=accept_other_environment, what=what)
        if environment not in self.results["environments"]:
            self.results["environments"].append(environment)
        self._environment = self.results["environments"].index(environment)

    def begin(self) -> None:
        """The run can begin: what it is to discard is removed now, and not if it was refused."""
        barrier()  # of several processes all have read what is there
        for pattern in self._leftovers if is_lead() else ():
            for path in self.folder.glob(pattern):
                path.unlink()

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
        self.results["runs"].append({"method": method, "seed": seed, "tasks": []})
        return self.results["runs"][-1]

    def note_environment(self, run: dict[str, Any]) -> None:
        """A run begins, or goes on, here and now."""
        places = run.setdefault("environments", [])
        if places[-1:] != [self._environment]:
            places.append(self._environment)

    def checkpoint(self, method: str, seed: int) -> Path:
        """Where the learner of that run is saved; the folder exists then."""
        names = [m["name"] for m in self.results["configuration"]["methods"]]
        path = checkpoint_path(self.folder, names, method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

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


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is not the same in two configurations, one phrase per key."""
    before, now = _flat(old), _flat(new)
    return [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if key not in _FREE and before.get(key) != now.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists of tables as one table with dotted keys."""
    if isinstance(value, dict):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    return {
        k: v for name, part in items for k, v in _flat(part, f"{prefix}.{name}" if prefix else name).items()
    }
