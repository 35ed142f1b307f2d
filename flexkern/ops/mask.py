"""Packed masks: one bit per synapse (docs/design.md, Silent and functional synapses)."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.ops import checks
from flexkern.ops.operator import Attempt, Operator, is_plain, tries_compiled
from flexkern.ops.ordinary import ordinary
from flexkern.spec.mask import words_in_row

__all__ = ["pack_mask", "unpack_mask"]

PACK = Operator("pack_mask")
UNPACK = Operator("unpack_mask")


def _check_tensor(tensor: object, name: str, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a {dtype} tensor, got {got}")
    checks.check_dense(tensor, name)


def pack_mask(mask: Tensor) -> Tensor:
    """A bool matrix [rows, columns] as int32 words [rows, ceil(columns / 32)].

    Bit j of word k is column 32 k + j; the bits past the last column are 0, so every row starts a word.

    Raises:
        TypeError, ValueError: if ``mask`` is not a bool matrix.
    """
    attempt: Attempt | None = None
    if tries_compiled():
        if PACK.goes_direct(mask):
            attempt = PACK.direct, (mask,), ()
        elif is_plain(mask, PACK):
            attempt = PACK.compiled, (mask,), ()
    return PACK(attempt, _checked_pack, mask)


def _checked_pack(mask: Tensor) -> Tensor:
    _check_tensor(mask, "mask", torch.bool)
    if mask.dim() != 2:
        raise ValueError(f"mask must have two dimensions, got shape {tuple(mask.shape)}")
    backend = PACK.choose(mask)
    return PACK.on(backend)(ordinary(mask))


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
    attempt: Attempt | None = None
    if tries_compiled():
        if UNPACK.goes_direct(words):
            attempt = UNPACK.direct, (words, columns), ()
        elif type(columns) is int and is_plain(words, UNPACK):
            attempt = UNPACK.compiled, (words, columns), ()
    return UNPACK(attempt, _checked_unpack, words, columns)


def _checked_unpack(words: Tensor, columns: int) -> Tensor:
    _check_tensor(words, "words", torch.int32)
    columns = checks.as_integer(columns, "columns")
    if words.dim() != 2 or columns < 0 or words.shape[1] != words_in_row(columns):
        raise ValueError(
            f"words must be [rows, {checks.shown(words_in_row(max(columns, 0)))}] for columns = "
            f"{checks.shown(columns)}, got {tuple(words.shape)}"
        )
    backend = UNPACK.choose(words)
    return UNPACK.on(backend)(ordinary(words), columns)
