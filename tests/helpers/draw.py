"""Random arguments of operators that are all in order: values, layouts, sources, numbers of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern import Field
from flexkern.fields import Purpose

__all__ = [
    "LOW",
    "MATRICES",
    "SHAPES",
    "chance",
    "either",
    "exact_of",
    "field",
    "normal",
    "number",
    "number_of",
    "placed",
    "shape_of",
    "uniform",
    "wild",
]

# Empty, without dimensions, odd, larger than a vector.
SHAPES = (
    (),
    (1,),
    (5,),
    (0,),
    (33,),
    (3, 4),
    (0, 4),
    (4, 0),
    (1, 1),
    (7, 33),
    (2, 3, 4),
    (16, 17),
    (5, 1, 65),
    (1,) * 5,
)
MATRICES = ((1, 1), (3, 4), (4, 6), (5, 33), (2, 64), (7, 31), (0, 4), (4, 0), (9, 130), (3, 97))
LOW = (torch.bfloat16, torch.float16)
_WILD = [np.inf, -np.inf, np.nan, -0.0, 0.0, 3e38, -3e38, 1e-40, -1e-45, 1.2e-38]


def chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def either(rng: np.random.Generator, *values: Any) -> Any:
    return values[rng.integers(len(values))]


def exact_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all state of a weight."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def normal(rng: np.random.Generator, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.asarray(rng.standard_normal(shape, dtype=np.float32))).to(dtype)


def uniform(rng: np.random.Generator, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """On (2^-20, 1)."""
    values = np.asarray(rng.random(shape, dtype=np.float32))
    return torch.from_numpy(values).clamp_(min=2.0**-20).to(dtype)


def wild(rng: np.random.Generator, tensor: Tensor) -> Tensor:
    """The tensor with some elements that are infinite, NaN, subnormal, huge or -0."""
    if tensor.numel():
        places = rng.integers(tensor.numel(), size=1 + tensor.numel() // 16)
        drawn = torch.from_numpy(rng.choice(_WILD, size=len(places)))
        tensor = tensor.contiguous()
        tensor.view(-1)[torch.from_numpy(places)] = drawn.to(tensor.dtype)
    return tensor


def placed(rng: np.random.Generator, tensor: Tensor, *, written: bool) -> Tensor:
    """The same values in another layout, with other numbers around them."""
    how = rng.integers(9)
    if how == 0 and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 1 and tensor.dim():
        around = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), 3)
        return around[..., 1::2].copy_(tensor)
    if how == 2:
        around = tensor.new_full((tensor.numel() + 9,), 3)
        return around[3 : 3 + tensor.numel()].view(tensor.shape).copy_(tensor)
    if how == 3 and tensor.dim() > 1:
        around = tensor.new_full((3 * tensor.shape[0], *tensor.shape[1:]), 3)
        return around[::3].copy_(tensor)
    if how == 4 and not written and tensor.dim() and len(tensor):
        return tensor[:1].expand(tensor.shape)
    return torch.nn.Parameter(tensor, False) if how == 5 else tensor


def field(rng: np.random.Generator, *, of_anchor: bool) -> Field:
    seed, stream = int(rng.integers(1 << 63)), int(rng.integers(100))
    offset = int(either(rng, 0, 0, 1, 3, 17, 2**33 + 5, 2**61))
    if of_anchor:
        if chance(rng, 0.5):
            return either(rng, Field.normal, Field.normal_table)(seed, stream, std=0.5, offset=offset)
        return Field.uniform(seed, stream, low=-1.0, purpose=Purpose.ANCHOR, offset=offset)
    return either(rng, Field.uniform, Field.biased_high, Field.biased_low)(seed, stream, offset=offset)


def number(rng: np.random.Generator, *values: float, tensor: bool = True) -> Any:
    """One of these numbers, of any kind that an argument may be."""
    value = either(rng, *values)
    kinds: list[Any] = [float, float, float, np.float32, np.float64]
    if tensor:
        kinds += [torch.tensor, lambda v: torch.tensor([v])]
    if float(value).is_integer():
        kinds += [int, np.int64]
    made = either(rng, *kinds)(value)
    return made.float() if isinstance(made, Tensor) else made


def number_of(value: Any) -> float:
    """Its value."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def shape_of(rng: np.random.Generator) -> tuple[int, ...]:
    """Now and then larger than what one thread of the CPU's kernels takes at a time."""
    return (70_001,) if chance(rng, 0.001) else (4097,) if chance(rng, 0.01) else either(rng, *SHAPES)
