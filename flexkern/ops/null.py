"""The worked template of an operator: what to copy for a new one (docs/design.md, How to add)."""

from __future__ import annotations

from torch import Tensor

from flexkern.ops import checks
from flexkern.ops.operator import Operator, are_numbers, are_plain, tries_compiled
from flexkern.ops.ordinary import ordinary

__all__ = ["null"]

NULL = Operator("null")


def null(x: Tensor, factor: float) -> Tensor:
    """x times a factor, by a kernel on every backend.

    Args:
        x: float32 of any shape.
        factor: a number >= 0.

    Returns:
        float32, shape of ``x``, contiguous.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    attempt = None
    if tries_compiled():
        if NULL.goes_direct(x):
            attempt = NULL.direct, (x, factor), ()
        elif are_plain((x,), NULL) and are_numbers((factor,)):
            attempt = NULL.compiled, (x, factor), ()
    return NULL(attempt, _checked, x, factor)


def _checked(x: Tensor, factor: float) -> Tensor:
    """Says what does not fit, or calls the backend that serves."""
    checks.check_matches(x, "x", x, (checks.FLOAT_DTYPES[0],), like_name="x")
    checks.check_number(factor, "factor", x)
    return NULL.run(NULL.spec.record(x=ordinary(x), factor=float(factor)), NULL.choose(x))
