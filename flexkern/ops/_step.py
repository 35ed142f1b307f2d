"""What the in-place steps share: the checks of their arguments, and the way in which they write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import prefers_compiled_cpu
from flexkern.fields import STORED_SOURCE, Field, constant_source
from flexkern.ops import _checks

__all__ = [
    "NONFINITE",
    "PLAIN_RULE",
    "QUICK_NONFINITE",
    "Rule",
    "Sources",
    "are_numbers",
    "are_plain",
    "check_rule",
    "check_source",
    "check_step",
    "check_writes",
    "encode",
    "exact_dtype",
    "in_place",
    "momentum_and_master",
    "number",
    "quick_sources",
    "reference_sources",
    "split",
    "tries_compiled",
]

NONFINITE = ("raise", "skip", "propagate")
_T = TypeVar("_T")


# Types of what may be tried first: a subclass of Tensor may mean anything, and True is no number.
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_NUMBERS = frozenset({int, float})
# weight_decay, momentum, dampening, nesterov, maximize
Rule = tuple[float, float, float, bool, bool]
PLAIN_RULE: Rule = (0.0, 0.0, 0.0, False, False)
QUICK_NONFINITE = ("skip", "propagate")  # "raise" looks at the gradients first
# Of one weight, or of a list: the stored anchor and flexibility, then a row of integers and of floats for each
# source; None: all are stored.
Sources = tuple[Any, Any, list[int] | None, list[float] | None]


def are_numbers(values: Sequence[object]) -> bool:
    """Whether all are of type int or float."""
    return _NUMBERS.issuperset(map(type, values))


def tries_compiled() -> bool:
    """Whether to try the compiled CPU operator before the checks in Python, if ``are_plain`` agrees.

    The checks take several times as long as the operator with a small tensor, and it makes sure itself, before
    it writes, of all that they look at but for types, a few words and inference tensors. Where it refuses, the
    checks find out why, and say so.
    """
    return not torch.compiler.is_compiling() and prefers_compiled_cpu()


def are_plain(written: Sequence[Any]) -> bool:
    """Whether these are tensors on the CPU that may be updated at once: none is of a subclass (fake tensors
    are), none an inference tensor, and none float64, which is the reference's. The operator looks at all
    devices."""
    for tensor in written:
        if type(tensor) not in _TENSORS or tensor.is_inference():
            return False
    return len(written) > 0 and written[0].is_cpu and written[0].dtype is not torch.float64


@functools.lru_cache(maxsize=4096, typed=True)
def _row(source: Field | float, name: str) -> tuple[Sequence[int], Sequence[float]]:
    """The row of a source that is not stored, after its check."""
    if not isinstance(source, (Field, int, float)):
        raise TypeError
    check_source(source, name, torch.empty(0), torch.float32)
    return source.source() if isinstance(source, Field) else constant_source(float(source))


def quick_sources(anchor: Any, flexibility: Any) -> Sources | None:
    """Sources as the operators take them, after tries_compiled; None if the checks must look at them first."""
    if type(anchor) in _TENSORS and type(flexibility) in _TENSORS:
        return anchor, flexibility, None, None
    several = type(anchor) is list
    columns = (anchor, flexibility) if several else ([anchor], [flexibility])
    if type(columns[1]) is not list:
        return None
    stored: tuple[list[Tensor], list[Tensor]] = ([], [])
    ints: list[int] = []
    floats: list[float] = []
    try:
        for values, tensors, name in zip(columns, stored, ("anchor", "flexibility"), strict=True):
            for value in values:
                row = STORED_SOURCE
                if type(value) in _TENSORS:
                    tensors.append(value)
                else:
                    row = _row(value, name)
                ints += row[0]
                floats += row[1]
    except (TypeError, ValueError):
        return None
    if len(stored[0]) == len(columns[0]) and len(stored[1]) == len(columns[1]):
        return anchor, flexibility, None, None
    if several:
        return *stored, ints, floats
    a, f = (tensors[0] if tensors else None for tensors in stored)
    return a, f, ints, floats


def exact_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of all state of a weight: float64 for float64, else float32."""
    return torch.float64 if weight.dtype is torch.float64 else torch.float32


def reference_sources(
    weight: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
) -> tuple[list[Tensor], list[Tensor]]:
    """Anchors and flexibilities as tensors. The rows of ``sources`` are the anchors, then the flexibilities."""
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    a = reference.sources_to_tensors(anchor, sources[:half_ints], parameters[:half_floats], weight)
    f = reference.sources_to_tensors(flexibility, sources[half_ints:], parameters[half_floats:], weight)
    return a, f


def number(value: float, tensor: Tensor | None, like: Tensor) -> float | Tensor:
    return value if tensor is None else tensor.reshape(()).to(like.device)


def check_source(value: object, name: str, like: Tensor, dtype: torch.dtype) -> None:
    if isinstance(value, Field):
        if name == "flexibility" and not value.is_flexibility():
            raise ValueError(f"flexibility must be in [0, 1], got the field {value}")
        return
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "flexibility":
        if not 0 <= value <= 1:
            raise ValueError(f"flexibility must be in [0, 1], got {value}")
        return
    if not isinstance(value, Tensor):
        number = ", a number" if name == "flexibility" else ""
        raise TypeError(f"{name} must be a tensor{number} or a flexkern.Field, got {type(value).__name__}")
    _checks.check_matches(value, name, like, (dtype,))


def encode(
    anchor: Sequence[Tensor | Field], flexibility: Sequence[Tensor | Field | float]
) -> tuple[list[Tensor], list[Tensor], list[int], list[float]]:
    """The stored tensors of each, then one row of integers and of floats for each source, anchors first; no
    rows where all are stored."""
    tensors: tuple[list[Tensor], list[Tensor]] = ([], [])
    ints: list[int] = []
    floats: list[float] = []
    for values, stored in zip((anchor, flexibility), tensors, strict=True):
        for value in values:
            row = STORED_SOURCE
            if isinstance(value, Tensor):
                stored.append(value if value.is_contiguous() else value.contiguous())
            else:
                row = value.source() if isinstance(value, Field) else constant_source(float(value))
            ints += row[0]
            floats += row[1]
    if len(tensors[0]) == len(anchor) and len(tensors[1]) == len(flexibility):
        return *tensors, [], []
    return *tensors, ints, floats


def split(value: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, value) if isinstance(value, Tensor) else (float(value), None)


def check_rule(
    weight: Tensor,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    nonfinite: str,
) -> None:
    """Checks the numbers of a step.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _checks.check_number(lr, "lr", weight)
    for name, value in (("weight_decay", weight_decay), ("momentum", momentum)):
        if not 0 <= value <= _checks.LARGEST_NUMBER:
            raise ValueError(f"{name} must be >= 0 and at most {_checks.LARGEST_NUMBER}, got {value}")
    if not abs(dampening) <= _checks.LARGEST_NUMBER:
        raise ValueError(f"dampening must be a finite number, got {dampening}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("nesterov needs momentum > 0 and dampening = 0")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")


def check_step(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    nonfinite: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """Checks what all steps share and returns weights and gradients as lists."""
    weights = _checks.as_list(weight, "weight")
    grads = _checks.as_list(grad, "grad", len(weights))
    for w, g in zip(weights, grads, strict=True):
        _checks.check_matches(w, "weight", w, _checks.FLOAT_DTYPES)
        _checks.check_writable(w, "weight")
        if w.dtype != weights[0].dtype or w.device != weights[0].device:
            raise ValueError(
                f"weights of one call must share dtype and device, got {weights[0].dtype} on "
                f"{weights[0].device} and {w.dtype} on {w.device}; make one call for each"
            )
        _checks.check_matches(g, "grad", w, (w.dtype, torch.float32))
        if g.dtype != grads[0].dtype:
            raise ValueError(f"grads of one call must share a dtype, got {grads[0].dtype} and {g.dtype}")
    if weights:
        check_rule(weights[0], lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    return weights, grads


def _float32_state(
    value: Tensor | Sequence[Tensor] | None, name: str, weights: list[Tensor], needed: str
) -> list[Tensor]:
    """``momentum_buffer`` or ``master`` as a checked list, empty where none is needed."""
    if value is None:
        if needed:
            raise ValueError(f"{name} is needed: {needed}")
        return []
    exact = exact_dtype(weights[0])
    values = _checks.as_list(value, name, len(weights))
    for w, v in zip(weights, values, strict=True):
        _checks.check_matches(v, name, w, (exact,))
        _checks.check_writable(v, name)
    return values


def momentum_and_master(
    momentum_buffer: Tensor | Sequence[Tensor] | None,
    master: Tensor | Sequence[Tensor] | None,
    weights: list[Tensor],
    momentum: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The momentum buffers and masters of a step, checked; each list is empty where none is needed."""
    dtype = weights[0].dtype
    low = dtype in _checks.LOW_PRECISION
    buffers = _float32_state(
        momentum_buffer if momentum else None,
        "momentum_buffer",
        weights,
        "momentum is not 0" if momentum else "",
    )
    masters = _float32_state(
        master if low else None, "master", weights,
        f"a {dtype} weight cannot hold its displacement; pass weight.float() once and keep it" if low else "",
    )  # fmt: skip
    return buffers, masters


def check_writes(written: list[Tensor], read: Sequence[Tensor], names: str) -> None:
    """What may stand against writing to tensors of these names.

    Raises:
        ValueError: if a written tensor that is not contiguous shares memory with another argument (the
            operators themselves check contiguous ones).
        RuntimeError: if a written tensor is an inference tensor.
    """
    if torch.compiler.is_compiling():  # the addresses of traced tensors are not known
        return
    _checks.check_copied(written, read)
    if any(t.is_inference() for t in written) and not torch.is_inference_mode_enabled():
        raise RuntimeError(f"{names} is an inference tensor; pass a .clone() of it")


def in_place(written: list[Tensor], call: Callable[[list[Tensor]], _T]) -> _T:
    """Runs ``call`` on the written tensors as an operation that autograd knows of, after check_writes.

    The kernels index memory in row-major order: tensors of other layouts are stepped through dense copies.
    """
    dense = _checks.contiguous(written)
    with torch.no_grad():
        result = call(dense)
        for target, values in zip(written, dense, strict=True):
            if target is not values:
                target.copy_(values)
    # Operators outside ATen do not tell autograd that they wrote: a backward through an old value must raise.
    torch.autograd.graph.increment_version(written)
    return result
