"""Parameters of which each process holds a part (DTensor, of FSDP2 and tensor parallelism), and all others.

A step works on the part that is here. State is sharded as its parameter is, so checkpoints put it together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.dtensors import Positions, here, is_sharded, like_parameter, place, runs
from flexkern.fields import Field

__all__ = [
    "check_gradient",
    "check_laid_out",
    "check_not_flattened",
    "eagerly",
    "field_here",
    "here",
    "is_sharded",
    "like_parameter",
    "values_here",
]

_DRAWN_AT_ONCE = 1 << 22  # elements of a field, of which only some belong to this process


@torch._disable_dynamo  # type: ignore[untyped-decorator]
def eagerly(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call, also where the caller is being compiled: torch.compile cannot look into a DTensor's parts, and
    fails within itself."""
    return call(*arguments)


def values_here(p: Tensor, value: Tensor) -> Tensor:
    """Of a value of the whole parameter's shape, the part that belongs to this process's part of ``p``."""
    laid_out: Any = value
    like: Any = p
    if is_sharded(value):
        if is_sharded(p) and _layout(value) == _layout(p):
            return here(value)
        if is_sharded(p) and laid_out.device_mesh == like.device_mesh:
            return here(laid_out.redistribute(placements=like.placements))
        value = laid_out.full_tensor()
    if not is_sharded(p):
        return value
    for dim, positions in enumerate(place(p)):
        value = _taken(value, dim, positions)
    return value.contiguous()


def field_here(p: Tensor, source: Any) -> Any:
    """A Field of the whole parameter, for this process's part of it; other sources as they are.

    A part of whole rows is a run of positions, so it has its own field. Of others the values are made.
    """
    if not isinstance(source, Field) or not is_sharded(p):
        return source
    places = place(p)
    if not places:
        return source
    rows, others = places[0], places[1:]
    width = math.prod(p.shape[1:])
    if isinstance(rows, range) and all(of == range(size) for of, size in zip(others, p.shape[1:], strict=True)):
        return source.shard(rows.start * width)
    parts = [torch.empty((0, *map(len, others)), device=here(p).device)]
    most = max(_DRAWN_AT_ONCE // max(width, 1), 1)
    for run in runs(rows):
        for first in range(run.start, run.stop, most):
            shape = (min(most, run.stop - first), *p.shape[1:])
            part = ops.materialize(source.shard(first * width), shape, device=here(p).device)
            for dim, positions in enumerate(others, 1):
                part = _taken(part, dim, positions)
            parts.append(part)
    return torch.cat(parts)


def _taken(value: Tensor, dim: int, positions: Positions) -> Tensor:
    if isinstance(positions, range):
        return value.narrow(dim, positions.start, len(positions))
    return value.index_select(dim, torch.tensor(positions, device=value.device))


# ------------------------------------------------------------------ what cannot be stepped


def check_laid_out(p: Any, name: str) -> None:
    """A parameter of which each process holds values, and not a summand of them.

    Raises:
        ValueError: naming it.
    """
    if is_sharded(p) and any(placement.is_partial() for placement in p.placements):
        raise ValueError(
            f"{name} is a DTensor with placements {p.placements}: its value is a sum over processes, which no "
            "step on one of them can change; redistribute it to Shard or Replicate"
        )


def check_not_flattened(params: Iterable[Tensor]) -> None:
    """Parameters that FullyShardedDataParallel (FSDP1) has not made one vector of.

    Raises:
        ValueError: if it has.
    """
    # A unit that is not sharded leaves the shapes of its parameters as they are, so there are matrices.
    marked = [p for p in params if getattr(p, "_fsdp_flattened", False)]
    if any(getattr(p, "_is_flat_param", False) for p in marked) or (
        marked and all(p.dim() < 2 for p in marked)
    ):
        raise ValueError(
            "params: FullyShardedDataParallel (FSDP1) has flattened these parameters, so that a weight cannot "
            "be told from a bias, nor where it began; shard the model by "
            "torch.distributed.fsdp.fully_shard (FSDP2), which keeps shapes, and make the optimizer after it"
        )


def check_gradient(p: Any, i: int) -> None:
    """Brings the gradient of a sharded parameter to the parameter's own placements, where autograd left
    others (a sum over processes, for a weight of which each has all).

    Raises:
        TypeError: if only one of both is sharded, or on another mesh.
    """
    grad = p.grad
    if not is_sharded(p) and not is_sharded(grad):
        return
    if is_sharded(p) != is_sharded(grad) or p.device_mesh != grad.device_mesh:
        kinds = [f"{_layout(t)}" if is_sharded(t) else "no DTensor" for t in (grad, p)]
        raise TypeError(
            f"gradient of parameter {i} of its group, shape {tuple(p.shape)}, is {kinds[0]} and the parameter "
            f"is {kinds[1]}; both must be DTensors of one mesh, or neither"
        )
    if _layout(grad) != _layout(p):
        p.grad = grad.redistribute(placements=p.placements)


def _layout(tensor: Any) -> tuple[Any, Sequence[Any]]:
    return tensor.device_mesh, tuple(tensor.placements)
