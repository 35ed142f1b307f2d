"""Arguments of the steps that are in order, for tests that make one of them wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern import reference
from helpers.judge import make_inputs, same_bits

__all__ = [
    "LAYOUTS",
    "SHAPE",
    "Arguments",
    "count_around",
    "gated",
    "lay_out",
    "linear_arguments",
    "refuses",
    "step_arguments",
    "synapse_arguments",
]

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


def synapse_arguments(dtype: torch.dtype = torch.float32, count: int = 1) -> Arguments:
    """Keyword arguments of synapse_step_ that are all in order; every second synapse is silent."""
    silent = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE) % 2 == 0
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    extra: Arguments = {
        "silent": [reference.pack_mask(silent) for _ in range(count)],
        "pre": [torch.ones(SHAPE[1], dtype=exact) for _ in range(count)],
        "post": [torch.ones(SHAPE[0], dtype=exact) for _ in range(count)],
    }
    arguments = step_arguments(dtype, count) | (extra if count > 1 else {k: v[0] for k, v in extra.items()})
    for name in ("weight", "master"):
        for tensor in arguments[name] if count > 1 else [arguments[name]]:
            tensor[silent] = 0.0
    return {**arguments, "threshold": 0.5}


def linear_arguments(dtype: torch.dtype = torch.float32) -> Arguments:
    """The same for linear_step_, with a batch of 3."""
    arguments = synapse_arguments(dtype)
    del arguments["grad"], arguments["pre"]
    generator = torch.Generator().manual_seed(5)
    for name, units in (("x", SHAPE[1]), ("grad_out", SHAPE[0]), ("post", SHAPE[0])):
        arguments[name] = torch.randn(3, units, generator=generator).to(dtype)
    return arguments


# --------------------------------------------------------------------------- layouts


LAYOUTS = ["transposed", "sliced", "unaligned"]


def around(dtype: torch.dtype) -> float:
    """What stands in memory beside the elements of a view. No last word of a row is that full."""
    return 7.5 if dtype.is_floating_point else 0x5A5A5A5A


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """A view with the values of a matrix in another layout."""
    rows, columns = tensor.shape
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "sliced":
        view = torch.full((rows, 2 * columns), around(tensor.dtype), dtype=tensor.dtype)[:, ::2]
    else:  # contiguous, but not on a vector's boundary
        view = torch.full((tensor.numel() + 40,), around(tensor.dtype), dtype=tensor.dtype)[
            1 : 1 + tensor.numel()
        ]
        view = view.view(rows, columns)
    return view.copy_(tensor)


def count_around(view: Tensor) -> int:
    """How many elements of the view's storage hold what stands around a view."""
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    return int((whole == around(view.dtype)).sum())


# --------------------------------------------------------------------------- refusals


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
