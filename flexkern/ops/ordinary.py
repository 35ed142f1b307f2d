"""Tensors that are dense but not what stands in their memory, and those that have lost it.

A negative view (of the imaginary part of a conjugate, for one) has the opposite of what its memory holds, and a
zero tensor, which forward-mode differentiation makes, has no memory at all. Kernels read and write memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from flexkern.spec import Spec

__all__ = ["check_memory", "check_not_zero", "check_real", "is_ordinary", "negative_kernel", "ordinary"]


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the values stand in memory, in row-major order."""
    if not tensor.is_contiguous():
        return False
    # What torch.compile traces are no such tensors: it resolves them.
    return torch.compiler.is_compiling() or not (tensor.is_neg() or tensor._is_zerotensor())


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of its values that is ordinary."""
    if is_ordinary(tensor):
        return tensor
    if torch.compiler.is_compiling():
        return tensor.contiguous()
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg().contiguous()


def check_not_zero(tensor: Tensor, name: str) -> None:
    """A tensor that is written has memory to write to.

    Raises:
        ValueError: if it is a zero tensor.
    """
    if not torch.compiler.is_compiling() and tensor._is_zerotensor():
        raise ValueError(f"{name} is written but is a zero tensor, which has no memory; pass a .clone()")


def check_memory(tensor: Tensor, name: str) -> None:
    """The elements of a dense tensor lie inside its storage. Not so where that was resized: torch's own
    functions would read past its end, as they read at 0 where a zero tensor is of integers.

    Raises:
        ValueError: if they do not.
    """
    # Subclasses (fake tensors are) have memory of their own kind, or none.
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.numel():
        return
    if tensor._is_zerotensor():
        if not tensor.is_floating_point():  # only derivatives are zero tensors
            raise ValueError(f"{name} is a zero tensor, which has no memory; pass a .clone()")
        return
    try:
        has = tensor.untyped_storage().nbytes()
    except RuntimeError:  # inside of torch.func's transforms: a wrapper, and what it wraps comes by itself
        return
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needs = (tensor.storage_offset() + reach) * tensor.element_size()
    if needs > has:
        raise ValueError(
            f"{name} needs {needs} bytes of its storage, which has {has}: it was resized or freed; pass a "
            "tensor that has its values"
        )


def check_real(tensor: Tensor, name: str) -> None:
    """What implementations in Python take: memory, with the values in it.

    Raises:
        ValueError, TypeError: if that is not so. (Public functions have made copies of the former.)
    """
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name} must be of a real dtype, got {tensor.dtype}")
    if tensor.is_neg() or tensor._is_zerotensor():
        raise ValueError(f"{name} is a negative view or a zero tensor; pass a .clone()")
    if type(tensor) in (Tensor, torch.nn.Parameter) or not tensor.numel():
        return
    try:
        has_memory = not isinstance(tensor, FakeTensor) and tensor.data_ptr() != 0
    except RuntimeError:
        has_memory = False
    if not has_memory:
        raise TypeError(f"{name} is a {type(tensor).__name__}, which has no memory; pass an ordinary tensor")


def negative_kernel(spec: Spec, call: Callable[..., Any]) -> Callable[..., Any]:
    """What the dispatcher calls where an argument is a negative view or a conjugate: ``call`` with copies.

    torch's own fallback copies written ones too, steps, and then trips over an operator that returns nothing.
    """

    def run(*given: Any) -> Any:
        values = list(given)
        by_name = dict(zip((a.name for a in spec.arguments), given, strict=False))

        def is_given(name: str) -> bool:
            return by_name.get(name) is not None and by_name[name] is not False

        for i, (a, value) in enumerate(zip(spec.arguments, given, strict=False)):
            tensors = value if isinstance(value, (list, tuple)) else [value]
            if not any(isinstance(t, Tensor) and (t.is_neg() or t.is_conj()) for t in tensors):
                continue
            if a.written is True or (a.written and all(map(is_given, a.written))):
                raise RuntimeError(
                    f"flexkern refuses: {a.name} is written but is a negative view or a conjugate; "
                    "pass a .clone()"
                )
            resolved = [t.resolve_conj().resolve_neg() if isinstance(t, Tensor) else t for t in tensors]
            values[i] = resolved if isinstance(value, (list, tuple)) else resolved[0]
        return call(*values)

    return run
