"""Results of any kind of run, found where somebody says that they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flexkern.learners import checkpoint
from flexkern.runs.demo import EXPERIMENT as DEMO

__all__ = ["Found", "UnusableError", "find", "flat", "one", "read"]


class UnusableError(ValueError):
    """There are no results that can be read; the message says why, in a sentence."""


class Found(NamedTuple):
    """Results.

    kind: "class-incremental", "experiment" (of the metaplasticity paper), "demo", "fit" or "bench".
    path: of the file.
    results: what it holds.
    """

    kind: str
    path: Path
    results: dict[str, Any]


def find(given: Path) -> tuple[list[Found], list[str]]:
    """The results of a folder and of the folders in it, or of one file; and why some cannot be read.

    Of a folder without a ``results.json`` it is every file that has results: of ``flexkern bench``, or ``fit``.

    Raises:
        UnusableError: if there are none.
    """
    where = os.fspath(given)
    if not os.path.lexists(given):
        raise UnusableError(f"there is nothing at {where!r}")
    if not given.is_dir():
        return [read(given)], []
    try:
        paths = [p for p in (given / "results.json", *sorted(given.glob("*/results.json"))) if p.exists()]
        others = [p for p in sorted(given.iterdir()) if p.suffix in (".json", ".safetensors") and p.is_file()]
    except OSError as error:
        raise UnusableError(f"{where!r} cannot be read: {error.strerror}") from error
    found, unusable = _all(paths or others)
    if not found and (paths or len(others) == 1):
        raise UnusableError("; ".join(unusable))
    if not found:
        raise UnusableError(f"{where!r} has no results.json, nor has a folder in it")
    return found, unusable if paths else []


def _all(paths: Sequence[Path]) -> tuple[list[Found], list[str]]:
    found, unusable = [], []
    for path in paths:
        try:
            found.append(read(path))
        except UnusableError as error:
            unusable.append(str(error))
    return found, unusable


def one(given: Path) -> Found:
    """The results of a folder, not of those in it, or of a file.

    Raises:
        UnusableError: if there are none, or they cannot be read.
    """
    inside = given / "results.json"
    if given.is_dir() and not inside.exists():
        others = [os.fspath(path.parent) for path in sorted(given.glob("*/results.json"))]
        hint = f"; {' and '.join(others[:2])} {'has' if len(others) == 1 else 'have'}" if others else ""
        raise UnusableError(f"{os.fspath(given)!r} has no results.json{hint}")
    if not os.path.lexists(given):
        raise UnusableError(f"there is nothing at {os.fspath(given)!r}")
    return read(inside if given.is_dir() else given)


def read(path: Path) -> Found:
    """The results of one file: JSON, or what ``flexkern fit`` saved.

    Raises:
        UnusableError: if it is neither, or cannot be read.
    """
    where = repr(os.fspath(path))
    if path.is_dir():
        raise UnusableError(f"{where} is a folder, where a file is needed")
    try:
        with path.open("rb") as file:  # once: it may be a pipe
            begin = file.read(9)
            is_model = path.suffix == ".safetensors" or _begins_a_model(begin, path.stat().st_size)
            text = b"" if is_model else begin + file.read()
        results = json.loads(text) if text.strip() else None
    except OSError as error:
        raise UnusableError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{where} is no whole JSON: it may be half written, or something else") from error
    if is_model:
        results = _of_model(path)
    elif results is None:
        raise UnusableError(f"{where} is empty")
    kind = _kind(results)
    if kind is None:
        raise UnusableError(f"{where} holds no results that flexkern knows")
    return Found(kind, path, results)


def _begins_a_model(begin: bytes, size: int) -> bool:
    """Whatever the file is called: ``flexkern fit --out model`` adds no ending. Safetensors begin with the
    length of their header, which is JSON."""
    return begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < size


def _of_model(path: Path) -> Any:
    try:
        return checkpoint.read_notes(path).get("fit")
    except (ValueError, OSError) as error:
        raise UnusableError(f"{os.fspath(path)!r} holds no learner: {error}") from error


def _kind(results: Any) -> str | None:
    if not isinstance(results, dict):
        return None
    experiment = results.get("experiment")
    if "rows" in results and "machine" in results:
        return "bench"
    if "planned" in results and "learner" in results:
        return "fit"
    if not isinstance(results.get("configuration"), dict) or not isinstance(experiment, str):
        return None
    if experiment == DEMO:
        return "demo"
    if results.get("format") != 1:
        return None
    return "class-incremental" if experiment == "class-incremental" else "experiment"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested tables as lines of a dotted name and a value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}.{i + 1}" if prefix else str(i + 1))
    elif isinstance(value, list):
        yield prefix, ", ".join(v if isinstance(v, str) else json.dumps(v) for v in value)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
