"""Argument checks shared by the operators: they run before anything is changed and say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.ops.ordinary import check_memory, check_not_zero, is_ordinary, ordinary
from flexkern.spec.argument import LARGEST_NUMBER, SMALLEST_NUMBER, shown
from flexkern.spec.record import SHARED_MEMORY

__all__ = [
    "FLOAT_DTYPES",
    "LARGEST_NUMBER",
    "LOW_PRECISION",
    "as_integer",
    "as_list",
    "check_copied",
    "check_dense",
    "check_finite",
    "check_matches",
    "check_no_inference",
    "check_not_lost",
    "check_number",
    "check_switch",
    "check_word",
    "check_writable",
    "check_writes",
    "contiguous",
    "exact_dtype",
    "is_number",
    "native_dtypes",
    "shown",
]

LOW_PRECISION = (torch.bfloat16, torch.float16)
FLOAT_DTYPES = (torch.float32, torch.float64, *LOW_PRECISION)


def as_list(value: object, name: str, count: int | None = None) -> list:
    """A tensor, Field or number as a list of one; a list or tuple as a list of the expected length."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if count is not None and len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries but weight has {count}; give one for each weight")
    return values


def check_matches(
    tensor: object, name: str, like: Tensor, dtypes: Sequence[torch.dtype], *, like_name: str = "weight"
) -> None:
    """``tensor`` is a dense tensor of the shape and device of ``like`` with one of ``dtypes``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    check_dense(tensor, name)
    if tensor.dtype not in dtypes:
        allowed = " or ".join(dict.fromkeys(str(d) for d in dtypes))
        raise TypeError(f"{name} must be {allowed}, got {tensor.dtype}")
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {tuple(like.shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def check_dense(tensor: Tensor, name: str) -> None:
    """Not a sparse or a nested tensor: these have no shape, or no memory, to look at."""
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one; pass its parts, or pad them")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")
    check_memory(tensor, name)


def check_writable(tensor: Tensor, name: str) -> None:
    """No two elements of ``tensor`` share memory, as those of an expanded tensor do."""
    check_not_zero(tensor, name)
    if tensor.is_contiguous():
        return
    # A step along one dimension must lead past all that the dimensions of smaller steps reach. (No sorting:
    # torch.compile cannot sort sizes that change.)
    steps = [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    for i, (stride, _) in enumerate(steps):
        others = (s * (n - 1) for j, (s, n) in enumerate(steps) if j != i and s <= stride)
        if stride <= sum(others):
            raise ValueError(f"{name} is written but its elements overlap in memory; pass a .clone()")


def check_copied(written: Sequence[tuple[str, Tensor]], read: Sequence[tuple[str, Tensor]]) -> None:
    """As :meth:`flexkern.spec.Arguments.check_memory`, for written tensors that are not contiguous: they are
    stepped through a copy, so that the operator does not see what they share. Exact, as such views may
    interleave without overlapping."""
    for i, (name, tensor) in enumerate(written):
        if is_ordinary(tensor):
            continue
        storage = tensor.untyped_storage().data_ptr()
        others = [*(named for j, named in enumerate(written) if j != i), *read]
        others = [named for named in others if named[1].untyped_storage().data_ptr() == storage]
        mine = _byte_positions(tensor) if others else torch.empty(0)
        for other_name, other in others:
            if torch.isin(mine, _byte_positions(other)).any():
                raise ValueError(SHARED_MEMORY.format(name, other_name))


def _byte_positions(tensor: Tensor) -> Tensor:
    """Where in its storage each byte of ``tensor`` lies."""
    positions = torch.full((), int(tensor.storage_offset()), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        positions = positions.unsqueeze(-1) + torch.arange(size) * stride
    first = positions * tensor.element_size()
    return first.reshape(-1, 1) + torch.arange(tensor.element_size())


def check_writes(written: Sequence[tuple[str, Tensor]], read: Sequence[tuple[str, Tensor]]) -> None:
    """What may stand against writing to tensors; each has its argument's name.

    Raises:
        ValueError: if a written tensor that is not contiguous shares memory with another argument (the
            operators themselves check contiguous ones).
        RuntimeError: if a written tensor is an inference tensor.
    """
    if torch.compiler.is_compiling():  # the addresses of traced tensors are not known
        return
    check_copied(written, read)
    if not torch.is_inference_mode_enabled():
        for name, tensor in written:
            check_no_inference(tensor, name, "cannot be updated in place outside of inference mode")


def check_no_inference(tensor: Tensor, name: str, why: str) -> None:
    """RuntimeError, as torch raises, for a tensor that was made in inference mode."""
    if not torch.compiler.is_compiling() and tensor.is_inference():
        raise RuntimeError(f"{name} is an inference tensor; pass a .clone() of it: it {why}")


def exact_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of all state of a weight: float64 for float64, else float32."""
    return torch.float64 if weight.dtype is torch.float64 else torch.float32


def is_number(value: object) -> bool:
    """Whether it is a real number: also a scalar of numpy, and not a bool."""
    # The types first: under torch.compile a number may be a symbol that only looks like one of them.
    return isinstance(value, (int, float, Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool)


def check_word(value: object, name: str, allowed: Sequence[str]) -> None:
    """One of the words that are allowed.

    Raises:
        ValueError: if it is not.
    """
    # An array compares with a word element by element.
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {shown(value)}")


def check_switch(value: object, name: str) -> bool:
    """True or False, also numpy's.

    Raises:
        TypeError: if it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def as_integer(value: Any, name: str) -> Any:
    """An int, also numpy's, but no bool; a symbol of torch.compile as it is.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(value, torch.SymInt) or type(value) is int:
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name} must be an int, got {shown(value)}")


def check_not_lost(value: float, name: str) -> None:
    """A number is not 0 in float32 unless it is 0; where a small number means something else than 0.

    Raises:
        ValueError: if float32 cannot tell it from 0.
    """
    if value != 0 and -SMALLEST_NUMBER < 2 * value <= SMALLEST_NUMBER:
        raise ValueError(f"{name} must be 0 or at least {SMALLEST_NUMBER}, got {value}, which is 0 in float32")


def check_number(
    value: float | Tensor, name: str, like: Tensor, *, positive: bool = False, zero_is_special: bool = False
) -> None:
    """A finite number >= 0 (or > 0), or a one-element float32 tensor on the weight's device or the CPU.

    With ``positive`` or ``zero_is_special`` a number that is 0 in float32 only is refused.
    """
    if isinstance(value, Tensor):
        check_dense(value, name)
        if value.numel() != 1 or value.dtype is not torch.float32:
            raise ValueError(
                f"{name} as a tensor must be one float32 element, got {value.dtype}, shape {tuple(value.shape)}"
            )
        if value.device != like.device and value.device.type != "cpu":
            raise ValueError(f"{name} must be on {like.device} or the CPU, got {value.device}")
        return
    if not is_number(value):
        raise TypeError(f"{name} must be a number or a one-element tensor, got {type(value).__name__}")
    if isinstance(value, np.generic):  # a float16 does not compare with the largest number
        value = float(value)
    # Comparisons only: math.isfinite does not trace where torch.compile makes the number a symbol.
    if not 0 <= value <= LARGEST_NUMBER or (positive and value == 0):
        raise ValueError(
            f"{name} must be finite and {'> 0' if positive else '>= 0'}, got {shown(value)}; float32 kernels "
            f"take at most {LARGEST_NUMBER}"
        )
    if positive or zero_is_special:
        check_not_lost(value, name)


def check_finite(grads: Sequence[Tensor], name: str = "grad") -> None:
    """Raises FloatingPointError if an element is infinite or NaN; on a GPU this waits for the device."""
    for i, grad in enumerate(grads):
        if grad.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(grad)):
            raise FloatingPointError(
                f"{name}[{i}] of shape {tuple(grad.shape)} has infinite or NaN elements and nonfinite='raise'; "
                "nothing was changed"
            )


def contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor, or a dense row-major copy of its values where these do not stand so in memory."""
    return [ordinary(t) for t in tensors]


def native_dtypes(backend: str, dtype: torch.dtype) -> str | None:
    """Only the reference computes in float64; the kernels keep their state in float32."""
    if dtype is torch.float64 and backend != "reference":
        return "float64 is computed by the reference only; use float32, bfloat16 or float16"
    return None
