"""Operands of random calls, at any place in memory that is guarded on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern import Field

__all__ = [
    "COLUMNS", "DTYPES", "LENGTHS", "ROWS", "SIZES", "Places", "Random", "anchor", "chance", "choose", "field",
    "flexibility", "normal", "number", "spoiled", "unit",
]  # fmt: skip

Random = np.random.Generator
# Around the vectors of 4, the warps of 32, the tiles of 1024, and what eight blocks take at a time.
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 127, 255, 1023, 1024, 1025, 4093, 4096, 8192, 9001)
COLUMNS = (0, 1, 3, 4, 31, 32, 33, 36, 63, 64, 65, 68, 100, 128, 132, 257, 260, 1028)
ROWS = (0, 1, 2, 3, 5, 17, 33)
LENGTHS = (1, 1, 1, 2, 3, 5, 17, 30, 210)  # of lists: around the small table and the large one
# Of weight and gradient.
DTYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
)
SPECIAL = (float("inf"), float("-inf"), float("nan"), 6e4, 1e-40, 0.0)
GUARD = 77


def choose(r: Random, values: Any) -> Any:
    return values[int(r.integers(len(values)))]


def chance(r: Random, share: float) -> bool:
    return bool(r.random() < share)


def normal(r: Random, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
    return torch.from_numpy(r.standard_normal(shape, dtype=np.float32) * np.float32(std))


def unit(r: Random, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(r.random(shape, dtype=np.float32))


def spoiled(r: Random, t: Tensor) -> Tensor:
    """Sometimes with numbers that are not finite, or tiny, among the others."""
    if t.numel() and chance(r, 0.2):
        at = torch.from_numpy(r.integers(t.numel(), size=max(1, t.numel() // 50)))
        t.view(-1)[at] = choose(r, SPECIAL)
    return t


class Places:
    """Puts tensors at any alignment, at the very end of an allocation or before a guard band; what lies round
    them must stay, and what is only read."""

    def __init__(self, r: Random) -> None:
        self.random = r
        self.offset = choose(r, (0, 0, 1, 2, 3, 13))
        self.memories: list[tuple[Tensor, int, int]] = []  # with where the tensor begins and ends
        self.read: list[tuple[Tensor, Tensor]] = []  # and what it was

    def __call__(self, values: Tensor) -> Tensor:
        """One that may be written."""
        begin = choose(self.random, (self.offset, self.offset, 0))
        behind = choose(self.random, (0, 0, 1, 67))  # 0: AddressSanitizer guards what follows
        end = begin + values.numel()
        memory = torch.full((end + behind,), GUARD).to(values.dtype)
        self.memories.append((memory, begin, end))
        return memory[begin:end].view(values.shape).copy_(values)

    def reads(self, values: Any) -> Any:
        """One that must stay as it is; what is no tensor is passed on."""
        if not isinstance(values, Tensor):
            return values
        placed = self(values)
        self.read.append((placed, values))
        return placed

    def all(self, values: list[Any]) -> list[Any]:
        return [self(v) if isinstance(v, Tensor) else v for v in values]

    def all_read(self, values: list[Any]) -> list[Any]:
        return [self.reads(v) for v in values]

    def check(self) -> None:
        for memory, begin, end in self.memories:
            guard = torch.tensor(GUARD).to(memory.dtype)
            assert bool((memory[:begin] == guard).all()), "memory before a tensor was written"
            assert bool((memory[end:] == guard).all()), "memory behind a tensor was written"
        for placed, before in self.read:
            found, expected = (t.new_empty(t.numel()).copy_(t.reshape(-1)) for t in (placed, before))
            same_bytes = torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
            assert same_bytes, "what is only read was written"


def field(r: Random) -> Field:
    seed, stream = choose(r, (0, 1, 2**64 - 1, int(r.integers(2**62)))), choose(r, (0, 1, 2**32 - 1))
    offset = choose(r, (0, 1, 2, 3, 4, 5, 2**34 + 3, int(r.integers(10**6))))
    return choose(
        r,
        (
            Field.uniform(seed, stream, offset=offset),
            Field.uniform(seed, stream, low=-0.3, high=0.7, offset=offset),
            Field.normal(seed, std=0.02, stream=stream, offset=offset),
            Field.normal_table(seed, std=0.02, stream=stream, offset=offset),
            Field.biased_high(seed, offset=offset),
            Field.biased_low(seed, offset=offset),
        ),
    )


def flexibility(r: Random, shape: tuple[int, ...]) -> Any:
    seed, offset = int(r.integers(1000)), choose(r, (0, 1, 2, 3, 7, 2**34 + 5))
    return choose(
        r,
        (
            unit(r, shape), Field.uniform(seed, offset=offset), Field.biased_high(seed, offset=offset),
            Field.biased_low(seed, offset=offset), 0.0, 1.0, 0.3,
        ),
    )  # fmt: skip


def anchor(r: Random, weight: Tensor) -> Any:
    return field(r) if chance(r, 0.4) else weight + normal(r, tuple(weight.shape), 0.05)


def number(r: Random, value: float) -> Any:
    """Sometimes as a tensor, which the kernel reads."""
    return torch.tensor([value]) if chance(r, 0.2) else value
