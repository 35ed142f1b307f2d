"""Operands of matrix products in the dtype of their tensor, as the tensor cores take them.

On a GPU nothing may come between a load and the tensor cores, which read shared memory, so elements stay as
they are. Triton's interpreter multiplies the bits of bfloat16 as integers: there products are of float32.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.triton_kernels.memory import from_float32, to_float32, typed
from flexkern.triton_kernels.product import INTERPRETED

__all__ = ["as_operand", "operand", "read", "read_wide", "rounded"]


@triton.jit
def operand(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to a tensor of DTYPE at ``address``; ALIGNED promises a multiple of 16 bytes."""
    pointer = typed(address, DTYPE, False)
    if not INTERPRETED:
        pointer = address.to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def as_operand(values, DTYPE: tl.constexpr):
    """Elements as they lie in memory, as an operand of a product."""
    return to_float32(values, DTYPE) if INTERPRETED else values


@triton.jit
def read(pointers, mask, DTYPE: tl.constexpr):
    """An operand of a product, 0 outside ``mask``."""
    return as_operand(tl.load(pointers, mask=mask, other=0), DTYPE)


@triton.jit
def read_wide(pointers, mask, DTYPE: tl.constexpr):
    """Elements as float32, 0 outside ``mask``."""
    values = tl.load(pointers, mask=mask, other=0)
    return to_float32(values, DTYPE) if INTERPRETED else values.to(tl.float32)


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """float32 rounded to the nearest of DTYPE, ties to even, as ``operand`` pointers take it."""
    return from_float32(values, DTYPE) if INTERPRETED else values.to(DTYPE)
