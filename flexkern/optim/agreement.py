"""What all processes that train one network have to see alike: sums over a whole tensor, and refusals.

Each process that held its own opinion would step, or raise, or set another scale, and the others would wait
for it for ever or drift away from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from flexkern.optim.sharded import is_sharded

__all__ = ["anywhere", "mean"]


def anywhere(found: bool, params: Iterable[Tensor], device: torch.device | str = "cpu") -> bool:
    """Whether something was found in any process that holds a part of one of these parameters.

    All of them have to ask, in the same order; without sharded parameters nobody is asked.
    """
    meshes: list[Any] = []
    for p in params:
        mesh = getattr(p, "device_mesh", None) if is_sharded(p) else None
        if mesh is not None and mesh not in meshes and mesh.get_coordinate() is not None:
            meshes.append(mesh)
    if not meshes:
        return found
    import torch.distributed as dist

    for mesh in meshes:
        flag = torch.tensor(float(found), device=mesh.device_type)
        for group in mesh.get_all_groups():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group)
        found = bool(flag)
    return found


def mean(p: Tensor, part: Tensor) -> float:
    """The mean over a whole parameter of values that each process has its part of; waits for the device."""
    if not is_sharded(p):
        # In row-major order, so that the sum has the same bits for every memory layout.
        return part.contiguous().mean().item()
    import torch.distributed as dist

    sharded: Any = p
    mesh, placements = sharded.device_mesh, sharded.placements
    total = part.sum(dtype=torch.float64)
    if mesh.get_coordinate() is not None:
        # Sums over parts first. Processes with the same part then take one of their sums, as they need not
        # have added in the same order.
        for of_parts in (True, False):
            for i, placement in enumerate(placements):
                if hasattr(placement, "dim") == of_parts:
                    operation = dist.ReduceOp.SUM if of_parts else dist.ReduceOp.MAX
                    dist.all_reduce(total, operation, mesh.get_group(i))
    return total.item() / max(p.numel(), 1)
