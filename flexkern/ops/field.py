"""Procedural fields as tensors (docs/design.md, Procedural fields)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.ops import checks
from flexkern.ops.operator import Attempt, Operator, is_plain, tries_compiled

__all__ = ["flexibility_field", "materialize"]


FILL = Operator("fill_field_")
_SHAPES = frozenset({tuple, list, torch.Size})
_INTS = frozenset({int})
_DEVICES = frozenset({type(None), torch.device, str, int})


def materialize(field: Field, shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """The float32 tensor that ``field`` stands for, bit-identical on every backend.

    Args:
        field: a :class:`flexkern.Field`.
        shape: of the result; positions count in row-major order from ``field.offset``.
        device: default: the current default device.

    Raises:
        TypeError: if ``field`` is not a Field, ``shape`` no sequence of ints, or ``device`` no device.
        ValueError: if a size is negative, no address space holds so many numbers, or there is no such device.
    """
    attempt = _attempt(field, shape, device) if tries_compiled() else None
    if attempt is None:
        return _checked(field, shape, device)
    FILL(attempt, _checked_fill, field, attempt[1][0])
    filled: Tensor = attempt[1][0]
    return filled


def _attempt(field: Any, shape: Any, device: Any) -> Attempt | None:
    """The call of the compiled operator, on a tensor that is there then; None if the checks must look first."""
    if type(field) is not Field or type(shape) not in _SHAPES or type(device) not in _DEVICES:
        return None
    if not _INTS.issuperset(map(type, shape)):  # True is no size
        return None
    try:
        out = torch.empty(shape, dtype=torch.float32, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError):  # the checks say what is wrong
        return None
    if FILL.goes_direct(out):
        return FILL.direct, (out, *field.row), ()
    return (FILL.compiled, (out, *field.row), ()) if is_plain(out, FILL, "materialize") else None


def _checked(field: Any, shape: Any, device: Any) -> Tensor:
    if not isinstance(field, Field):
        raise TypeError(f"field must be a flexkern.Field, got {type(field).__name__}")
    out = torch.empty(_shape(shape), dtype=torch.float32, device=_device(device))
    _checked_fill(field, out)
    return out


def _checked_fill(field: Field, out: Tensor) -> None:
    backend = FILL.choose(out, name="materialize")
    source, parameters = field.source()
    FILL.on(backend)(out, source, parameters)


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        given = list(shape)
    except (TypeError, RuntimeError):  # RuntimeError: of a tensor that has no parts to go through
        given = [None]
    if isinstance(shape, (str, bytes)) or any(size is None for size in given):
        raise TypeError(f"shape must be a sequence of ints, got {checks.shown(shape)}")
    sizes = tuple(checks.as_integer(size.item() if _is_integer(size) else size, "shape") for size in given)
    are_known = not torch.compiler.is_compiling()
    if any(size < 0 for size in sizes) or (are_known and 4 * math.prod(max(1, size) for size in sizes) >> 63):
        shown = ", ".join(map(str, map(checks.shown, sizes)))
        raise ValueError(f"shape must be of sizes >= 0 that an address space holds, got ({shown})")
    return sizes


def _is_integer(size: object) -> bool:
    return isinstance(size, Tensor) and size.dim() == 0 and size.layout is torch.strided and not size.is_meta


def _device(device: Any) -> torch.device | str | None:
    if device is None or isinstance(device, torch.device):
        return device
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise TypeError(f"device must be a torch.device or its name, got {checks.shown(device)}")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"device must be one that torch knows, got {checks.shown(device)}: {error}") from None


def flexibility_field(
    shape: Sequence[int],
    *,
    seed: int,
    stream: int = 0,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The uniform flexibility of a hybrid network, f = ((r >> 9) + 0.5) 2^-23, as a float32 tensor in (0, 1).

    Args:
        shape: of the result.
        seed, stream, offset: as in :class:`flexkern.Field`; each tensor of a network has its own stream.
        device: default: the current default device.

    Raises:
        TypeError, ValueError: if an argument is of a wrong type or out of range; the message names it.
    """
    # A Field takes longer to make and to check than a small tensor to fill.
    make = _uniform if type(seed) is type(stream) is type(offset) is int else _uniform.__wrapped__
    return materialize(make(seed, stream, offset), shape, device=device)


@functools.lru_cache(maxsize=1024)
def _uniform(seed: int, stream: int, offset: int) -> Field:
    return Field.uniform(seed, stream, offset=offset)
