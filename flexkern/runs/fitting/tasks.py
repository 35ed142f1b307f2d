"""Which classes are learned together: from a file, or some at a time."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexkern.streams.class_incremental import class_order

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["at_a_time", "read_tasks"]

_MOST_BYTES = 16 << 20  # of a file of names


def at_a_time(names: Sequence[str], increment: int | None, seed: int | None) -> list[list[str]]:
    """All classes, ``increment`` at a time.

    Args:
        names: of the classes.
        increment: classes of a task; None: all in one. The last task may have fewer.
        seed: of a random order; None: the order of ``names``.
    """
    ordered = list(names) if seed is None else [names[i] for i in class_order(range(len(names)), seed)]
    step = len(ordered) if increment is None else increment
    return [ordered[i : i + step] for i in range(0, len(ordered), step)]


def read_tasks(path: str | os.PathLike[str]) -> list[list[str]]:
    """The names of each task's classes, from a file.

    Args:
        path: by its suffix, a ``.json`` (a list of lists of names, or an object with such a list as "tasks"), a
            ``.toml`` (``tasks = [["cat", "dog"], ["car"]]``), or anything else: text, a line for each task,
            names with commas between them. A name with a comma in it stands in double quotes; empty lines, and
            those that begin with ``#``, say nothing.

    Raises:
        FileNotFoundError: if there is no such file; another OSError if it cannot be read.
        ValueError: naming the file, if it is none of these.
    """
    name = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"tasks: {name!r} is a folder; give a file with a line for each task")
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"tasks: there is no file {name!r}") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"tasks: {name!r} has more than {_MOST_BYTES >> 20} MiB, and is no list of names")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"tasks: {name!r} is not UTF-8: {error}") from error
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".json":
            found = _listed(json.loads(text))
        elif suffix == ".toml":
            found = _listed(tomllib.loads(text))
        else:
            found = _lines(text)
    except (ValueError, RecursionError, csv.Error) as error:  # of JSON and TOML, ValueErrors of their own
        raise ValueError(f"tasks: {name!r} cannot be read: {error}") from error
    if not found:
        raise ValueError(
            f"tasks: {name!r} names no task; write a line for each, the names of its classes with commas "
            "between them"
        )
    return found


def _listed(value: Any) -> list[list[str]]:
    if isinstance(value, dict):
        if list(value) != ["tasks"]:
            raise ValueError(f"it must have tasks, and nothing else; it has {', '.join(value) or 'nothing'}")
        value = value["tasks"]
    if not isinstance(value, list) or not all(
        isinstance(task, list) and all(isinstance(name, str) for name in task) for task in value
    ):
        raise ValueError('tasks must be a list of lists of names, as [["cat", "dog"], ["car"]]')
    return value


def _lines(text: str) -> list[list[str]]:
    tasks = []
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.count('"') % 2:
            raise ValueError(f"line {number} has a quote that is not closed")
        (row,) = csv.reader([line.strip()], skipinitialspace=True)
        names = [name.strip() for name in row]
        if names[-1] == "":  # a comma at the end
            names.pop()
        if not names or "" in names:
            raise ValueError(f"line {number} has a comma with no name before it")
        tasks.append(names)
    return tasks
