"""Parameters of which each process holds a part (DTensor, of FSDP2 and tensor parallelism), and all others.

A step works on the part that is here. State is sharded as its parameter is, so checkpoints put it together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field

__all__ = ["field_here", "here", "like_parameter", "mean", "values_here"]


def _is_sharded(value: object) -> bool:
    return hasattr(value, "_local_tensor")  # without importing torch.distributed, which takes long


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    sharded: Any = tensor
    return sharded._local_tensor if _is_sharded(tensor) else tensor


def like_parameter(p: Tensor, part: Tensor) -> Tensor:
    """State of this process's part of a parameter as a tensor that is sharded like it."""
    if not _is_sharded(p):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = p
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def values_here(p: Tensor, value: Tensor) -> Tensor:
    """Of a value of the whole parameter's shape, the part that belongs to this process's part of ``p``."""
    if not _is_sharded(p):
        return value
    if _is_sharded(value):
        return here(value)
    first, shape = _place(p)
    for dim, (start, size) in enumerate(zip(first, shape, strict=True)):
        value = value.narrow(dim, start, size)
    return value.contiguous()


def field_here(p: Tensor, source: Any) -> Any:
    """A Field of the whole parameter, for this process's part of it; other sources as they are.

    A part of whole rows is a run of positions, so it has its own field. Of others the values are made.
    """
    if not isinstance(source, Field) or not _is_sharded(p):
        return source
    first, shape = _place(p)
    if all(start == 0 for start in first[1:]) and tuple(shape[1:]) == tuple(p.shape[1:]):
        return source.shard(first[0] * math.prod(p.shape[1:]) if first else 0)
    return values_here(p, ops.materialize(source, p.shape, device=here(p).device))


def mean(p: Tensor, part: Tensor) -> float:
    """The mean over a whole parameter of values that each process has its part of; waits for the device."""
    if not _is_sharded(p):
        # In row-major order, so that the sum has the same bits for every memory layout.
        return part.contiguous().mean().item()
    total: Any = like_parameter(p, part).sum()
    return total.full_tensor().item() / max(p.numel(), 1)


def _place(p: Any) -> tuple[tuple[int, ...], torch.Size]:
    """Where this process's part of a sharded parameter begins, and its shape."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, first = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return tuple(first), torch.Size(shape)
