"""Adapters in parallel to a layer, one for each task, chosen by sample (docs/design.md, Artsy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .argument import argument
from .declare import operator
from .linear import ON_TENSOR_CORES
from .metaplastic import FLOATS
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST_TRITON_RANK", "AdapterBackward", "AdapterForward"]

LARGEST_TRITON_RANK = 512  # a program has a tile of all of an adapter's hidden units


@operator("gated_adapter", returns="(Tensor, Tensor)", recorded=True, lacks=ON_TENSOR_CORES)
class AdapterForward(Arguments):
    """adapters of many tasks, chosen by sample: both products, ReLU, dropout, scale and residual

    The second result is the hidden units [S, L, r] after ReLU and dropout, without ``keep_hidden`` [0]. They
    are all that the backward pass needs: they are above 0 where neither closed a unit.
    """

    x: Tensor = argument(dtypes=FLOATS, shape=("S", "L", "d"))
    down: Tensor = argument(dtypes="x", shape=("T", "d", "r"))
    down_bias: Tensor = argument(dtypes="x", shape=("T", "r"))
    up: Tensor = argument(dtypes="x", shape=("T", "r", "d"))
    up_bias: Tensor = argument(dtypes="x", shape=("T", "d"))
    index: Tensor = argument("-1: no adapter", dtypes=("int32", "int64"), shape=("S",))
    residual: Tensor | None = argument(dtypes="x", shape=("S", "L", "d"))
    seed: Tensor | None = argument("None: no dropout", dtypes="int64")
    scale: float
    dropout_p: float
    keep_hidden: bool

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        x = self.x
        hidden = (x.shape[0], x.shape[1], self.down.shape[2]) if self.keep_hidden else (0,)
        return [(x.dtype, x.shape), (x.dtype, hidden)]


@operator(
    "gated_adapter_backward",
    returns="(Tensor, Tensor, Tensor, Tensor, Tensor)",
    recorded=True,
    lacks=ON_TENSOR_CORES,
)
class AdapterBackward(Arguments):
    """gradients of gated_adapter by x and by the four tensors of the bank; [0] for what is not needed"""

    grad_out: Tensor = argument(dtypes="x", shape=("S", "L", "d"))
    x: Tensor = argument(dtypes=FLOATS, shape=("S", "L", "d"))
    hidden: Tensor = argument(dtypes="x", shape=("S", "L", "r"))
    down: Tensor = argument(dtypes="x", shape=("T", "d", "r"))
    up: Tensor = argument(dtypes="x", shape=("T", "r", "d"))
    index: Tensor = argument(dtypes=("int32", "int64"), shape=("S",))
    scale: float
    dropout_p: float
    need_x: bool
    need_bank: bool

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        tasks, d, r = self.down.shape
        bank: list[tuple[int, ...]] = [(tasks, d, r), (tasks, r), (tasks, r, d), (tasks, d)]
        if not self.need_bank:
            bank = [(0,)] * 4
        return [(self.x.dtype, shape) for shape in (self.x.shape if self.need_x else (0,), *bank)]
