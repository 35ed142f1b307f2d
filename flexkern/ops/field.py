"""Procedural fields as tensors (docs/design.md, Procedural fields)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.ops.operator import Operator

__all__ = ["flexibility_field", "materialize"]


FILL = Operator("fill_field_")


def materialize(field: Field, shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """The float32 tensor that ``field`` stands for, bit-identical on every backend.

    Args:
        field: a :class:`flexkern.Field`.
        shape: of the result; positions count in row-major order from ``field.offset``.
        device: default: the current default device.

    Raises:
        TypeError: if ``field`` is not a Field.
    """
    if not isinstance(field, Field):
        raise TypeError(f"field must be a flexkern.Field, got {type(field).__name__}")
    out = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    backend = FILL.choose(out, name="materialize")
    source, parameters = field.source()
    FILL.on(backend)(out, source, parameters)
    return out


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
        ValueError: if seed, stream or offset is out of range.
    """
    return materialize(Field.uniform(seed, stream, offset=offset), shape, device=device)
