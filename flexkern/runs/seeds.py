"""Seeds of runs, as they are given, kept and said: each names one run, whatever the command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flexkern.plain import whole_number

__all__ = ["LARGEST", "LARGEST_OF_NUMPY", "as_list", "checked", "read_seeds", "said_seeds", "united"]

LARGEST = 2**53 - 1
"""What learners take: they make 64 bits of it."""
LARGEST_OF_NUMPY = 2**32 - 1
"""What NumPy's RandomState takes."""
_MOST = 10_000  # in one command


def read_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,2", "0-4" or "0-2,7" as numbers, in that order.

    Raises:
        ValueError: if it is anything else, or names a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*([0-9]{1,16})\s*(?:-\s*([0-9]{1,16})\s*)?", part)
        if span is None:
            raise ValueError(f"seeds must be numbers and ranges, as 0,1,2 or 0-4, got {text!r}")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise ValueError(f"seeds: the range {part.strip()!r} ends before it begins")
        if last - first >= _MOST:
            raise ValueError(f"seeds must be {_MOST} at most, got {text!r}")
        found += range(first, last + 1)
    return checked(found)


def checked(seeds: Any, *, most: int = LARGEST) -> tuple[int, ...]:
    """Seeds as a caller gives them, in a list.

    Raises:
        TypeError, ValueError: if that is no list of whole numbers from 0 to ``most``, or one is named twice.
    """
    if isinstance(seeds, (str, bytes, Mapping)) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be a list of whole numbers, such as [0, 1, 2], got {seeds!r}")
    found = tuple(whole_number(seed, "seeds", least=0, most=most) for seed in seeds)
    if not found:
        raise ValueError("seeds must be at least one")
    twice = next((seed for i, seed in enumerate(found) if seed in found[:i]), None)
    if twice is not None:
        raise ValueError(f"seeds must name each once, got {twice} twice")
    return found


def said_seeds(seeds: Sequence[int]) -> str:
    """Seeds as ``--seeds`` takes them, the shortest way."""
    parts, begin = [], 0
    for i in range(1, len(seeds) + 1):
        if i < len(seeds) and seeds[i] == seeds[i - 1] + 1:
            continue
        first, last = seeds[begin], seeds[i - 1]
        parts.append(f"{first}-{last}" if i - begin > 2 else ",".join(map(str, seeds[begin:i])))
        begin = i
    return ",".join(parts)


def united(known: Sequence[int], given: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a folder that has some and gets others: those that it has come first."""
    return tuple(dict.fromkeys((*known, *given)))


def as_list(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration of results with a list of its seeds; older ones say how many they were, from which on."""
    seeds = configuration.get("seeds")
    if not isinstance(seeds, int):
        return configuration
    values = dict(configuration)
    first = values.pop("first_seed", 0)
    return values | {"seeds": list(range(first, first + seeds))}
