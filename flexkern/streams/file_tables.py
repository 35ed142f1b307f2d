"""Tables that say which class a file is of, and lists of classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexkern.spec.argument import shown
from flexkern.streams.labelled import MOST_CLASSES

__all__ = ["annotated", "class_names", "table"]

_FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
_CLASS_COLUMNS = ("class", "label", "name", "category")
_MOST_OF_TABLE = 1 << 30  # bytes


def class_names(names: Any) -> list[str]:
    """``names`` as a list of different texts.

    Raises:
        TypeError, ValueError: if it is none.
    """
    given = list(names) if not isinstance(names, (str, bytes)) and hasattr(names, "__iter__") else None
    if given is None or not all(isinstance(name, str) and name for name in given):
        raise TypeError(f"names must be the classes, a list of texts, got {shown(names)}")
    if len(set(given)) < len(given):
        twice = next(name for i, name in enumerate(given) if name in given[:i])
        raise ValueError(f"names must name each class once, got {twice!r} twice")
    if not given or len(given) > MOST_CLASSES:
        raise ValueError(f"names must be 1 to {MOST_CLASSES} classes, got {len(given)}")
    return given


def table(labels: Any, root: str) -> dict[str, str]:
    """From a file's path within ``root`` to its class.

    Args:
        labels: a mapping, or the path of a .csv or .tsv, which may be within ``root``.

    Raises:
        FileNotFoundError, TypeError, ValueError: if it is no such table.
    """
    if isinstance(labels, Mapping):
        rows = list(labels.items())
        what = "labels"
    elif isinstance(labels, (str, os.PathLike)):
        path = _found(os.fspath(labels), root)
        rows = _read(path)
        what = f"labels: {path!r}"
    else:
        raise TypeError(f"labels must be a mapping or the path of a table, got {type(labels).__name__}")
    classes: dict[str, str] = {}
    for file, name in rows:
        text = _text(name)
        if text is None:
            raise TypeError(f"{what}: the class of {file!r} must be a text or a number, got {shown(name)}")
        if not text or not text.isprintable():
            raise ValueError(f"{what}: the class of {file!r} must be a text of one line, got {shown(name)}")
        if not isinstance(file, (str, os.PathLike)) or os.path.isabs(file):
            raise ValueError(f"{what}: files must be named within {root!r}, got {shown(file)}")
        within = os.path.normpath(os.fspath(file))
        if classes.setdefault(within, text) != text:
            raise ValueError(f"{what}: {within!r} is of two classes, {classes[within]!r} and {text!r}")
    if not classes:
        raise ValueError(f"{what}: names no file")
    if len(set(classes.values())) > MOST_CLASSES:
        raise ValueError(f"{what}: names more than {MOST_CLASSES} classes")
    return classes


def _text(name: Any) -> str | None:
    if isinstance(name, str):
        return name
    return str(int(name)) if hasattr(name, "__index__") and not isinstance(name, bool) else None


def _found(path: str, root: str) -> str:
    for here in (path, os.path.join(root, path)):
        if os.path.isfile(here):
            return here
    raise FileNotFoundError(f"labels: no table at {path!r}, nor in {root!r}")


def _read(path: str) -> list[tuple[str, str]]:
    tabs = path.lower().endswith((".tsv", ".tab", ".txt"))
    if os.path.getsize(path) > _MOST_OF_TABLE:
        raise ValueError(f"labels: {path!r} has more than {_MOST_OF_TABLE} bytes")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
            head = [cell.strip().lower() for cell in next(lines, [])]
            columns = [
                next((head.index(name) for name in names if name in head), -1)
                for names in (_FILE_COLUMNS, _CLASS_COLUMNS)
            ]
            if -1 in columns:
                raise ValueError(
                    "its first line must name the columns 'file' and 'class', separated by "
                    f"{'tabs' if tabs else 'commas'}, got {shown(head)}"
                )
            rows = []
            for row in lines:
                if not row:
                    continue
                if len(row) <= max(columns):
                    raise ValueError(f"line {lines.line_num} has {len(row)} cells, and must have {len(head)}")
                rows.append((row[columns[0]].strip(), row[columns[1]].strip()))
            return rows
    except (ValueError, csv.Error) as error:  # of UTF-8, too
        raise ValueError(f"labels: {path!r} cannot be read: {error}") from error


def annotated(annotations: Path, numbers: dict[str, int]) -> tuple[list[str], list[int]]:
    """TinyImageNet's table: files in the folder ``images`` beside it, as paths from there, and their labels.

    Raises:
        ValueError: if it names anything else, or a file or class that is not there.
    """
    name = os.fspath(annotations)
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {name!r} is not UTF-8: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    unknown = sorted(
        {row[1] if len(row) > 1 else row[0] for row in rows if len(row) < 2 or row[1] not in numbers}
    )
    if unknown or not rows:
        raise ValueError(
            f"path: {name!r} must name an image and its class per line, separated by a tab; "
            f"there is no class {', '.join(unknown[:3]) or 'in it'}"
        )
    seen: set[str] = set()
    for file, *_ in rows:
        if file != Path(file).name or "\\" in file or "\0" in file or file == "..":
            raise ValueError(f"path: {name!r} must name files of the folder 'images' beside it, got {file!r}")
        if file in seen:
            raise ValueError(f"path: {name!r} names {file!r} twice")
        seen.add(file)
    missing = next((row[0] for row in rows if not (annotations.parent / "images" / row[0]).is_file()), None)
    if missing is not None:
        raise ValueError(f"path: {name!r} names {missing!r}, and there is no such file in 'images'")
    return [os.path.join("images", row[0]) for row in rows], [numbers[row[1]] for row in rows]
