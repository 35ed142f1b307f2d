"""Packed masks: one bit a synapse (DESIGN 1.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import choose
from flexkern.ops._define import Operator

__all__ = ["pack_mask", "unpack_mask"]

WORD_BITS = 32


def words_in_row(columns: int) -> int:
    """Words that hold a row of ``columns`` bits."""
    return -(-columns // WORD_BITS)


def _pack_fake(mask: Tensor) -> Tensor:
    return mask.new_empty((mask.shape[0], words_in_row(mask.shape[1])), dtype=torch.int32)


def _unpack_fake(words: Tensor, columns: int) -> Tensor:
    return words.new_empty((words.shape[0], columns), dtype=torch.bool)


def _triton_pack() -> Callable[..., Any]:
    from flexkern.triton_kernels.mask import pack_mask

    return pack_mask


def _triton_unpack() -> Callable[..., Any]:
    from flexkern.triton_kernels.mask import unpack_mask

    return unpack_mask


PACK = Operator(
    "pack_mask",
    "(Tensor mask) -> Tensor",
    fake=_pack_fake,
    reference=reference.pack_mask,
    triton=_triton_pack,
)
UNPACK = Operator(
    "unpack_mask",
    "(Tensor words, int columns) -> Tensor",
    fake=_unpack_fake,
    reference=reference.unpack_mask,
    triton=_triton_unpack,
)


def _check_tensor(tensor: object, name: str, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a {dtype} tensor, got {got}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got layout {tensor.layout}; call .to_dense() first")


def pack_mask(mask: Tensor) -> Tensor:
    """A bool matrix [rows, columns] as int32 words [rows, ceil(columns / 32)].

    Bit j of word k is column 32 k + j; the bits past the last column are 0, so every row starts a word.

    Raises:
        TypeError, ValueError: if ``mask`` is not a bool matrix.
    """
    _check_tensor(mask, "mask", torch.bool)
    if mask.dim() != 2:
        raise ValueError(f"mask must have two dimensions, got shape {tuple(mask.shape)}")
    backend = choose("pack_mask", mask.device, lambda name: None)
    return PACK.on(backend)(mask.contiguous())


def unpack_mask(words: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack_mask`.

    Args:
        words: int32 [rows, ceil(columns / 32)].
        columns: of the mask.

    Returns:
        bool [rows, columns].

    Raises:
        TypeError, ValueError: if ``words`` is not such a matrix.
    """
    _check_tensor(words, "words", torch.int32)
    if isinstance(columns, bool) or not isinstance(columns, (int, torch.SymInt)):
        raise TypeError(f"columns must be an int, got {columns!r}")
    if words.dim() != 2 or columns < 0 or words.shape[1] != words_in_row(columns):
        raise ValueError(
            f"words must be [rows, {words_in_row(max(columns, 0))}] for columns = {columns}, got "
            f"{tuple(words.shape)}"
        )
    backend = choose("unpack_mask", words.device, lambda name: None)
    return UNPACK.on(backend)(words.contiguous(), columns)
