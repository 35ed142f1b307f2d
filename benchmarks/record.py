"""Results files: one a run, never overwritten, named by date, device and commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["default_folder", "keep_draft", "newest_runs", "read", "write"]

FORMAT = 1


def default_folder() -> Path:
    """``benchmarks/results`` of the checkout that this package runs from; else ``out/bench`` of this folder."""
    beside = Path(__file__).parent / "results"
    return beside if beside.is_dir() else Path("out/bench")


def keep_draft(run: dict[str, Any], folder: Path) -> None:
    """Writes what there is of a run that goes on, so that it is not lost when the run is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    _draft(run, folder).write_text(json.dumps({"format": FORMAT, **run}, indent=1) + "\n")


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
    path.write_text(json.dumps({"format": FORMAT, **run}, indent=1) + "\n")
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


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*-*.json"))  # names begin with the date


def newest_runs(folder: Path) -> dict[Path, dict[str, Any]]:
    """The newest run of all cases on each device that has one, by path: the CPU first.

    Raises:
        ValueError: if there is none at all.
    """
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("[0-9]*-*.json")):  # names begin with the date
        run = read(path)
        if run["complete"]:
            newest[run["device"]] = path, run
    if not newest:
        raise ValueError(f"{folder} has no results file of a run of all cases; `flexkern bench` writes one")
    return dict(newest[device] for device in sorted(newest))
