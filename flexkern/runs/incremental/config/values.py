"""Kinds of values that several tables of a configuration have."""

from __future__ import annotations

import re
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from flexkern.runs.incremental.config.sentences import Said
from flexkern.streams.labelled import MOST_CLASSES

__all__ = ["LARGEST_ORDER", "NUMBERS_AND_RANGES", "Count", "Percent", "Text", "listed", "numbers"]

LARGEST_ORDER = 2**32 - 1
"""NumPy's RandomState, which orders classes, takes no larger seed."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise PydanticCustomError("text", "no text")
    return value


def listed(value: Any) -> Any:
    """TOML's lists, where a tuple is kept."""
    return tuple(value) if isinstance(value, list) else value


def numbers(name: str, entries: Any) -> tuple[int, ...] | None:
    """[3, "5-8"] as (3, 5, 6, 7, 8)."""
    if entries is None:
        return None
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ValueError(f"{name} must be a list of numbers and ranges such as '50-99', got {entries!r}")
    found: list[int] = []
    for entry in entries:
        span = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,20})", entry) if isinstance(entry, str) else None
        if span and int(span[1]) <= int(span[2]):
            first, last = int(span[1]), int(span[2])
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
            first = last = entry
        else:
            raise ValueError(f"{name}: {entry!r} is neither a number nor a range such as '50-99'")
        if last >= MOST_CLASSES:
            raise ValueError(f"{name} must be labels under {MOST_CLASSES}, got {entry!r}")
        found += range(first, last + 1)
        if len(found) > MOST_CLASSES:
            raise ValueError(f"{name} must name each class once")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must name each class once")
    return tuple(found)


NUMBERS_AND_RANGES = {
    "type": "array", "minItems": 1, "uniqueItems": True,
    "items": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_CLASSES - 1},
                        {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}]},
}  # fmt: skip
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Count = Annotated[int, Ge(1), Le(2**31)]
Percent = Annotated[float, Ge(0), Le(100), Said("an accuracy in percent, 0 to 100")]
