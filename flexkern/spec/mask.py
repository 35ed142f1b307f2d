"""Packed masks: one bit per synapse (docs/design.md, Silent and functional synapses)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .argument import argument
from .declare import operator
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WORD_BITS", "Pack", "Unpack", "words_in_row"]

WORD_BITS = 32


def words_in_row(columns: int) -> int:
    """Words that hold a row of ``columns`` bits: rows are padded to whole words."""
    return -(-columns // WORD_BITS)


@operator("pack_mask", returns="Tensor")
class Pack(Arguments):
    """a bool matrix as int32 words, one bit per synapse"""

    mask: Tensor = argument(dtypes="bool", shape=("rows", "columns"))

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        return [("int32", (self.mask.shape[0], words_in_row(self.mask.shape[1])))]


@operator("unpack_mask", returns="Tensor")
class Unpack(Arguments):
    """the bool matrix of packed words"""

    words: Tensor = argument(dtypes="int32", shape=("rows", "words"))
    columns: int

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        return [("bool", (self.words.shape[0], self.columns))]
