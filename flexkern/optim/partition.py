"""An optimizer that ZeroRedundancyOptimizer makes has some of a network's parameters; others are elsewhere.

What depends on all of them, a parameter's position and the measured scale, is the same on every process and
with any number of them.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Measured", "Partition", "partition_being_made"]


class Measured(NamedTuple):
    """What one process would make of ``scale="auto"`` for a group.

    place: of the parameter that it looked at, among all of the network; -1: it has nothing to look at.
    scale: the scale.
    error: why there is none, or "".
    waits: whether the group waits for one.
    """

    place: int = -1
    scale: float = 0.0
    error: str = ""
    waits: bool = False


class Partition:
    """The parameters of all processes, of which an optimizer has its share.

    Args:
        zero: the ZeroRedundancyOptimizer, which is referred to weakly.
    """

    def __init__(self, zero: Any) -> None:
        self._zero = weakref.ref(zero)
        self._group = zero.process_group

    def _param_groups(self) -> list[dict[str, Any]]:
        zero = self._zero()
        return [] if zero is None else zero.param_groups

    def places(self, params: Sequence[Tensor]) -> list[int]:
        """The position of each parameter among those of all processes."""
        place = {p: i for i, p in enumerate(p for group in self._param_groups() for p in group["params"])}
        return [place[p] for p in params]

    def places_in_group(self, params: Sequence[Tensor]) -> list[int]:
        """The position of each parameter in its group."""
        place = {p: i for group in self._param_groups() for i, p in enumerate(group["params"])}
        return [place[p] for p in params]

    def _gathered(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, self._group)
        return values

    def anywhere(self, found: bool) -> bool:
        """Whether something was found in any process; all have to ask."""
        return any(self._gathered(found))

    def agreed(self, measured: list[Measured], begun: bool) -> tuple[list[Measured], bool]:
        """Of each group what is to hold everywhere: what came from the last parameter, as in one process. And
        whether any process has begun; all have to ask."""
        everywhere = self._gathered((measured, begun))
        of_groups = zip(*(one for one, _ in everywhere), strict=True)
        last = [max(of_group, key=lambda one: (one.place, one.waits)) for of_group in of_groups]
        return last, any(one for _, one in everywhere)

    def tell(self, param_groups: list[dict[str, Any]], names: Sequence[str]) -> None:
        """Writes what this optimizer's groups have under these names into those of the outer one, which would
        set them back at its next step."""
        for outer, group in zip(self._param_groups(), param_groups, strict=False):
            outer.update({name: group[name] for name in names})


def partition_being_made() -> Partition | None:
    """The partition for which an optimizer is being made by a ZeroRedundancyOptimizer right now, or None."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return None
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        # It passes its share of the parameters on, and nothing by which one could tell that it is a share.
        if frame.f_code.co_name == "_init_local_optimizer":
            maker = frame.f_locals.get("self")
            if isinstance(maker, module.ZeroRedundancyOptimizer):
                return Partition(maker)
        frame = frame.f_back
    return None
