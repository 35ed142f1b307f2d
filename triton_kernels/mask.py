"""Packed masks (DESIGN 1.3): one bit a synapse, rows padded to whole words."""

# ruff: noqa: ANN001, ANN202 - device functions: Triton infers the types of their arguments

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["pack_mask", "unpack_mask"]

WORD_BITS = 32
# Words of a program of 128 threads: 32 bytes of the mask a thread, two 16-byte accesses.
WORDS = 128
NUM_WARPS = 4


@triton.jit
def _positions(words, words_per_row, columns, WORDS: tl.constexpr, ALIGNED: tl.constexpr):
    """Of a program's words: their 64-bit numbers, and [WORDS, 32] byte positions and which of them exist."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    row = word // words_per_row
    column = ((word - row * words_per_row) * 32)[:, None] + tl.arange(0, 32)[None, :]
    if ALIGNED:  # then runs of 16 bytes neither straddle a row's end nor miss a multiple of 16
        columns = tl.multiple_of(columns, 16)
    position = (row * columns)[:, None] + column
    return word, position, (column < columns) & (word < words)[:, None]


@triton.jit(do_not_specialize=["mask", "out", "words", "words_per_row", "columns"])
def pack_kernel(
    mask: tl.int64,
    out: tl.int64,
    words: tl.int64,
    words_per_row: tl.int64,
    columns: tl.int64,
    WORDS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Bytes 0 and 1 at ``mask`` to bits of the int32 words at ``out``."""
    word, position, exists = _positions(words, words_per_row, columns, WORDS, ALIGNED)
    pointer = mask.to(tl.pointer_type(tl.int8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    bits = (tl.load(pointer + position, mask=exists, other=0) != 0).to(tl.uint32)
    # Each bit is set once, so the sum is their union and cannot carry.
    packed = tl.sum(bits << tl.arange(0, 32).to(tl.uint32)[None, :], axis=1)
    tl.store(out.to(tl.pointer_type(tl.int32)) + word, packed.to(tl.int32, bitcast=True), mask=word < words)


@triton.jit(do_not_specialize=["packed", "out", "words", "words_per_row", "columns"])
def unpack_kernel(
    packed: tl.int64,
    out: tl.int64,
    words: tl.int64,
    words_per_row: tl.int64,
    columns: tl.int64,
    WORDS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Bits of the int32 words at ``packed`` to bytes 0 and 1 at ``out``."""
    word, position, exists = _positions(words, words_per_row, columns, WORDS, ALIGNED)
    bits = tl.load(packed.to(tl.pointer_type(tl.uint32)) + word, mask=word < words, other=0)
    values = (bits[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1
    pointer = out.to(tl.pointer_type(tl.int8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    tl.store(pointer + position, values.to(tl.int8), mask=exists)


def _launch(kernel, read: Tensor, written: Tensor, mask: Tensor, words: int) -> None:
    columns = mask.shape[1]
    if words == 0:
        return
    aligned = columns % 16 == 0 and mask.data_ptr() % 16 == 0
    with torch.cuda.device_of(mask):
        kernel[(triton.cdiv(words, WORDS),)](
            read.data_ptr(), written.data_ptr(), words, triton.cdiv(columns, WORD_BITS), columns, WORDS, aligned,
            num_warps=NUM_WARPS,
        )  # fmt: skip


def pack_mask(mask: Tensor) -> Tensor:
    """The Triton implementation of ``flexkern::pack_mask``: bool [rows, columns] to int32 words, bit j of word k
    being column 32 k + j."""
    mask = mask.contiguous()
    out = mask.new_empty((mask.shape[0], triton.cdiv(mask.shape[1], WORD_BITS)), dtype=torch.int32)
    _launch(pack_kernel, mask, out, mask, out.numel())
    return out


def unpack_mask(words: Tensor, columns: int) -> Tensor:
    """The Triton implementation of ``flexkern::unpack_mask``, the inverse of :func:`pack_mask`."""
    words = words.contiguous()
    out = words.new_empty((words.shape[0], columns), dtype=torch.bool)
    _launch(unpack_kernel, words, out, out, words.numel())
    return out
