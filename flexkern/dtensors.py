"""DTensors: which part of a tensor this process has, of those that FSDP2 and tensor parallelism have cut.

Nothing here imports torch.distributed, which takes long, before there is such a tensor.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

from torch import Tensor

__all__ = ["Positions", "here", "is_sharded", "like_parameter", "place", "runs"]

# Which positions of a dimension are here: a range where they follow one another.
Positions = range | tuple[int, ...]


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor."""
    return hasattr(value, "_local_tensor")


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


def place(p: Any) -> list[Positions]:
    """Which positions of each dimension of a sharded parameter are here.

    Raises:
        ValueError: if its placements do not tell.
    """
    mesh, here_shape = p.device_mesh, here(p).shape
    at = mesh.get_coordinate()
    if at is None:  # this process has nothing of it
        return [range(size) for size in here_shape]
    places: list[Positions] = []
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
        places.append(positions)
    return places


def _as_made(cuts: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """The cuts of a dimension (into how many, which one is here, split factor) in the order in which FSDP2 and
    tensor parallelism made them, as plain ones; as they are, where it was neither."""
    first, later = cuts[:1], cuts[1:]
    if first and first[0][2] > 1 and first[0][2] == math.prod(n for n, _, _ in later):
        return (*_as_made(later), (*first[0][:2], 1))
    return cuts


@functools.lru_cache(maxsize=1024)
def _cut(size: int, cuts: tuple[tuple[int, int, int], ...]) -> Positions:
    positions: Positions = range(size)
    for count, at, split in cuts:
        mine = [_chunk(_chunk(positions, split, i), count, at) for i in range(split)]
        joined = tuple(itertools.chain.from_iterable(mine))
        positions = range(joined[0], joined[-1] + 1) if joined and len(runs(joined)) == 1 else joined
    return positions or range(0)


def _chunk(positions: Positions, count: int, at: int) -> Positions:
    """As torch.chunk, but there are always ``count``, the last of which may be empty."""
    length = -(-len(positions) // count)
    return positions[at * length : (at + 1) * length]


def runs(positions: Positions) -> list[range]:
    """The positions as ranges."""
    if isinstance(positions, range):
        return [positions] if positions else []
    numbers = enumerate(positions)
    found = [[n for _, n in run] for _, run in itertools.groupby(numbers, lambda one: one[1] - one[0])]
    return [range(run[0], run[-1] + 1) for run in found]
