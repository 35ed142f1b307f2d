"""The step of any optimizer, scaled afterwards by the gate (docs/design.md, The scaled displacement)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.ops import checks
from flexkern.ops.choices import NONFINITE
from flexkern.ops.operator import Attempt, Operator, are_numbers, are_plain, is_tensor, is_word, tries_compiled
from flexkern.ops.sources import Sources, check_source, encode, quick_sources
from flexkern.ops.steps import QUICK_NONFINITE, number_and_tensor

__all__ = ["gated_displacement_", "scale_displacement_"]

DISPLACEMENT = Operator("scale_displacement_")


def scale_displacement_(
    weight: Tensor | Sequence[Tensor],
    before: Tensor | Sequence[Tensor],
    anchor: Tensor | Field | Sequence[Tensor | Field],
    flexibility: Tensor | Field | float | Sequence[Tensor | Field | float],
    *,
    scale: float | Tensor,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
) -> None:
    """w <- w0 + alpha (w - w0) in one pass: the step of any optimizer, from w0 to w, scaled by the gate at w0.

    Takes one tensor, or lists of equal length: one call, and on a GPU one launch, for all of them.

    Args:
        weight: w, as an optimizer left it: float32, bfloat16, float16 or float64, updated in place. A list has
            one dtype and device.
        before: w0, a copy of the weight that was taken before the optimizer's step; of the weight's dtype.
        anchor: float32 tensor like the weight, or a Field (procedural: nothing is read).
        flexibility: float32 tensor like the weight, a Field, or a number in [0, 1]. Under 2**-126 it
            counts as 0.
        scale: a number, or a one-element float32 tensor (read on the device, no synchronisation).
        master: float32 copy of each low-precision weight, updated in place; the weight is its rounding. Where
            it does not round to w0, somebody else wrote the weight, and the master is w0 first. The step is
            added to it, and alpha is computed from it. Where alpha is 1 it becomes w.
        nonfinite: "skip" takes a synapse back to w0 where the new weight would be infinite or NaN, and leaves
            its master; "raise" looks at the weight first (one more pass, waits for the device) and raises
            before anything changes; "propagate" writes what comes out.

    f = 1 gives w exactly, f = 0 gives w0 exactly. The CPU kernels flush results under 2**-126 to 0.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2, for the gate.
    """
    attempt = None
    if tries_compiled():
        sources = quick_sources(anchor, flexibility)
        if sources is not None:
            attempt = _attempt(weight, before, sources, None, scale, master, nonfinite, "scale_displacement_")
    given = weight, before, anchor, flexibility, None, scale, master, nonfinite, "scale_displacement_"
    DISPLACEMENT(attempt, _checked, *given)


def gated_displacement_(
    weight: Tensor | Sequence[Tensor],
    before: Tensor | Sequence[Tensor],
    alpha: Tensor | Sequence[Tensor],
    *,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
) -> None:
    """The scaled displacement with an alpha that was computed before: once per item, ``gate="item"``.

    Args:
        alpha: float32 like the weight, from :func:`metaplastic_gate`, or its rounding to bfloat16 (0 and 1 stay
            exact), which the kernels of the CPU and the reference take; on a GPU the reference runs it.

    The other arguments, and what is raised, are those of :func:`scale_displacement_`. alpha = 1 gives w
    exactly, alpha = 0 gives w0 exactly.
    """
    attempt = None
    if tries_compiled() and alpha is not None:
        stored = (None, None, None, None)
        attempt = _attempt(weight, before, stored, alpha, 1.0, master, nonfinite, "gated_displacement_")
    given = weight, before, None, None, alpha, 1.0, master, nonfinite, "gated_displacement_"
    DISPLACEMENT(attempt, _checked, *given)


def _attempt(
    weight: Any, before: Any, sources: Any, alpha: Any, scale: Any, master: Any, nonfinite: str, name: str
) -> Attempt | None:
    """The call of a compiled operator, after tries_compiled; ``sources`` and ``alpha`` are as it takes them."""
    several = type(weight) is list
    first = weight[0] if several and weight else weight
    direct = DISPLACEMENT.goes_direct(first)
    if master is not None and getattr(first, "dtype", None) is torch.float32:
        master = None
    a, f, rows, floats = sources
    if several:
        if not weight or not all(v is None or type(v) is list for v in (before, a, f, alpha, master)):
            return None  # a Tensor would pass for a list of its rows, and of no weights nothing is looked at
        written = [*weight, *(master or ())]
    else:
        written = [weight] if master is None else [weight, master]
    if not is_word(nonfinite, QUICK_NONFINITE):
        return None
    if not direct:
        if several and alpha is not None and not all(map(is_tensor, alpha)):
            return None
        if not (are_numbers((scale,)) and are_plain(written, DISPLACEMENT, name)):
            return None
    arguments: tuple[Any, ...] = (weight, before, a, f, scale, alpha, rows, floats, master)
    if nonfinite != "skip":
        arguments = (*arguments, None, False)
    if direct:
        return DISPLACEMENT.direct if several else DISPLACEMENT.direct_one, arguments, ()
    return DISPLACEMENT.compiled if several else DISPLACEMENT.compiled_one, arguments, written


def _checked(
    weight: Any,
    before: Any,
    anchor: Any,
    flexibility: Any,
    alpha: Any,
    scale: Any,
    master: Any,
    nonfinite: str,
    name: str,
) -> None:
    """Says what does not fit, or calls the backend that serves."""
    weights = checks.as_list(weight, "weight")
    befores = checks.as_list(before, "before", len(weights))
    for w, w0 in zip(weights, befores, strict=True):
        _check_weight(w, weights[0])
        checks.check_matches(w0, "before", w, (w.dtype,))
    checks.check_word(nonfinite, "nonfinite", NONFINITE)
    if not weights:
        return
    exact = checks.exact_dtype(weights[0])
    alphas: list[Tensor] = []
    sources = Sources((), (), None, None)
    if name == "gated_displacement_":
        allowed = (exact,) if exact is torch.float64 else (exact, torch.bfloat16)
        alphas = checks.as_list(alpha, "alpha", len(weights))
        for w, value in zip(weights, alphas, strict=True):
            checks.check_matches(value, "alpha", w, allowed)
    else:
        anchors = checks.as_list(anchor, "anchor", len(weights))
        flexibilities = checks.as_list(flexibility, "flexibility", len(weights))
        for w, a, f in zip(weights, anchors, flexibilities, strict=True):
            check_source(a, "anchor", w, exact)
            check_source(f, "flexibility", w, exact)
        checks.check_number(scale, "scale", weights[0], positive=True)
        sources = encode(anchors, flexibilities)
    masters = _masters(master, weights)
    backend = DISPLACEMENT.choose(weights[0], lambda of: _takes(of, alphas), name)
    if nonfinite == "raise":
        checks.check_finite(weights, "weight")
    number, tensor = number_and_tensor(scale)
    given = DISPLACEMENT.spec.record(
        weight=weights,
        before=checks.contiguous(befores),
        anchor=sources.anchor or (),
        flexibility=sources.flexibility or (),
        scale=number,
        alpha=checks.contiguous(alphas),
        sources=sources.rows or (),
        parameters=sources.numbers or (),
        master=masters,
        scale_tensor=tensor,
        skip_nonfinite=nonfinite != "propagate",
    )
    DISPLACEMENT.run(given, backend)


def _check_weight(weight: Any, first: Any) -> None:
    checks.check_matches(weight, "weight", weight, checks.FLOAT_DTYPES)
    checks.check_writable(weight, "weight")
    if weight.dtype != first.dtype or weight.device != first.device:
        raise ValueError(
            f"weights of one call must share dtype and device, got {first.dtype} on {first.device} and "
            f"{weight.dtype} on {weight.device}; make one call for each"
        )


def _masters(master: Any, weights: list[Tensor]) -> list[Tensor]:
    dtype = weights[0].dtype
    if dtype not in checks.LOW_PRECISION:
        return []
    if master is None:
        raise ValueError(
            f"master is needed: a {dtype} weight cannot hold its displacement; pass weight.float() "
            "once and keep it"
        )
    masters = checks.as_list(master, "master", len(weights))
    for w, value in zip(weights, masters, strict=True):
        checks.check_matches(value, "master", w, (torch.float32,))
        checks.check_writable(value, "master")
    return masters


def _takes(backend: str, alphas: list[Tensor]) -> str | None:
    if backend in ("cuda", "triton") and any(alpha.dtype is torch.bfloat16 for alpha in alphas):
        return "alpha in bfloat16 is taken by the CPU kernels and the reference only; pass alpha.float()"
    return None
