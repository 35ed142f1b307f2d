"""Packed masks: one bit per synapse, rows padded to whole words.

See docs/design.md, Silent and functional synapses.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.triton_kernels.memory import ALIGNMENT
from flexkern.triton_kernels.variant import Variant

__all__ = ["pack_mask", "unpack_mask"]

WORD_BITS = 32
# Words of a program of 128 threads, all of one row: 16 bytes of the mask a thread, one full-width access.
WORDS = 64
NUM_WARPS = 4


@triton.jit
def _tile(packed, mask, units, WORDS: tl.constexpr, UNIT: tl.constexpr):
    """A program's words: pointers and which exist; and the same for the [WORDS, 32] bytes of the mask."""
    # As a product with UNIT, so that Triton knows that runs of UNIT bytes do not straddle a row's end.
    columns = units * UNIT
    words_per_row = (columns + 31) // 32
    programs_per_row = (words_per_row + (WORDS - 1)) // WORDS
    program = tl.program_id(0).to(tl.int64)
    row = program // programs_per_row
    word = (program - row * programs_per_row) * WORDS + tl.arange(0, WORDS)
    column = (word * 32)[:, None] + tl.arange(0, 32)[None, :]
    words = packed.to(tl.pointer_type(tl.uint32)) + (row * words_per_row + word)
    bytes = tl.multiple_of(mask.to(tl.pointer_type(tl.int8)), UNIT) + (row * columns + column)
    return words, word < words_per_row, bytes, column < columns


@triton.jit(do_not_specialize=["packed", "mask", "units"])
def pack_kernel(packed: tl.int64, mask: tl.int64, units: tl.int64, WORDS: tl.constexpr, UNIT: tl.constexpr):
    """Bytes 0 and 1 at ``mask`` to bits of the words at ``packed``; the mask has ``units * UNIT`` columns."""
    words, has_word, bytes, has_byte = _tile(packed, mask, units, WORDS, UNIT)
    bits = (tl.load(bytes, mask=has_byte, other=0) != 0).to(tl.uint32)
    # Each bit is set once, so the sum is their union and cannot carry.
    tl.store(words, tl.sum(bits << tl.arange(0, 32).to(tl.uint32)[None, :], axis=1), mask=has_word)


@triton.jit(do_not_specialize=["packed", "mask", "units"])
def unpack_kernel(packed: tl.int64, mask: tl.int64, units: tl.int64, WORDS: tl.constexpr, UNIT: tl.constexpr):
    """The inverse of ``pack_kernel``."""
    words, has_word, bytes, has_byte = _tile(packed, mask, units, WORDS, UNIT)
    bits = tl.load(words, mask=has_word, other=0)[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]
    tl.store(bytes, (bits & 1).to(tl.int8), mask=has_byte)


def _launch(kernel, packed: Tensor, mask: Tensor) -> None:
    if packed.numel() == 0:
        return
    columns = mask.shape[1]
    unit = ALIGNMENT if columns % ALIGNMENT == 0 and mask.data_ptr() % ALIGNMENT == 0 else 1
    programs = packed.shape[0] * triton.cdiv(packed.shape[1], WORDS)
    with torch.cuda.device_of(mask):
        kernel[(programs,)](
            packed.data_ptr(), mask.data_ptr(), columns // unit, WORDS, unit, num_warps=NUM_WARPS
        )


def pack_mask(mask: Tensor) -> Tensor:
    """The Triton implementation of ``flexkern::pack_mask``.

    bool [rows, columns] to int32 [rows, ceil(columns / 32)]: bit j of word k is column 32 k + j.

    Raises:
        ValueError: if ``mask`` is not a bool matrix.
    """
    if mask.dtype is not torch.bool or mask.dim() != 2:
        raise ValueError(f"mask must be a bool matrix, got {mask.dtype} of shape {tuple(mask.shape)}")
    mask = mask.contiguous()
    out = mask.new_empty((mask.shape[0], triton.cdiv(mask.shape[1], WORD_BITS)), dtype=torch.int32)
    _launch(pack_kernel, out, mask)
    return out


def unpack_mask(words: Tensor, columns: int) -> Tensor:
    """The Triton implementation of ``flexkern::unpack_mask``, the inverse of :func:`pack_mask`.

    Raises:
        ValueError: if ``words`` is not an int32 matrix of as many words per row as ``columns`` need.
    """
    width = triton.cdiv(columns, WORD_BITS)
    if words.dtype is not torch.int32 or words.dim() != 2 or words.shape[1] != width:
        raise ValueError(f"words must be int32 [rows, {width}], got {words.dtype}, shape {tuple(words.shape)}")
    words = words.contiguous()
    out = words.new_empty((words.shape[0], columns), dtype=torch.bool)
    _launch(unpack_kernel, words, out)
    return out


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    for kernel, unit in product((pack_kernel, unpack_kernel), (1, ALIGNMENT)):
        name = f"{kernel.__name__.removesuffix('_kernel')}{'-aligned' if unit > 1 else ''}"
        yield Variant(name, kernel, {"WORDS": WORDS, "UNIT": unit}, options={"num_warps": NUM_WARPS})
