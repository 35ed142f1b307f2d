"""The gate alpha, and the step that it scales (arXiv 2407.07133; docs/design.md, The flexible update)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .argument import EXACT, argument, number
from .declare import operator, operator_of_each_rule
from .record import Arguments
from .rules import RULES

if TYPE_CHECKING:
    from torch import Tensor

    from .rules import Rule

FLOATS = ("float32", "float64", "bfloat16", "float16")
# Anchors and flexibilities that are not stored: `sources` and `parameters` have a row for the anchor of each
# weight, then one for the flexibility of each (flexkern.fields.Field.source); none where all are stored. Where
# a tensor `lr_tensor` or `scale_tensor` is given it takes the place of the number.
SOURCES = "rows that describe anchors and flexibilities that are not stored; none: all are"


@operator("metaplastic_gate", returns="Tensor")
class MetaplasticGate(Arguments):
    """alpha = sech(k)^2, k = scale (1 - f) / f |w - a|: how freely each synapse moves"""

    weight: Tensor = argument("w", dtypes=EXACT, shape=("weight",))
    anchor: Tensor | None = argument("a, where it is stored", dtypes="weight", shape=("weight",))
    flexibility: Tensor | None = argument("f, where it is stored", dtypes="weight", shape=("weight",))
    scale: float = number()
    sources: Sequence[int] = argument(SOURCES, optional=True, default=None)
    parameters: Sequence[float] = argument(SOURCES, optional=True, default=None)
    scale_tensor: Tensor | None = argument("takes the place of scale", dtypes="float32", default=None)

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        return [(self.weight.dtype, self.weight.shape)]


@operator_of_each_rule(RULES, returns="()", one=True)
class Step(Arguments):
    """the flexible step, in place, of one tensor or a list of them"""

    weight: Sequence[Tensor] = argument("updated", written=True, dtypes=FLOATS)
    grad: Sequence[Tensor] = argument("of the weight's dtype or float32", dtypes=("weight", "float32"))
    anchor: Sequence[Tensor] = argument("those that are stored", dtypes=EXACT, optional=True)
    flexibility: Sequence[Tensor] = argument("those that are stored", dtypes=EXACT, optional=True)
    lr: float = number(low=0.0)
    scale: float = number(low=0.0)
    alpha: Sequence[Tensor] = argument(
        "the gate, where it is stored: anchor, flexibility, sources and scale are unused then; an empty one: "
        "that weight moves freely",
        dtypes=(*EXACT, "bfloat16"), optional=True, default=None,
    )  # fmt: skip
    sources: Sequence[int] = argument(SOURCES, optional=True, default=None)
    parameters: Sequence[float] = argument(SOURCES, optional=True, default=None)
    states: Sequence[States]
    step: Sequence[Tensor]
    master: Sequence[Tensor] = argument(
        "float32 copies that low-precision weights are rounded from", written=True, dtypes="float32",
        optional=True, default=None,
    )  # fmt: skip
    lr_tensor: Tensor | None = argument("takes the place of lr", dtypes="float32", default=None)
    scale_tensor: Tensor | None = argument("takes the place of scale", dtypes="float32", default=None)
    rule: Rule
    skip_nonfinite: bool = True


if TYPE_CHECKING:
    States = Sequence[Tensor]
