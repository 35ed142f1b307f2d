"""A call of any operator of flexkern/spec, made from its declaration, for the suite over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.ops import adapter, displacement, field, linear, mask, metaplastic, null, synapse
from flexkern.ops.operator import Operator
from flexkern.spec import SPECS, Argument, Arguments

__all__ = ["OPERATORS", "dtypes_of", "make_call", "tensors_of"]

# Sizes by their names in declarations; none is a multiple of a vector, and rows end inside a word.
SIZES = {
    "out": 5, "in": 37, "words": 2, "batch": 3, "rows": 5, "columns": 37, "S": 3, "L": 2, "d": 11, "r": 3,
    "T": 2,
}  # fmt: skip
LIST_SHAPES = ((5, 7), (33,))  # of the weights of a list
_families = (adapter, displacement, field, linear, mask, metaplastic, null, synapse)
_named = [v for family in _families for v in vars(family).values()]
_found = [o for v in _named for o in (v.values() if isinstance(v, dict) else [v])]
OPERATORS: dict[str, Operator] = {o.spec.name: o for o in _found if isinstance(o, Operator)}
assert set(OPERATORS) == set(SPECS), "a declared operator has no Operator, or its module is missing here"


def dtypes_of(name: str) -> list[torch.dtype]:
    """The dtypes of the first floating-point argument, but for float64, which is the reference's."""
    first = next((a for a in SPECS[name].arguments if a.holds_tensors and "float32" in a.dtypes), None)
    names = [d for d in (first.dtypes if first else ("float32",)) if d != "float64"]
    return [getattr(torch, d) for d in names]


def _fill(a: Argument, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    positive = a.name in ("alpha", "flexibility", "exp_avg_sq", "max_exp_avg_sq")
    values = torch.rand(shape, generator=generator) if positive else torch.randn(shape, generator=generator)
    return values.to(dtype)


def make_call(
    name: str,
    dtype: torch.dtype,
    *,
    hebbian: bool = False,
    sizes: dict[str, int] = SIZES,
    list_shapes: Sequence[Sequence[int]] = LIST_SHAPES,
    seed: int = 7,
) -> Arguments:
    """Arguments that are all in order, with every tensor that may be given: all state is there and used."""
    spec = SPECS[name]
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {}
    for a in spec.arguments:
        if not a.holds_tensors:
            values[a.name] = _NUMBERS.get(a.name, 1.0 if a.type == "float" and a.required else a.default)
            if a.name in sizes:
                values[a.name] = sizes[a.name]
            if a.is_list and not values[a.name]:
                values[a.name] = ()
            continue
        of = dtype if dtype_name(dtype) in a.dtypes or not a.dtypes else getattr(torch, resolve(a, dtype))
        if a.name == "step":  # counted from 1
            counts = [torch.tensor(3.0 + i) for i in range(len(list_shapes))]
            values[a.name] = counts if a.is_list else counts[0]
        elif a.is_list:
            values[a.name] = [_fill(a, shape, of, generator) for shape in list_shapes]
        elif a.name.endswith("_tensor"):
            values[a.name] = torch.full((1,), 0.25)
        else:
            like = a.shape[0] if a.shape is not None and len(a.shape) == 1 else None
            known = values.get(like) if like else None
            shape = tuple(known.shape) if isinstance(known, Tensor) else _shape(a, sizes)
            values[a.name] = _fill(a, shape, of, generator)
    _SPECIAL.get(spec.family, lambda *_: None)(values, dtype, hebbian)
    return spec.record(**values)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def resolve(a: Argument, dtype: torch.dtype) -> str:
    """The dtype of an argument where the call's own does not fit: its first, or that of what it names."""
    first = a.dtypes[0]
    return dtype_name(dtype) if first in ("weight", "x") else first


def _shape(a: Argument, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[n] for n in a.shape) if a.shape and a.shape[0] in sizes else (5, 7)


_NUMBERS: dict[str, Any] = {
    "lr": 0.1, "scale": 3.0, "threshold": 0.5, "momentum": 0.9, "weight_decay": 0.1, "eta": 0.7, "prune": 0.01,
    "columns": SIZES["columns"], "dropout_p": 0.0, "keep_hidden": True, "need_x": True, "need_bank": True,
    "factor": 2.0, "source": [2, 1, 0, 0, 0], "parameters": (), "sources": (),
}  # fmt: skip


def _of_step(values: dict[str, Any], dtype: torch.dtype, hebbian: bool) -> None:
    if "grad" not in values:
        return
    values["alpha"] = ()  # the formula
    _exact(values, dtype)


def _of_displacement(values: dict[str, Any], dtype: torch.dtype, hebbian: bool) -> None:
    values["alpha"] = ()  # the formula
    # The master is of the weight before the step; made of these, or else they would take its place.
    values["master"] = () if dtype is torch.float32 else [w.float() for w in values["before"]]


def _exact(values: dict[str, Any], dtype: torch.dtype) -> None:
    """Masters hold what low-precision weights are the rounding of; float32 weights have none."""
    weights = values["weight"] if isinstance(values["weight"], list) else [values["weight"]]
    masters = [w.float() for w in weights]
    several = isinstance(values["weight"], list)
    if dtype is torch.float32:
        values["master"] = () if several else None
    else:
        values["master"] = masters if several else masters[0]


def _of_layer(values: dict[str, Any], dtype: torch.dtype, hebbian: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    silent = torch.rand(values["weight"].shape, generator=generator) < 0.4
    values["silent"] = reference.pack_mask(silent)
    values["weight"] = values["weight"].masked_fill(silent, 0.0)
    units_out, units_in = silent.shape
    values["activities"] = [torch.rand(units, generator=generator) for units in (units_in, units_out)]
    values["alpha"], values["hebbian"] = None, hebbian
    values["threshold_tensor"] = torch.full((units_out,), 0.5)
    _exact(values, dtype)


def _of_adapter(values: dict[str, Any], dtype: torch.dtype, hebbian: bool) -> None:
    samples, tasks = len(values["x"]), len(values["down"])
    values["index"] = (torch.arange(samples, 0, -1) % (tasks + 1)) - 1  # with 3 samples of 2 tasks: -1, 1, 0
    if "seed" in values:
        values["seed"] = None
    if "hidden" in values:
        values["hidden"] = values["hidden"].clamp(min=0)


def _of_field(values: dict[str, Any], dtype: torch.dtype, hebbian: bool) -> None:
    values["parameters"] = [0.0, 1.0]


_SPECIAL: dict[str, Callable[[dict[str, Any], torch.dtype, bool], None]] = {
    "metaplastic": _of_step, "synapse": _of_layer, "linear": _of_layer, "adapter": _of_adapter,
    "field": _of_field, "displacement": _of_displacement,
}  # fmt: skip


def tensors_of(given: Arguments) -> list[tuple[str, int, Tensor]]:
    """(argument, place in its list, tensor) of all tensors of a call."""
    found = []
    for a in given.spec.arguments:
        if a.holds_tensors:
            value = getattr(given, a.name)
            items = value if a.is_list else () if value is None else (value,)
            found += [(a.name, i, t) for i, t in enumerate(items)]
    return found
