"""The flexible update (arXiv 2407.07133; DESIGN 1.1): the gate alpha, and the SGD step that it scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import choose
from flexkern.fields import Field, constant_source
from flexkern.ops import _checks
from flexkern.ops._define import Operator, compiled_overload
from flexkern.ops._step import (
    PLAIN_RULE,
    QUICK_NONFINITE,
    Rule,
    Sources,
    are_numbers,
    are_plain,
    check_source,
    check_step,
    check_writes,
    encode,
    exact_dtype,
    in_place,
    momentum_and_master,
    number,
    quick_sources,
    reference_sources,
    split,
    tries_compiled,
)

__all__ = ["gated_sgd_", "metaplastic_gate", "metaplastic_sgd_"]

# What a step knows of the gate: stored anchors and flexibilities, alphas, then sources and parameters.
GateState = tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[float]]
# A constant anchor, which is never looked at, and f = 1, as sources.
FREE = constant_source(0.0), constant_source(1.0)


def _gate_fake(weight: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _gate_reference(
    weight: Tensor,
    anchor: Tensor | None,
    flexibility: Tensor | None,
    scale: float,
    sources: Sequence[int],
    parameters: Sequence[float],
    scale_tensor: Tensor | None,
) -> Tensor:
    stored_a, stored_f = ([] if t is None else [t] for t in (anchor, flexibility))
    a, f = reference_sources([weight], stored_a, stored_f, sources, parameters)
    return reference.gate(weight, a[0], f[0], number(scale, scale_tensor, weight))


def _sgd_fake(*arguments: object) -> None:
    return None


def _sgd_reference(
    weight: Sequence[Tensor],
    grad: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    lr: float,
    scale: float,
    alpha: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    lr_tensor: Tensor | None,
    scale_tensor: Tensor | None,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    skip_nonfinite: bool,
) -> None:
    if not weight:
        return
    _checks.check_memory([*weight, *momentum_buffer, *master], [*grad, *anchor, *flexibility, *alpha])
    exact = master or weight
    gates: Sequence[Tensor] = [held.to(w.dtype) for held, w in zip(alpha, exact, strict=False)]
    if not alpha:
        a, f = reference_sources(exact, anchor, flexibility, sources, parameters)
        s = number(scale, scale_tensor, weight[0])
        gates = [reference.gate(exact[i], a[i], f[i], s) for i in range(len(exact))]
    rule = reference.SgdRule(
        number(lr, lr_tensor, weight[0]), weight_decay, momentum, dampening, nesterov, maximize, skip_nonfinite
    )
    reference.metaplastic_sgd_(weight, grad, gates, momentum_buffer, master, rule)


def _triton_gate() -> Callable[..., Any]:
    from flexkern.triton_kernels.metaplastic import metaplastic_gate

    return metaplastic_gate


def _triton_sgd() -> Callable[..., Any]:
    from flexkern.triton_kernels.metaplastic import metaplastic_sgd_

    return metaplastic_sgd_


# `sources` and `parameters` describe anchors and flexibilities that are not stored: SOURCE_INTS integers and
# SOURCE_FLOATS numbers for each weight's anchor, then for each weight's flexibility. None: all are stored.
# `lr_tensor` and `scale_tensor`, where given, take the place of the numbers.
GATE = Operator(
    "metaplastic_gate",
    "(Tensor weight, Tensor? anchor, Tensor? flexibility, float scale, int[]? sources=None, "
    "float[]? parameters=None, Tensor? scale_tensor=None) -> Tensor",
    fake=_gate_fake,
    reference=_gate_reference,
    triton=_triton_gate,
)
_STEP_NUMBERS = (
    "Tensor? lr_tensor=None, Tensor? scale_tensor=None, float weight_decay=0.0, float momentum=0.0, "
    "float dampening=0.0, bool nesterov=False, bool maximize=False, bool skip_nonfinite=True) -> ()"
)
# `alpha` is the stored gate of each weight; then anchor, flexibility, sources and scale are unused.
SGD = Operator(
    "metaplastic_sgd_",
    "(Tensor(a!)[] weight, Tensor[] grad, Tensor[]? anchor, Tensor[]? flexibility, float lr, float scale, "
    "Tensor[]? alpha=None, int[]? sources=None, float[]? parameters=None, Tensor(b!)[]? momentum_buffer=None, "
    "Tensor(c!)[]? master=None, " + _STEP_NUMBERS,
    fake=_sgd_fake,
    reference=_sgd_reference,
    triton=_triton_sgd,
)
# The same of one tensor: a list of one costs 0.5 microseconds more than a tensor, and a step has four.
SGD_ONE = compiled_overload(
    "metaplastic_sgd_.one",
    "(Tensor(a!) weight, Tensor grad, Tensor? anchor, Tensor? flexibility, float lr, float scale, "
    "Tensor? alpha=None, int[]? sources=None, float[]? parameters=None, Tensor(b!)? momentum_buffer=None, "
    "Tensor(c!)? master=None, " + _STEP_NUMBERS,
)


def metaplastic_gate(
    weight: Tensor, anchor: Tensor | Field, flexibility: Tensor | Field | float, scale: float | Tensor
) -> Tensor:
    """alpha = sech(k)^2 with k = scale (1 - f) / f |w - a|: how freely each synapse moves now.

    Args:
        weight: float32 (or float64) tensor w of any shape. Of a low-precision parameter pass the float32
            master: |w - a| is usually smaller than a bfloat16 ulp of w.
        anchor: a, the weights at initialisation: a tensor like ``weight``, or a Field.
        flexibility: f in [0, 1]: a tensor like ``weight``, a Field, or one number for all.
        scale: s > 0, a number or a one-element float32 tensor.

    Returns:
        alpha in [0, 1], shape and dtype of ``weight``. f = 1 gives exactly 1, f = 0 exactly 0.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: arXiv 2407.07133, section 2. Within ``(9 * 2k + 11) * 2**-24`` of alpha, relative, on the CPU
    (roundings counted in tests/helpers/judge.py), and within twice that on a GPU; alpha under 2**-123 may be 0.
    """
    if tries_compiled() and are_plain((weight,)) and are_numbers((scale,)):
        quick = quick_sources(anchor, flexibility)
        if quick is not None:
            try:
                return GATE.compiled(weight, *quick[:2], scale, *quick[2:])
            except RuntimeError:  # the checks say why
                pass
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype in _checks.LOW_PRECISION:
        raise TypeError(
            f"weight must be float32, got {weight.dtype}: pass its float32 master, because the displacement "
            "from the anchor is lost in low precision"
        )
    _checks.check_matches(weight, "weight", weight, _checks.FLOAT_DTYPES)
    check_source(anchor, "anchor", weight, weight.dtype)
    check_source(flexibility, "flexibility", weight, weight.dtype)
    _checks.check_number(scale, "scale", weight, positive=True)
    backend = choose("metaplastic_gate", weight.device, lambda name: _checks.native_dtypes(name, weight.dtype))
    stored_a, stored_f, sources, parameters = encode([anchor], [flexibility])
    a, f = (stored[0] if stored else None for stored in (stored_a, stored_f))
    value, tensor = split(scale)
    with torch.no_grad():
        return GATE.on(backend)(weight.contiguous(), a, f, value, sources or None, parameters or None, tensor)


def metaplastic_sgd_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    anchor: Tensor | Field | Sequence[Tensor | Field],
    flexibility: Tensor | Field | float | Sequence[Tensor | Field | float],
    *,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
) -> None:
    """w <- w - lr alpha g in one pass, alpha computed from the weights as they stand (``gate="step"``).

    Takes one tensor, or lists of equal length: one call, and on a GPU one launch, for all of them.

    Args:
        weight: float32, bfloat16, float16 or float64, updated in place. A list has one dtype and device.
        grad: gradients, of the weight's dtype or float32.
        anchor: float32 tensor like the weight, or a Field (procedural: nothing is read).
        flexibility: float32 tensor like the weight, a Field, or a number in [0, 1].
        lr, scale: numbers, or one-element float32 tensors (read on the device, no synchronisation). Under
            ``torch.compile`` a number that changes compiles again; pass a tensor there.
        weight_decay, momentum, dampening, nesterov, maximize: as in :class:`torch.optim.SGD`; alpha scales
            the step, not what enters the momentum buffer.
        momentum_buffer: float32 like the weight, updated in place; needed where ``momentum`` is not 0.
        master: float32 copy of each low-precision weight, updated in place; the weight is its rounding.
        nonfinite: "skip" leaves a synapse and its momentum as they are where the new weight would be
            infinite or NaN; "raise" looks at the gradients first (one more pass, waits for the device) and
            raises before anything changes (not under ``torch.compile(fullgraph=True)``); "propagate" writes
            what comes out.

    The CPU kernels flush what is under 2**-126 to 0, weights included.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2.
    """
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    if tries_compiled():
        gate = quick_sources(anchor, flexibility)
        if gate is not None and _try(
            weight, grad, None, gate, lr, scale, rule, momentum_buffer, master, nonfinite
        ):
            return
    weights, grads = check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    if not weights:
        return
    exact = exact_dtype(weights[0])
    anchors = _checks.as_list(anchor, "anchor", len(weights))
    flexibilities = _checks.as_list(flexibility, "flexibility", len(weights))
    for w, a, f in zip(weights, anchors, flexibilities, strict=True):
        check_source(a, "anchor", w, exact)
        check_source(f, "flexibility", w, exact)
    _checks.check_number(scale, "scale", weights[0], positive=True)
    a_stored, f_stored, sources, parameters = encode(anchors, flexibilities)
    state: GateState = (a_stored, f_stored, [], sources, parameters)
    _run("metaplastic_sgd_", weights, grads, state,
         momentum_buffer, master, lr, scale, rule, nonfinite)  # fmt: skip


def gated_sgd_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    alpha: Tensor | Sequence[Tensor] | None,
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
) -> None:
    """w <- w - lr alpha g with an alpha that is held through an item (``gate="item"``, as the release does).

    Args:
        alpha: float32 like the weight, from :func:`metaplastic_gate`, or its rounding to bfloat16: two bytes
            fewer to read, and each step is off by at most 2**-8 of itself (0 and 1 stay exact). None: these
            weights move freely (alpha = 1), as biases do. The kernels of the CPU and the reference take
            bfloat16; the others do not yet, so on a GPU the reference runs it.

    The other arguments, and what is raised, are those of :func:`metaplastic_sgd_`.
    """
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    if tries_compiled():
        count = len(weight) if isinstance(weight, (list, tuple)) else 1
        gate = _free(count) if alpha is None else (None, None, None, None)
        if _try(weight, grad, alpha, gate, lr, 1.0, rule, momentum_buffer, master, nonfinite):
            return
    weights, grads = check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    if not weights:
        return
    exact = exact_dtype(weights[0])
    if alpha is None:
        _, _, sources, parameters = _free(len(weights))
        state: GateState = ([], [], [], sources, parameters)
    else:
        alphas = _checks.as_list(alpha, "alpha", len(weights))
        allowed = (exact,) if exact is torch.float64 else (exact, torch.bfloat16)
        for w, value in zip(weights, alphas, strict=True):
            _checks.check_matches(value, "alpha", w, allowed)
        state = ([], [], _checks.contiguous(alphas), [], [])
    _run("gated_sgd_", weights, grads, state,
         momentum_buffer, master, lr, 1.0, rule, nonfinite)  # fmt: skip


def _free(count: int) -> tuple[None, None, list[int], list[float]]:
    """The sources of weights that move freely."""
    (a_ints, a_floats), (f_ints, f_floats) = FREE
    return None, None, a_ints * count + f_ints * count, a_floats * count + f_floats * count


def _try(
    weight: Any,
    grad: Any,
    alpha: Any,
    gate: Sources,
    lr: Any,
    scale: Any,
    rule: Rule,
    momentum_buffer: Any,
    master: Any,
    nonfinite: str,
) -> bool:
    """Takes the step, after tries_compiled, if the compiled operator does not refuse; else nothing changes.

    ``gate`` and ``alpha`` are as the operator takes them.
    """
    several = type(weight) is list
    buffer = momentum_buffer if rule[1] else None
    first = weight[0] if several and weight else weight
    if master is not None and getattr(first, "dtype", None) is torch.float32:
        master = None
    given = (weight, grad, gate[0], gate[1], lr, scale, alpha, gate[2], gate[3], buffer, master)
    if several:
        if not all(v is None or type(v) is list for v in (grad, gate[0], gate[1], alpha, buffer, master)):
            return False  # a Tensor would pass for a list of its rows
        written = [*weight, *(buffer or ()), *(master or ())]
    else:
        written = [t for t in (weight, buffer, master) if t is not None]
    if not (are_plain(written) and are_numbers((lr, scale)) and nonfinite in QUICK_NONFINITE):
        return False
    call = SGD.compiled if several else SGD_ONE
    try:
        if rule == PLAIN_RULE and nonfinite == "skip":
            call(*given)
        else:
            call(*given, None, None, *rule, nonfinite == "skip")
    except RuntimeError:  # the checks say why
        return False
    torch.autograd.graph.increment_version(written)
    return True


def _run(
    op: str,
    weights: list[Tensor],
    grads: list[Tensor],
    state: GateState,
    momentum_buffer: Tensor | Sequence[Tensor] | None,
    master: Tensor | Sequence[Tensor] | None,
    lr: float | Tensor,
    scale: float | Tensor,
    rule: Rule,
    nonfinite: str,
) -> None:
    buffers, masters = momentum_and_master(momentum_buffer, master, weights, rule[1])
    dtype = weights[0].dtype
    backend = choose(op, weights[0].device, lambda name: _serves(name, dtype, state[2]))
    if nonfinite == "raise":
        _checks.check_finite(grads)
    n, m = len(weights), len(buffers)
    written = [*weights, *buffers, *masters]
    anchors, flexibilities, alphas, sources, parameters = state
    check_writes(written, [*grads, *anchors, *flexibilities, *alphas], "weight, momentum_buffer or master")
    (lr_number, lr_tensor), (scale_number, scale_tensor) = split(lr), split(scale)
    numbers = (lr_tensor, scale_tensor, *rule, nonfinite != "propagate")
    dense_grads = _checks.contiguous(grads)
    in_place(
        written,
        lambda dense: SGD.on(backend)(
            dense[:n], dense_grads, anchors, flexibilities, lr_number, scale_number, alphas, sources,
            parameters, dense[n : n + m], dense[n + m :], *numbers,
        ),
    )  # fmt: skip


def _serves(backend: str, dtype: torch.dtype, alphas: list[Tensor]) -> str | None:
    if backend in ("cuda", "triton") and any(alpha.dtype is torch.bfloat16 for alpha in alphas):
        return "alpha in bfloat16 is taken by the CPU kernels and the reference only; pass alpha.float()"
    return _checks.native_dtypes(backend, dtype)
