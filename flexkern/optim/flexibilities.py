"""Each parameter's flexibility and anchor, from what its group says and from its name or position.

A procedural flexibility is drawn from a seed and a stream. The stream belongs to the parameter: it comes from
its name where it has one, so that a part of a network, in whatever optimizer or process it is, draws what it
would draw in the whole network; else from its position among all that were added to the optimizer.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flexkern.fields import Field, Kind, Purpose
from flexkern.ops import checks
from flexkern.ops.checks import exact_dtype
from flexkern.spec.argument import shown

__all__ = [
    "EACH",
    "Flexibility",
    "anchors_of",
    "field_of",
    "flexibilities_of",
    "going_on",
    "group_setting",
    "is_distribution",
    "is_each",
    "is_named",
    "is_never_zero",
    "plain",
    "stream_of_name",
]

Flexibility = Tensor | Field | float
EACH = "each"  # stands in a group for a setting that was given parameter by parameter
DISTRIBUTIONS: dict[str, Callable[[int, int], Field]] = {
    "uniform": Field.uniform,
    "biased_high": Field.biased_high,
    "biased_low": Field.biased_low,
}
NAMED = 1 << 31  # streams of names are at least this, positions are less
# What wrappers put into the names of a model's parameters: DistributedDataParallel (at the front only: a model
# may have a part of that name), torch.compile, fully sharded data parallel, activation checkpointing, Fabric.
_FRONT = "module."
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")


def stream_of_name(name: str) -> int:
    """The stream of a parameter of this name in a model, wrapped or not: 2**31 and 31 bits of its SHA-256."""
    for part in _INSIDE:
        name = name.replace(part, "")
    name = name.removeprefix(_FRONT)
    return NAMED | (int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") & (NAMED - 1))


def is_named(stream: int) -> bool:
    """Whether a stream came from a name."""
    return stream >= NAMED


# ------------------------------------------------------------------ settings of a group


def _for_each(value: Sequence[Any], name: str, params: Sequence[Tensor]) -> list[Any]:
    if len(value) != len(params):
        raise ValueError(
            f"{name} has {len(value)} entries but its group has {len(params)} parameters; give one for each"
        )
    return list(value)


def _streams(field: Field, places: Sequence[int]) -> list[Field]:
    """A field for each parameter: each has its own stream, or all would get the same values."""
    return [replace(field, stream=field.stream + i) for i in places]


def _checked(value: object, name: str, p: Tensor, moves_freely: bool) -> Flexibility:
    if isinstance(value, Field):
        if not value.is_flexibility():
            raise ValueError(
                f"{name} must be a Field with values in [0, 1]: uniform with 0 <= low < high <= 1, biased_high "
                f"or biased_low; got {value}"
            )
        return value
    if isinstance(value, Tensor):
        if moves_freely:
            raise ValueError(
                f"{name} is a tensor, but its parameter has fewer than two dimensions and moves freely; set "
                "flexible_vectors=True to make it flexible, or give 1.0"
            )
        checks.check_matches(value, name, p, (torch.float32, torch.float64), like_name="its parameter")
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name} must hold values in [0, 1] only")
        return value.detach().to(exact_dtype(p))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number: Any = value  # compared before it is a float: an int may be too large to become one
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {shown(value)}")
        return float(value)
    raise TypeError(f"{name} must be a number, a tensor or a flexkern.Field, got {shown(value)}")


def flexibilities_of(
    group: dict[str, Any], params: Sequence[Tensor], streams: Sequence[int], places: Sequence[int]
) -> list[Flexibility]:
    """The flexibility of each parameter, as the group's setting says; ``streams`` has theirs, and ``places``
    their positions in the group.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    value = group["flexibility"]
    values: list[Any]
    if isinstance(value, str):
        if value not in DISTRIBUTIONS:
            raise ValueError(
                f"flexibility must be one of {tuple(DISTRIBUTIONS)}, a number, a tensor or a flexkern.Field, "
                f"got {shown(value)}"
            )
        values = [DISTRIBUTIONS[value](group["seed"], stream) for stream in streams]
    elif isinstance(value, Field):
        values = list(_streams(value, places))
    elif isinstance(value, (list, tuple)):
        values = _for_each(value, "flexibility", params)
    elif isinstance(value, Tensor) and len(params) != 1:
        raise ValueError(
            f"flexibility is one tensor but its group has {len(params)} parameters; give a list of one for each"
        )
    else:
        values = [value] * len(params)
    free = group["flexible_vectors"]
    return [
        _checked(v, f"flexibility[{i}]", p, p.dim() < 2 and not free)
        for i, (v, p) in enumerate(zip(values, params, strict=True))
    ]


def anchors_of(group: dict[str, Any], params: Sequence[Tensor], places: Sequence[int]) -> list[Field | None]:
    """The field that each parameter began from, as the group's setting says; None: a copy will be stored.
    ``places`` has the parameters' positions in the group.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    value = group["anchor"]
    if isinstance(value, (list, tuple)):
        anchors = _for_each(value, "anchor", params)
    elif isinstance(value, Field):
        anchors = list(_streams(value, places))
    else:
        anchors = [value] * len(params)
    for i, anchor in enumerate(anchors):
        if anchor is not None and not isinstance(anchor, Field):
            raise TypeError(
                f"anchor[{i}] must be None (a copy is taken at the first step) or the flexkern.Field that its "
                f"weight was initialised from, got {type(anchor).__name__}"
            )
    return anchors


def group_setting(value: Any) -> Any:
    """How a group goes on holding a setting that has been looked at."""
    if isinstance(value, (str, Field)) or value is None:
        return value
    return float(value) if isinstance(value, numbers.Real) else EACH


def is_each(setting: Any) -> bool:
    """Whether a group's setting was given parameter by parameter."""
    return isinstance(setting, str) and setting == EACH


def is_distribution(setting: Any) -> bool:
    """Whether a group's flexibility is the name of one, to be drawn from each parameter's stream."""
    return isinstance(setting, str) and setting in DISTRIBUTIONS


def going_on(setting: Any, known: Sequence[Any]) -> Any:
    """A group's setting for parameters that come after ``known`` ones, which have these values."""
    if not isinstance(setting, Field):
        return setting
    streams = [value.stream for value in known if isinstance(value, Field)]
    return replace(setting, stream=max([setting.stream - 1, *streams]) + 1)


def is_never_zero(flexibility: Flexibility) -> bool:
    """Whether f > 0 is sure without looking at a tensor: then alpha is exactly 1 where w = a."""
    if isinstance(flexibility, Tensor):
        return False
    # Procedural values lie inside their interval, whose bounds have been checked.
    return isinstance(flexibility, Field) or flexibility >= torch.finfo(torch.float32).tiny


# ------------------------------------------------------------------ plain forms, for checkpoints


def plain(value: Any) -> Any:
    """A Field as a dictionary of numbers (all that torch.distributed.checkpoint takes); others unchanged."""
    if not isinstance(value, Field):
        return value
    low, high = value.parameters
    return {
        "kind": int(value.kind),
        "seed": value.seed,
        "stream": value.stream,
        "purpose": int(value.purpose),
        "offset": value.offset,
        "low": low,
        "high": high,
    }


def field_of(value: Any) -> Any:
    """The inverse of :func:`plain`; also of the dictionaries with names that earlier versions wrote.

    Raises:
        ValueError: if a dictionary is not a Field.
    """
    if not isinstance(value, dict):
        return value
    try:
        kind, purpose = value["kind"], value["purpose"]
        kind = Kind[kind.upper()] if isinstance(kind, str) else Kind(kind)
        purpose = Purpose[purpose.upper()] if isinstance(purpose, str) else Purpose(purpose)
        low, high = value["parameters"] if "parameters" in value else (value["low"], value["high"])
        return Field(kind, value["seed"], value["stream"], purpose, value["offset"], (low, high))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state_dict: {shown(value)} is not a flexkern.Field: {error}") from None
