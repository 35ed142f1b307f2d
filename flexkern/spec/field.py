"""Procedural fields as tensors (docs/design.md, Procedural fields)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .argument import argument
from .declare import operator
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor


@operator("fill_field_", returns="()")
class Fill(Arguments):
    """a procedural field as a tensor, bit-identical on every backend"""

    # Fills a tensor instead of returning one, because the dispatcher finds the backend by a tensor argument.
    out: Tensor = argument("filled", written=True, dtypes="float32")
    source: Sequence[int] = argument("flexkern.fields.Field.source, its integers")
    parameters: Sequence[float] = argument("and its numbers")
