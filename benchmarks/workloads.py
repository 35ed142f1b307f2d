"""What scripts/tune.py times: work for one kernel, or for one operator on several backends.

The work lies beside the benchmarks of its operator, in a ``bench_*.py``, and is registered there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexkern.benchmarks.ceilings import tf32

__all__ = [
    "FLOAT32",
    "ROUNDED",
    "SUMS",
    "Made",
    "Workload",
    "drawer",
    "of_backends",
    "of_kernels",
    "precision",
    "register",
    "shown",
    "weights",
]

LR, SCALE = 1e-6, 20.0  # so that weights stay where they are through thousands of timed steps
# Float32 sums of rounded products in another order: each of up to 1024 terms adds an error of 2^-24 of the
# partial sum, so 2^-14 of the largest; tensor cores cut off some bits more.
SUMS = 1e-3
FLOAT32 = 1e-5  # some roundings of float32, in another exponential or quantile too
ROUNDED = 2.0**-7  # and then rounded to bfloat16 twice, each time perhaps to the other neighbour
MILLIONS, SMALL = [1 << 26], 5000  # elements

Made = tuple[Callable[[], object], Callable[[], list[Tensor]]]  # a call, and what it wrote
Maker = Callable[[torch.device, Any, int], Made]


@dataclass(frozen=True)
class Workload:
    """Work for one kernel, or one operator.

    Args:
        kernel, variant: as in the tuning table; of an operator's work its name, and nothing.
        what: the work, in words.
        make: (device, shape, seed) to a call and its results.
        full: shapes that are timed.
        tiny: a small one, for comparing results.
        compiles: names of the variants that it needs, see :mod:`flexkern.triton_kernels.catalogue`.
        tolerance: of results, against those of another configuration; 0: the same bits.
        judged: tolerance of results against the reference's. These are what a call changes, not weights that
            hide a step.
        sets: how many sets of buffers are rotated, so that the L2 cache of 50 MB does not help.
        place: the lowest is timed first, as the time that is left may not reach the last.
    """

    kernel: str
    variant: str
    what: str
    make: Maker
    full: Sequence[Any]
    tiny: Any
    compiles: Sequence[str] = ()
    tolerance: float = 0.0
    judged: float = FLOAT32
    sets: int = 1
    place: int = 100

    def result(self, device: torch.device) -> list[Tensor]:
        """What one call gives on the small shape."""
        call, results = self.make(device, self.tiny, 1)
        call()
        return results()

    def calls(self, device: torch.device, shapes: str) -> list[list[Callable[[], object]]]:
        """For each shape a call for each set of buffers."""
        chosen = self.full if shapes == "full" else [self.tiny]
        return [[self.make(device, shape, seed)[0] for seed in range(self.sets)] for shape in chosen]


_registered: dict[tuple[str, str], Workload] = {}


def register(work: Workload) -> None:
    """Makes it known to scripts/tune.py.

    Raises:
        ValueError: if there is work for this kernel and variant, or operator, already.
    """
    key = (work.kernel, work.variant)
    if key in _registered:
        raise ValueError(f"there are two workloads for {' '.join(key).strip()!r}")
    _registered[key] = work


def of_kernels() -> list[Workload]:
    """Of all kernels that are tuned, the most important first."""
    return [work for work in _all() if work.variant]


def of_backends() -> list[Workload]:
    """Of all operators that several backends of a GPU have."""
    return [work for work in _all() if not work.variant]


def _all() -> list[Workload]:
    from flexkern.benchmarks.case import cases

    cases()  # imports the modules that register
    return sorted(_registered.values(), key=lambda work: work.place)


def precision(variant: str) -> AbstractContextManager[None]:
    """tf32 for the variants that have it in their name."""
    return tf32(variant.startswith("tf32"))


def drawer(device: torch.device, seed: int) -> Callable[..., Tensor]:
    """``draw(*shape, std=1.0, dtype=float32)``: normal values, the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, std: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(std).to(dtype)

    return draw


def weights(draw: Callable[..., Tensor], *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, anchor and flexibility."""
    w = draw(*shape, std=0.02)
    return w, w + draw(*shape, std=0.01), draw(*shape).sigmoid_()


def shown(weight: Tensor) -> tuple[float, Callable[[], Tensor]]:
    """lr, and what steps have changed of a weight: on a small one enough that a check sees the step."""
    if weight.numel() >= 1 << 20:
        return LR, lambda: weight
    start = weight.clone()
    return 1e-2, lambda: weight - start
