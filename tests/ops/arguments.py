"""Arguments of the steps that are in order, for tests that make one of them wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from judge import make_inputs, same_bits

__all__ = ["SHAPE", "Arguments", "gated", "refuses", "step_arguments"]

Arguments = dict[str, object]
SHAPE = (4, 6)


def step_arguments(dtype: torch.dtype = torch.float32, count: int = 1) -> Arguments:
    """Keyword arguments of metaplastic_sgd_ that are all in order; single tensors for ``count`` = 1."""
    inputs = [make_inputs(SHAPE, seed, dtype) for seed in range(count)]
    columns = [list(c) if count > 1 else c[0] for c in zip(*inputs, strict=True)]
    arguments: Arguments = dict(
        zip(("weight", "grad", "anchor", "flexibility", "momentum_buffer", "master"), columns, strict=True)
    )
    return {**arguments, "lr": 0.1, "scale": 20.0, "momentum": 0.9}


def gated(arguments: Arguments) -> Arguments:
    """The same for gated_sgd_: the flexibility serves as alpha."""
    arguments = dict(arguments)
    arguments["alpha"] = arguments.pop("flexibility")
    del arguments["anchor"], arguments["scale"]
    return arguments


def snapshot(arguments: Arguments) -> list[tuple[Tensor, Tensor, int]]:
    """Every dense tensor among the arguments, its values and its version."""
    values = [v for a in arguments.values() for v in (a if isinstance(a, list) else [a])]
    tensors = [v for v in values if isinstance(v, Tensor) and v.layout is torch.strided and not v.is_meta]
    return [(t, t.clone(), t._version) for t in tensors]


def refuses(call: Callable[..., None], arguments: Arguments, error: object, message: str) -> None:
    """``call`` raises, and has changed no argument by then."""
    before = snapshot(arguments)
    with pytest.raises(error, match=message):
        call(**arguments)
    for tensor, values, version in before:
        assert same_bits(tensor, values)
        assert tensor._version == version
