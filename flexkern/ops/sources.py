"""Anchors and flexibilities as the operators take them: stored tensors, and rows that describe the others."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern.fields import STORED_SOURCE, Field, constant_source
from flexkern.ops import checks
from flexkern.ops.operator import is_tensor
from flexkern.ops.ordinary import ordinary

__all__ = ["FREE", "Sources", "check_source", "encode", "free", "quick_sources", "single"]


class Sources(NamedTuple):
    """The sources of one weight, or of a list of them, as an operator takes them.

    anchor, flexibility: those that are stored, in order.
    rows, numbers: one row of integers and of floats for each source, anchors first; None: all are stored.
    """

    anchor: Any
    flexibility: Any
    rows: list[int] | None
    numbers: list[float] | None


# The rows of an anchor that nothing looks at, and of f = 1.
FREE = (constant_source(0.0), constant_source(1.0))


def free(count: int) -> Sources:
    """The sources of weights that move freely."""
    (a_ints, a_floats), (f_ints, f_floats) = FREE
    return Sources(None, None, a_ints * count + f_ints * count, a_floats * count + f_floats * count)


def check_source(value: object, name: str, like: Tensor, dtype: torch.dtype) -> None:
    """One anchor or flexibility, by the name of the argument.

    Raises:
        TypeError, ValueError: naming it.
    """
    if isinstance(value, Field):
        if name == "flexibility" and not value.is_flexibility():
            raise ValueError(f"flexibility must be in [0, 1], got the field {value}")
        return
    if name == "flexibility" and checks.is_number(value):
        number: Any = value
        if not 0 <= number <= 1:
            raise ValueError(f"flexibility must be in [0, 1], got {checks.shown(value)}")
        return
    if not isinstance(value, Tensor):
        or_number = ", a number" if name == "flexibility" else ""
        raise TypeError(f"{name} must be a tensor{or_number} or a flexkern.Field, got {type(value).__name__}")
    checks.check_matches(value, name, like, (dtype,))


def encode(anchor: Sequence[Tensor | Field], flexibility: Sequence[Tensor | Field | float]) -> Sources:
    """The sources of a list of weights, which have been checked; stored ones become contiguous."""
    tensors: tuple[list[Tensor], list[Tensor]] = ([], [])
    ints: list[int] = []
    floats: list[float] = []
    for values, stored in zip((anchor, flexibility), tensors, strict=True):
        for value in values:
            row = STORED_SOURCE
            if isinstance(value, Tensor):
                stored.append(ordinary(value))
            else:
                row = value.source() if isinstance(value, Field) else constant_source(float(value))
            ints += row[0]
            floats += row[1]
    if len(tensors[0]) == len(anchor) and len(tensors[1]) == len(flexibility):
        return Sources(*tensors, None, None)
    return Sources(*tensors, ints, floats)


def single(sources: Sources) -> Sources:
    """Those of a list of one weight, for an operator that takes one."""
    a, f = (stored[0] if stored else None for stored in (sources.anchor, sources.flexibility))
    return Sources(a, f, sources.rows, sources.numbers)


# ------------------------------------------------------------------ before the checks


@functools.lru_cache(maxsize=4096, typed=True)
def _row(source: Field | float, name: str) -> tuple[Sequence[int], Sequence[float]]:
    """The row of a source that is not stored, after its check."""
    if not isinstance(source, Field) and not checks.is_number(source):
        raise TypeError
    check_source(source, name, torch.empty(0), torch.float32)
    return source.source() if isinstance(source, Field) else constant_source(float(source))


def quick_sources(anchor: Any, flexibility: Any) -> Sources | tuple[Any, Any, Any, Any] | None:
    """Sources of one weight or a list, for an attempt; None if the checks must look at them first."""
    if is_tensor(anchor) and is_tensor(flexibility):
        return anchor, flexibility, None, None
    if type(anchor) is Field and type(flexibility) is Field and flexibility.is_flexibility():
        (a_ints, a_floats), (f_ints, f_floats) = anchor.row, flexibility.row
        return None, None, a_ints + f_ints, a_floats + f_floats
    several = type(anchor) is list
    columns = (anchor, flexibility) if several else ([anchor], [flexibility])
    if type(columns[1]) is not list:
        return None
    stored: tuple[list[Tensor], list[Tensor]] = ([], [])
    ints: list[int] = []
    floats: list[float] = []
    try:
        for values, tensors, name in zip(columns, stored, ("anchor", "flexibility"), strict=True):
            for value in values:
                row = STORED_SOURCE
                if is_tensor(value):
                    tensors.append(value)
                elif type(value) is Field and (name == "anchor" or value.is_flexibility()):
                    row = value.row
                else:
                    row = _row(value, name)
                ints += row[0]
                floats += row[1]
    except (TypeError, ValueError):
        return None
    if len(stored[0]) == len(columns[0]) and len(stored[1]) == len(columns[1]):
        return anchor, flexibility, None, None
    sources = Sources(*stored, ints, floats)
    return sources if several else single(sources)
