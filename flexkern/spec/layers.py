"""What a pass over the synapses of one layer takes, by any rule (docs/design.md, One pass)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .argument import EXACT, argument, number
from .metaplastic import SOURCES
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor

    from .rules import Rule

__all__ = ["Layer"]

LIKE_WEIGHT = ("weight",)


class Layer(Arguments):
    """The weight [out, in], then the gradient in some form (which each operator declares), then all of these.

    ``anchor`` is written where what is inserted is written to it. ``activities`` is empty where no synapse is
    silent, else what each operator says.
    """

    weight: Tensor
    anchor: Tensor | None = argument(
        "a, where it is stored", written=("hebbian", "silent"), dtypes=EXACT, shape=LIKE_WEIGHT
    )
    flexibility: Tensor | None = argument("f, where it is stored", dtypes=EXACT, shape=LIKE_WEIGHT)
    silent: Tensor | None = argument(
        "packed, bit = 1: silent; None: no synapse is", written=True, dtypes="int32", shape=("out", "words")
    )
    activities: Sequence[Tensor] = argument("what silent synapses are compared with theta by", optional=True)
    threshold: float = number(low=0.0, zero_is_special=True)
    lr: float = number(low=0.0)
    scale: float = number(low=0.0)
    alpha: Tensor | None = argument(
        "the gate, where it is stored", dtypes=EXACT, shape=LIKE_WEIGHT, default=None
    )
    sources: Sequence[int] = argument(SOURCES, optional=True, default=None)
    parameters: Sequence[float] = argument(SOURCES, optional=True, default=None)
    states: States
    step: Tensor | None
    master: Tensor | None = argument(
        "float32 copy that a low-precision weight is rounded from", written=True, dtypes="float32",
        shape=LIKE_WEIGHT, default=None,
    )  # fmt: skip
    threshold_tensor: Tensor | None = argument(
        "theta, one element or one for each row; takes the place of threshold", dtypes=EXACT, default=None
    )
    lr_tensor: Tensor | None = argument("takes the place of lr", dtypes="float32", default=None)
    scale_tensor: Tensor | None = argument("takes the place of scale", dtypes="float32", default=None)
    hebbian: bool = argument("the inserted weight is eta c, else the anchor", default=False)
    eta: float = number(1.0, low=0.0, zero_is_special=True)
    prune: float = number(0.0, low=0.0, zero_is_special=True)
    rule: Rule
    skip_nonfinite: bool = True

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        return [("int32", (2, self.weight.shape[0]))]


if TYPE_CHECKING:
    States = Sequence[Tensor | None]
