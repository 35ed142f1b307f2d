"""Numbers, flags and names that a caller gives, as plain Python values: checked where they come in.

A scalar of numpy and a tensor without dimensions are numbers, as everywhere in Python's numerical world. What
is kept is always an int, float, bool or str, so that a configuration is JSON from the start.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.spec.argument import shown

__all__ = ["SEEDS", "choice", "flag", "nearest", "number", "sizes", "whole_number"]

SEEDS = 2**64
"""Seeds are under it, and at least 0."""


def whole_number(
    value: object,
    name: str,
    *,
    least: int | None = 1,
    most: int | None = 2**63 - 1,
    kind: str = "a whole number",
) -> int:
    """``value`` as an int.

    Args:
        value: an int, an integer of numpy, or a tensor of integers without dimensions; no bool.
        name: of the argument, for the message.
        least, most: what it may be; None: anything.
        kind: what it must be, for the message.

    Raises:
        TypeError: if it is no whole number (a string, a float, a bool).
        ValueError: if it is not in the range.
    """
    plain = _plain(value)
    try:
        if isinstance(plain, (bool, Tensor, np.ndarray)):
            raise TypeError
        whole = operator.index(plain)
    except TypeError:
        raise TypeError(f"{name} must be {kind}, got {shown(value)}") from None
    if least is not None and whole < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(whole)}")
    if most is not None and whole > most:
        raise ValueError(f"{name} must be at most {most}, got {shown(whole)}")
    return whole


def number(
    value: object,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    kind: str | None = None,
) -> float:
    """``value`` as a finite float.

    Args:
        value: an int or float, a scalar of numpy, or a tensor without dimensions; no bool.
        name: of the argument, for the message.
        low, high: what it may be.
        above, below: ``low``, or ``high``, is itself not allowed.
        kind: what it must be, for the message; None: "a number", or the range.

    Raises:
        TypeError: if it is no number (a string, a bool).
        ValueError: if it is not finite, or not in the range.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} must be {kind or 'a number'}, got {shown(value)}")
    try:
        given = float(plain)
    except OverflowError:
        given = math.inf
    inside = (low < given if above else low <= given) and (given < high if below else given <= high)
    if not (math.isfinite(given) and inside):
        allowed = kind or _range(low, high, above, below)
        raise ValueError(f"{name} must be {allowed}, got {shown(plain)}")
    return given


def flag(value: object, name: str) -> bool:
    """``value`` as a bool.

    Raises:
        TypeError: unless it is True or False (or numpy's).
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def sizes(value: Any, name: str, *, count: int | None = None, what: str = "sizes") -> tuple[int, ...]:
    """A list of sizes as ints, each at least 1; ``count``: how many there must be.

    Raises:
        TypeError, ValueError: if it is not such a list.
    """
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be the {what}, got {shown(value)}")
    given = tuple(value)
    if count is not None and len(given) != count:
        raise ValueError(f"{name} must be the {what}, {count} numbers, got {given}")
    return tuple(whole_number(size, f"{name}[{i}]") for i, size in enumerate(given))


def choice(value: object, name: str, among: Iterable[str]) -> str:
    """``value``, which must be one of these names.

    Raises:
        ValueError: if it is not; with the name that was meant, if there is one like it.
    """
    known = tuple(among)
    if not (isinstance(value, str) and value in known):
        raise ValueError(f"{name} must be one of {known}, got {shown(value)}{nearest(value, known)}")
    return str(value)


def nearest(value: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of the known names is like ``value``, else nothing."""
    near = difflib.get_close_matches(value, list(known), n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _plain(value: Any) -> Any:
    """The Python value of a scalar of numpy or a tensor without dimensions; anything else as it is."""
    if isinstance(value, Tensor):
        if value.dim() or value.is_meta or value.layout is not torch.strided:
            return value
        return value.item()
    if isinstance(value, np.ndarray):
        return value.item() if not value.ndim else value
    return value.item() if isinstance(value, np.generic) else value


def _range(low: float, high: float, above: bool, below: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "finite"
    if high == math.inf:
        return f"finite and {'>' if above else '>='} {low:g}"
    return f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
