"""The worked template of an operator on four backends, to copy for a new one (docs/design.md, How to add)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .argument import argument, number
from .declare import operator
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor


@operator("null", returns="Tensor")
class Null(Arguments):
    """the template of an operator: x times a factor"""

    x: Tensor = argument(dtypes="float32")
    factor: float = number(low=0.0)

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        return [("float32", self.x.shape)]
