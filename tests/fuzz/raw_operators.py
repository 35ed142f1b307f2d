"""Random calls of torch.ops.flexkern itself: the reference's results, or a refusal that has changed no byte."""

from __future__ import annotations

from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flexkern
from flexkern.spec import SPECS, Argument, Spec
from fuzz.harness import fuzzer
from fuzz.operators import assert_close, copied, is_gate
from helpers.calls import OPERATORS, dtypes_of, make_call
from helpers.draw import LOW, MATRICES, chance, either, shape_of
from helpers.hostile import Memory, has_values, odd_tensor, odd_value, tensors_in

_NUMBERS = (
    0.0,
    1.0,
    0.5,
    -1.0,
    np.nan,
    np.inf,
    -np.inf,
    1e38,
    1e39,
    -1e300,
    5e-324,
    0.9,
    3.0,
    2**70,
    -0.0,
    True,
)
_INTEGERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    -1,
    -5,
    31,
    32,
    33,
    64,
    2**31,
    2**32 - 1,
    2**32,
    2**62 - 1,
    2**63 - 1,
    -(2**63),
)
_CALLS = [(name, dtype) for name in sorted(SPECS) for dtype in dtypes_of(name)]
# What the dispatcher and the operators raise; anything else, or a signal, is a fault.
_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError)


@fuzzer("raw_operators", quick=3000, full=130_000)
def case(rng: np.random.Generator) -> str:
    name, dtype = _CALLS[rng.integers(len(_CALLS))]
    spec, operator = SPECS[name], OPERATORS[name]
    given = make_call(
        name,
        dtype,
        hebbian=chance(rng, 0.3),
        sizes=_sizes(rng),
        list_shapes=_list_shapes(rng),
        seed=int(rng.integers(1 << 31)),
    )
    values = dict(zip((a.name for a in spec.arguments), map(_guarded, given.values()), strict=True))
    of_one = operator.compiled_one is not None and chance(rng, 0.3)
    if of_one:
        values = {a.name: _first(a, values[a.name]) for a in spec.arguments}
    for _ in range(rng.integers(3)):
        _spoil(rng, spec.arguments[rng.integers(len(spec.arguments))], values, of_one=of_one)
    on = "reference" if not flexkern.backends()["cpu"].available or chance(rng, 0.1) else "cpu"
    call = operator.compiled_one if of_one else operator.on(on)
    return _judge(call, operator, values, of_one=of_one)


def _judge(call: Any, operator: Any, values: dict[str, Any], *, of_one: bool) -> str:
    memory = Memory(values)
    before = {name: copied(value) for name, value in values.items()}
    try:
        result = call(*values.values())
    except _ERRORS as error:
        changed = memory.has_changed()
        if changed or not str(error):
            raise AssertionError(f"changed by a refusal: {error}") from error
        return "refused"
    written = [a.name for a in operator.spec.arguments if a.written]
    assert not memory.has_changed_outside(t for name in written for t in tensors_in(values[name]))
    if values.get("weight") == []:
        return "nothing to do"
    tensors = list(tensors_in(values))
    if not all(map(has_values, tensors)) or not (is_gate(before) and _is_ordinary(before)):
        return "not compared"
    if of_one:
        before = {
            a.name: [v] if a.type == "Tensor[]" and isinstance(v := before[a.name], Tensor) else before[a.name]
            for a in operator.spec.arguments
        }
    unused = _unused(operator.spec, before)
    expected = operator.on("reference")(*({**before, **dict.fromkeys(unused)}).values())
    is_adapter = operator.spec.family == "adapter"
    # The reference adds products of the adapter up in float32, the kernels round between them.
    assert_close(
        "the result",
        result,
        expected,
        2.0**-4 if is_adapter else 2e-3,
        _bounds(operator, before) if is_adapter else (),
    )
    for name in written:
        if name not in unused:
            assert_close(name, values[name], before[name], 2e-3)
    return "right"


def _bounds(operator: Any, values: dict[str, Any]) -> list[Tensor]:
    """How far off sums of rounded products may be, also of such as cancel: a few roundings to bfloat16 of the
    sums of their absolute values."""
    sizes = {n: v.abs() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in values.items()}
    scale = abs(values["scale"])
    return [2.0**-6 * t.float() for t in operator.on("reference")(*{**sizes, "scale": scale}.values())]


def _unused(spec: Spec, values: dict[str, Any]) -> set[str]:
    """What kernels do not look at, and the reference does not take where it does not fit."""
    unused = set()
    if "master" in values and not any(t.dtype in LOW for t in tensors_in(values["weight"])):
        unused.add("master")
    if spec.rule is not None:
        rule = spec.rule(**{f.name: values[f.name] for f in fields(spec.rule)})
        unused |= set(rule.STATES) - set(rule.needs())
    return unused


def _is_ordinary(values: dict[str, Any]) -> bool:
    """Whether rows of integers are such as flexkern.Field makes, and numbers far from the ends of float32; of
    others all that is said is that they do no harm."""
    ints, parameters = [*_listed(values, "sources"), *_listed(values, "source")], _listed(values, "parameters")
    rows = [ints[i : i + 5] for i in range(0, len(ints), 5)]
    tensors = [t for name in values if name.endswith("_tensor") for t in tensors_in(values[name])]
    weight, master = values.get("weight"), values.get("master")
    if (
        isinstance(weight, Tensor)
        and isinstance(master, Tensor)
        and not torch.equal(master.to(weight.dtype), weight)
    ):
        return False  # of a silent synapse nothing says which one counts
    if not all(bool(((t > 0) & (t < 1e9)).all()) for t in tensors):
        return False
    numbers = [v for v in values.values() if isinstance(v, Real)] + parameters
    return all(
        0 <= stream < 1 << 32 and 0 <= offset < 1 << 62 and 0 <= purpose < 4
        for _, _, stream, offset, purpose in rows
    ) and all(abs(n) < 1e9 for n in numbers)


def _listed(values: dict[str, Any], name: str) -> list[Any]:
    """The numbers of a list that may be missing; also of an array, which the dispatcher takes for one."""
    value = values.get(name)
    return [] if value is None else list(value)


# ------------------------------------------------------------------ arguments


def _sizes(rng: np.random.Generator) -> dict[str, int]:
    out, units_in = either(rng, *MATRICES)
    words = -(-units_in // 32)
    sizes = {"out": out, "in": units_in, "words": words, "rows": out, "columns": units_in}
    drawn = {
        "batch": (0, 1, 2, 4),
        "S": (0, 1, 2, 5),
        "L": (0, 1, 3),
        "d": (1, 3, 8, 33),
        "r": (1, 2, 5),
        "T": (1, 2, 5),
    }
    return sizes | {name: int(either(rng, *values)) for name, values in drawn.items()}


def _list_shapes(rng: np.random.Generator) -> list[tuple[int, ...]]:
    return [shape_of(rng) for _ in range(rng.integers(1, 4))]


def _guarded(value: Any) -> Any:
    """Tensors that end where other numbers begin."""
    if isinstance(value, list):
        return [_guarded(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    around = value.new_full((value.numel() + 16,), 1)
    return around[8 : 8 + value.numel()].view(value.shape).copy_(value)


def _first(a: Argument, value: Any) -> Any:
    """What the overload of one tensor takes in place of a list."""
    if a.type != "Tensor[]":
        return value
    return value[0] if value else None


def _spoil(rng: np.random.Generator, a: Argument, values: dict[str, Any], *, of_one: bool) -> None:
    value = values[a.name]
    others = [t for t in tensors_in(values) if t is not value]
    if a.type == "Tensor[]" and not of_one:
        items = list(value) if isinstance(value, (list, tuple)) else [torch.zeros(3, 4)]
        how = rng.integers(5)
        if how == 0 or not items:
            items = [] if chance(rng, 0.5) else [*items, torch.rand(shape_of(rng))]
        else:
            i = int(rng.integers(len(items)))
            items[i] = odd_tensor(rng, items[i], others)
        values[a.name] = items
    elif a.holds_tensors:
        base = value if isinstance(value, Tensor) else torch.rand(shape_of(rng))
        values[a.name] = None if chance(rng, 0.1) else odd_tensor(rng, base, others)
    elif a.type == "int[]":
        weights = values.get("weight")
        count = len(weights) if isinstance(weights, list) else 1
        rows = int(rng.integers(3)) if chance(rng, 0.3) else 2 * count
        values[a.name] = [int(either(rng, *_INTEGERS)) for _ in range(5 * rows if a.name == "sources" else 5)]
    elif a.type == "float[]":
        values[a.name] = [float(either(rng, *_NUMBERS)) for _ in range(rng.integers(9))]
    elif a.type == "bool":
        values[a.name] = chance(rng, 0.5)
    else:
        values[a.name] = either(rng, *(_NUMBERS if a.type == "float" else _INTEGERS))
    if chance(rng, 0.02):
        values[a.name] = odd_value(rng)
