"""Random calls of all public functions of flexkern.ops: a judged result, or a refusal that names its cause."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from flexkern.ops.checks import FLOAT_DTYPES
from fuzz import operator_calls
from fuzz.harness import fuzzer
from fuzz.operator_calls import Call
from helpers.draw import chance
from helpers.hostile import Memory, has_memory, has_values, odd_number, odd_tensor, odd_value, tensors_in

# What the arguments of a call are measured by: where one of these is odd, another may seem wrong beside it.
_MEASURES = ("weight", "x", "grad", "prototypes", "features", "words", "columns", "down", "anchor", "silent")
_OF_LANGUAGE = r"missing \d required|unexpected keyword"


@fuzzer("operators", quick=3000, full=200_000)
def case(rng: np.random.Generator) -> str:
    call = operator_calls.draw(rng)
    spoiled = [_spoil(rng, call.arguments) for _ in range(rng.integers(1, 3))] if chance(rng, 0.5) else []
    return judge(call, spoiled)


def judge(call: Call, spoiled: list[str]) -> str:
    """Makes the call and judges what came of it; ``spoiled`` names the arguments that may be wrong."""
    memory = Memory(call.arguments)
    before = {name: copied(value) for name, value in call.arguments.items()}
    try:
        result = call.function(**call.arguments)
    except Exception as error:
        if memory.has_changed():
            raise AssertionError(f"changed by a refusal: {error}") from error
        _check_refusal(call, spoiled, error)
        return "refused"
    written = [t for name in call.written for t in tensors_in(call.arguments.get(name))]
    assert not memory.has_changed_outside(written), "memory was changed that was not given to be written"
    if not spoiled and call.judge is not None:
        call.judge(before, call.arguments, result)
        return "right"
    _compare(call, before, result)
    return "right though odd" if spoiled else "as the reference"


# ------------------------------------------------------------------ refusals


def _check_refusal(call: Call, spoiled: list[str], error: Exception) -> None:
    message = str(error)
    if isinstance(error, FloatingPointError):
        assert call.arguments.get("nonfinite") == "raise", "FloatingPointError without nonfinite='raise'"
        return
    if not spoiled:
        raise error
    if isinstance(error, IndexError):
        allowed = "index" in message
    elif isinstance(error, RuntimeError):
        allowed = "inference tensor" in message
    else:
        allowed = isinstance(error, (TypeError, ValueError))
    own = "csrc" not in message and "flexkern::" not in message
    if not (allowed and own and _is_named(call, spoiled, message)):
        raise AssertionError(f"{spoiled}: {type(error).__name__}: {message[:300]}") from error


def _is_named(call: Call, spoiled: list[str], message: str) -> bool:
    if any(re.search(rf"\b{name}s?\b", message) for name in spoiled):
        return True
    # Two tensors that share memory, or do not fit: the message may name the other one, or both.
    measured = "shares memory" in message or any(name in _MEASURES for name in spoiled)
    return measured and any(re.search(rf"\b{name}\b", message) for name in (*call.arguments, "activities"))


# ------------------------------------------------------------------ odd arguments


def _spoil(rng: np.random.Generator, arguments: dict[str, Any]) -> str:
    """Puts something odd in place of one argument, and names it."""
    names = list(arguments)
    if not names:
        return "nothing"
    name = names[rng.integers(len(names))]
    value = arguments[name]
    others = [t for t in tensors_in(arguments) if t is not value]
    if chance(rng, 0.02):
        del arguments[name]
    elif isinstance(value, list) and value and chance(rng, 0.7):
        values = list(value)
        i, how = int(rng.integers(len(values))), rng.random()
        if how < 0.15:
            del values[i]
        elif how < 0.3:
            values.append(values[i])
        else:
            values[i] = odd_tensor(rng, values[i], others) if isinstance(values[i], Tensor) else odd_number(rng)
        arguments[name] = values if chance(rng, 0.8) else tuple(values)
    elif isinstance(value, Tensor) and value.numel() == 1 and name in ("lr", "scale", "threshold"):
        arguments[name] = odd_number(rng)
    elif name == "index" and chance(rng, 0.4) and _is_plain_index(value):
        arguments[name] = value.clone()
        arguments[name][rng.integers(len(value))] = int(rng.choice([-2, 100, 2**31 - 1, -(2**31)]))
    elif isinstance(value, Tensor):
        arguments[name] = odd_tensor(rng, value, others)
    elif isinstance(value, Field):
        wrong = (
            Field.normal(0), Field.normal_table(0), Field.uniform(0, low=-2.0, high=9.0),
            Field.biased_low(2**64 - 1, 2**32 - 1),
        )  # fmt: skip
        arguments[name] = wrong[rng.integers(len(wrong))] if chance(rng, 0.5) else odd_value(rng)
    elif name == "shape":
        arguments[name] = _SHAPES[rng.integers(len(_SHAPES))]
    elif isinstance(value, (str, bool)) or value is None:
        arguments[name] = odd_value(rng)
    else:
        arguments[name] = odd_number(rng)
    return name


def _is_plain_index(value: Any) -> bool:
    """Whether an entry may be written to: what was made odd before may have none, or may not hold numbers."""
    if not isinstance(value, Tensor) or not has_values(value):
        return False
    return value.dtype in (torch.int32, torch.int64) and value.dim() == 1 and value.numel() > 0


_SHAPES: tuple[Any, ...] = (
    -1,
    (-1,),
    (2.5,),
    "ab",
    b"ab",
    None,
    (2**62, 4),
    (2**40, 2**40),
    [3, 4],
    torch.Size((2,)),
    (True, 2),
    np.array([2, 3]),
    torch.tensor([2, 3]),
    torch.tensor(5),
    np.array(5),
    5,
    ((2,),),
    (None,),
    (10**400,),
    (np.int64(2),),
    torch.nested.nested_tensor([torch.zeros(2)]),
    torch.ones(2).to_sparse(),
    {},
    (torch.tensor([2, 2]),),
)


# ------------------------------------------------------------------ beside the reference


def copied(value: Any) -> Any:
    """The values as they are now; contiguous, of torch's own class, and without a gradient."""
    if isinstance(value, Tensor):
        if value.is_nested or value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return value
        with torch.inference_mode(False), torch.no_grad():
            plain = torch.empty(value.shape, dtype=value.dtype)
            return plain.copy_(value.detach().as_subclass(Tensor))
    if isinstance(value, list):
        return [copied(item) for item in value]
    return tuple(map(copied, value)) if type(value) is tuple else value


def _compare(call: Call, before: dict[str, Any], result: Any) -> None:
    """What the call gave and wrote is what the reference gives and writes, loosely."""
    # Nothing is said of tensors without values, and of gates that are none.
    if any(t.is_meta for t in tensors_in(call.arguments)) or not is_gate(before):
        return
    with flexkern.use_backend("reference"):
        expected = call.function(**before)
    assert_close("the result", result, expected, call.tolerance)
    places = Counter(t.untyped_storage().data_ptr() for t in tensors_in(call.arguments) if has_memory(t))
    for name in call.written:
        # What is also another argument's was written by that one too, if this one is not used.
        is_shared = any(
            has_memory(t) and places[t.untyped_storage().data_ptr()] > 1
            for t in tensors_in(call.arguments.get(name))
        )
        if name in before and not is_shared and not (name == "master" and _is_unused(before)):
            assert_close(name, call.arguments[name], before[name], call.tolerance)


def is_gate(arguments: dict[str, Any]) -> bool:
    """Whether the values of flexibility, alpha and means of squares, which nobody looks at, may be such."""
    gates = [t for name in ("flexibility", "alpha") for t in tensors_in(arguments.get(name))]
    squares = [t for name in ("exp_avg_sq", "max_exp_avg_sq") for t in tensors_in(arguments.get(name))]
    if not all(has_values(t) and t.dtype in FLOAT_DTYPES for t in (*gates, *squares)):
        return False
    return all(bool(((t >= 0) & (t <= 1)).all()) for t in gates) and all(bool((t >= 0).all()) for t in squares)


def _is_unused(arguments: dict[str, Any]) -> bool:
    """Whether a master is given for weights that need none."""
    return not any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors_in(arguments["weight"]))


def assert_close(name: str, got: Any, expected: Any, tolerance: float, bounds: Any = ()) -> None:
    """Within a share of each value, and of the largest one where values of all sizes are added up; or within
    ``bounds``, where each value may be as far off as its entry of these says."""
    of_each = [*tensors_in(bounds)]
    for i, (ours, theirs) in enumerate(zip(tensors_in(got), tensors_in(expected), strict=True)):
        if not (has_values(ours) and has_values(theirs)):
            continue
        assert ours.shape == theirs.shape, name
        assert ours.dtype == theirs.dtype, name
        if not ours.dtype.is_floating_point:
            assert torch.equal(ours.detach(), theirs), f"{name}: {ours} is not {theirs}"
            continue
        a, b = ours.detach().double(), theirs.detach().double()
        coarse = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}.get(ours.dtype, tolerance)
        size = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
        near = torch.isclose(
            a, b, rtol=max(coarse, tolerance), atol=tolerance * min(max(size, 1.0), 1e3), equal_nan=True
        )
        if of_each:
            near |= (a - b).abs() <= of_each[i].double()
        # Near the end of the range one of two orders of operations may overflow.
        end = 6e4 if ours.dtype is torch.float16 else 1e36
        near |= (~(a.abs() < end)) & (~(b.abs() < end))
        if not near.all():
            at = tuple((~near).nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int((~near).sum())} of {near.numel()} are off, at {at} got {a[at].item()!r}, the "
                f"reference {b[at].item()!r}"
            )


assert set(operator_calls.FUNCTIONS) | {"AdamWRule", "Conversions", "InsertionRule", "SgdRule"} == set(
    ops.__all__
)
