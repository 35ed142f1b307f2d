"""Results files: one a run, never overwritten, named by date, device and commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexkern.files import replace_file

__all__ = ["default_folder", "keep_draft", "newest", "read", "write"]

FORMAT = 1


def default_folder() -> Path:
    """``benchmarks/results`` of the checkout that this package runs from; else ``out/bench`` of this folder."""
    beside = Path(__file__).parent / "results"
    return beside if beside.is_dir() else Path("out/bench")


def keep_draft(run: dict[str, Any], folder: Path) -> None:
    """Writes what there is of a run that goes on, so that it is not lost when the run is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(_draft(run, folder), _text(run))


def _text(run: dict[str, Any]) -> bytes:
    return (json.dumps({"format": FORMAT, **run}, indent=1) + "\n").encode()


def _draft(run: dict[str, Any], folder: Path) -> Path:
    return folder / f"unfinished-{run['device']}.json"


def write(run: dict[str, Any], folder: Path) -> Path:
    """Writes a run to a new file of ``folder``, in place of its draft, and returns its path."""
    machine = run["machine"]
    stamp = machine["date"].replace("-", "").replace(":", "").replace("T", "-")
    name = f"{stamp}-{run['device']}-{(machine['commit'] or 'unknown')[:7]}"
    if not run["complete"]:
        name += "-quick" if run["quick"] else "-part"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    count = 1
    while path.exists():
        count += 1
        path = folder / f"{name}-{count}.json"
    replace_file(path, _text(run))
    _draft(run, folder).unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Any]:
    """The run that :func:`write` wrote.

    Raises:
        ValueError: if it is not one.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT or "rows" not in run:
        raise ValueError(f"{path} is not a results file of `flexkern bench` in format {FORMAT}")
    return run


def newest(folder: Path) -> dict[str, dict[str, Any]]:
    """For each device what was measured last on the machine of its newest run, case by case.

    A run of some cases (``--only``) thus takes the place of these rows in the runs before it.

    Returns:
        Device to a run as :func:`write` has it, the CPU first; ``files`` are the names of those it is from.

    Raises:
        ValueError: if there is none at all.
    """
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("[0-9]*-*.json")):  # names begin with the date
        run = read(path)
        if not run["quick"]:
            runs.setdefault(run["device"], {})[path.name] = run
    if not runs:
        raise ValueError(f"{folder} has no results file; `flexkern bench` writes one")
    return {device: _merged(runs[device]) for device in sorted(runs)}


def _merged(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def where(run: dict[str, Any]) -> tuple[Any, ...]:
        machine = run["machine"]
        return machine["cpu"], machine["cores"], [gpu["name"] for gpu in machine["gpus"]]

    last = list(runs.values())[-1]
    same = {name: run for name, run in runs.items() if where(run) == where(last)}
    merged: dict[str, Any] = {}
    files = set()
    for what in ("rows", "series"):
        longest = max(same.values(), key=lambda run: len(run[what]))
        kept = {_key(part): (part, "") for part in longest[what]}  # for the order
        for name, run in same.items():
            for part in run[what]:
                if "ours" in part or "lines" in part or not kept.get(_key(part), ("", ""))[1]:
                    kept[_key(part)] = part, name
        merged[what] = [part for part, _ in kept.values()]
        files |= {name for _, name in kept.values()}
    return {**last, **merged, "files": sorted(files)}


def _key(part: dict[str, Any]) -> tuple[Any, ...]:
    return part.get("case"), part.get("series"), part.get("backend"), part.get("pages")
