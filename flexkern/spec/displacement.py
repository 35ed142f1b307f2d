"""The step of any optimizer, scaled afterwards by the gate (docs/design.md, The scaled displacement)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .argument import EXACT, argument, number
from .declare import operator
from .metaplastic import FLOATS, SOURCES
from .record import Arguments

if TYPE_CHECKING:
    from torch import Tensor


@operator("scale_displacement_", returns="()", one=True)
class ScaleDisplacement(Arguments):
    """w0 + alpha (w - w0), in place: the step of any optimizer, scaled by the gate at w0"""

    weight: Sequence[Tensor] = argument("w, after the optimizer's step; updated", written=True, dtypes=FLOATS)
    before: Sequence[Tensor] = argument("w0, the weight before that step", dtypes="weight")
    anchor: Sequence[Tensor] = argument("those that are stored", dtypes=EXACT, optional=True)
    flexibility: Sequence[Tensor] = argument("those that are stored", dtypes=EXACT, optional=True)
    scale: float = number(low=0.0)
    alpha: Sequence[Tensor] = argument(
        "the gate, where it is stored: anchor, flexibility, sources and scale are unused then",
        dtypes=(*EXACT, "bfloat16"), optional=True, default=None,
    )  # fmt: skip
    sources: Sequence[int] = argument(SOURCES, optional=True, default=None)
    parameters: Sequence[float] = argument(SOURCES, optional=True, default=None)
    master: Sequence[Tensor] = argument(
        "float32 copies that low-precision weights are rounded from", written=True, dtypes="float32",
        optional=True, default=None,
    )  # fmt: skip
    scale_tensor: Tensor | None = argument("takes the place of scale", dtypes="float32", default=None)
    skip_nonfinite: bool = True
