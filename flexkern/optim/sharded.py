"""Parameters of which each process holds a part (DTensor, of FSDP2 and tensor parallelism), and all others.

A step works on the part that is here. State is sharded as its parameter is, so checkpoints put it together.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
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

# Which positions of a dimension are here: a range where they follow one another.
_Positions = range | tuple[int, ...]


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor."""
    return hasattr(value, "_local_tensor")  # without importing torch.distributed, which takes long


@torch._disable_dynamo  # type: ignore[untyped-decorator]
def eagerly(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call, also where the caller is being compiled: torch.compile cannot look into a DTensor's parts, and
    fails within itself."""
    return call(*arguments)


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    sharded: Any = tensor
    if not is_sharded(tensor):
        return tensor
    local = sharded._local_tensor
    return local.wait() if hasattr(local, "wait") else local  # a collective may be under way


def like_parameter(p: Tensor, part: Tensor) -> Tensor:
    """State of this process's part of a parameter as a tensor that is sharded like it."""
    if not is_sharded(p):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = p
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


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
    for dim, positions in enumerate(_place(p)):
        value = _taken(value, dim, positions)
    return value.contiguous()


def field_here(p: Tensor, source: Any) -> Any:
    """A Field of the whole parameter, for this process's part of it; other sources as they are.

    A part of whole rows is a run of positions, so it has its own field. Of others the values are made.
    """
    if not isinstance(source, Field) or not is_sharded(p):
        return source
    place = _place(p)
    if not place:
        return source
    rows, others = place[0], place[1:]
    width = math.prod(p.shape[1:])
    if isinstance(rows, range) and all(of == range(size) for of, size in zip(others, p.shape[1:], strict=True)):
        return source.shard(rows.start * width)
    parts = [torch.empty((0, *map(len, others)), device=here(p).device)]
    most = max(_DRAWN_AT_ONCE // max(width, 1), 1)
    for run in _runs(rows):
        for first in range(run.start, run.stop, most):
            shape = (min(most, run.stop - first), *p.shape[1:])
            part = ops.materialize(source.shard(first * width), shape, device=here(p).device)
            for dim, positions in enumerate(others, 1):
                part = _taken(part, dim, positions)
            parts.append(part)
    return torch.cat(parts)


# ------------------------------------------------------------------ where a part is


def _place(p: Any) -> list[_Positions]:
    """Which positions of each dimension of a sharded parameter are here.

    Raises:
        ValueError: if its placements do not tell.
    """
    mesh, here_shape = p.device_mesh, here(p).shape
    at = mesh.get_coordinate()
    if at is None:  # this process has nothing of it
        return [range(size) for size in here_shape]
    place = []
    for dim, size in enumerate(p.shape):
        cuts = tuple(
            (mesh.size(i), at[i], getattr(placement, "split_factor", 1))
            for i, placement in enumerate(p.placements)
            if getattr(placement, "dim", None) == dim
        )
        # A strided cut of FSDP2 was made after those of tensor parallelism, which stand to its right. Where
        # all parts are of one size both orders give the same part.
        for order in (_as_made(cuts), cuts):
            positions = _cut(size, order)
            if len(positions) == here_shape[dim]:
                break
        else:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} with placements {p.placements} has a part of shape "
                f"{tuple(here_shape)} here, and it cannot be told which positions these are; shard it by "
                "fully_shard or distribute_tensor"
            )
        place.append(positions)
    return place


def _as_made(cuts: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """The cuts of a dimension (into how many, which one is here, split factor) in the order in which FSDP2 and
    tensor parallelism made them, as plain ones; as they are, where it was neither."""
    first, later = cuts[:1], cuts[1:]
    if first and first[0][2] > 1 and first[0][2] == math.prod(n for n, _, _ in later):
        return (*_as_made(later), (*first[0][:2], 1))
    return cuts


@functools.lru_cache(maxsize=1024)
def _cut(size: int, cuts: tuple[tuple[int, int, int], ...]) -> _Positions:
    positions: _Positions = range(size)
    for count, at, split in cuts:
        mine = [_chunk(_chunk(positions, split, i), count, at) for i in range(split)]
        joined = tuple(itertools.chain.from_iterable(mine))
        positions = range(joined[0], joined[-1] + 1) if joined and len(_runs(joined)) == 1 else joined
    return positions or range(0)


def _chunk(positions: _Positions, count: int, at: int) -> _Positions:
    """As torch.chunk, but there are always ``count``, the last of which may be empty."""
    length = -(-len(positions) // count)
    return positions[at * length : (at + 1) * length]


def _runs(positions: _Positions) -> list[range]:
    """The positions as ranges."""
    if isinstance(positions, range):
        return [positions] if positions else []
    numbers = enumerate(positions)
    runs = [[n for _, n in run] for _, run in itertools.groupby(numbers, lambda one: one[1] - one[0])]
    return [range(run[0], run[-1] + 1) for run in runs]


def _taken(value: Tensor, dim: int, positions: _Positions) -> Tensor:
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
