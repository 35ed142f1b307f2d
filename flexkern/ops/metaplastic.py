"""The flexible update (arXiv 2407.07133; DESIGN 1.1): the gate alpha, and the SGD step that it scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import choose
from flexkern.fields import Field
from flexkern.ops import _checks
from flexkern.ops._define import Operator
from flexkern.ops._step import (
    check_source,
    check_step,
    check_writes,
    encode,
    exact_dtype,
    in_place,
    momentum_and_master,
    number,
    reference_sources,
    split,
)

__all__ = ["gated_sgd_", "metaplastic_gate", "metaplastic_sgd_"]

# What a step knows of the gate: stored anchors, flexibilities and alphas, then sources and parameters.
GateState = tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[float]]


def _gate_fake(
    weight: Tensor,
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    scale: float,
    scale_tensor: Tensor | None,
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _gate_reference(
    weight: Tensor,
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    scale: float,
    scale_tensor: Tensor | None,
) -> Tensor:
    a, f = reference_sources([weight], anchor, flexibility, sources, parameters)
    return reference.gate(weight, a[0], f[0], number(scale, scale_tensor, weight))


def _sgd_fake(weight: Sequence[Tensor], grad: Sequence[Tensor], *rest: object) -> None:
    return None


def _sgd_reference(
    weight: Sequence[Tensor],
    grad: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    alpha: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    scale: float,
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
    gates: Sequence[Tensor] = alpha
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
# SOURCE_FLOATS numbers for each weight's anchor, then for each weight's flexibility. Empty: all are stored.
GATE = Operator(
    "metaplastic_gate",
    "(Tensor weight, Tensor[] anchor, Tensor[] flexibility, int[] sources, float[] parameters, "
    "float scale, Tensor? scale_tensor) -> Tensor",
    fake=_gate_fake,
    reference=_gate_reference,
    triton=_triton_gate,
)
# `alpha` is empty, or the stored gate of each weight; then anchor, flexibility, sources and scale are unused.
# `lr_tensor` and `scale_tensor`, where given, take the place of the numbers.
SGD = Operator(
    "metaplastic_sgd_",
    "(Tensor(a!)[] weight, Tensor[] grad, Tensor[] anchor, Tensor[] flexibility, Tensor[] alpha, "
    "int[] sources, float[] parameters, Tensor(b!)[] momentum_buffer, Tensor(c!)[] master, "
    "float lr, Tensor? lr_tensor, float scale, Tensor? scale_tensor, float weight_decay, float momentum, "
    "float dampening, bool nesterov, bool maximize, bool skip_nonfinite) -> ()",
    fake=_sgd_fake,
    reference=_sgd_reference,
    triton=_triton_sgd,
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
    (roundings counted in tests/ops/judge.py), and within twice that on a GPU; alpha under 2**-123 may be 0.
    """
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
    a, f, sources, parameters = encode([anchor], [flexibility])
    with torch.no_grad():
        return GATE.on(backend)(weight.contiguous(), a, f, sources, parameters, *split(scale))


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
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
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
        alpha: float32 like the weight, from :func:`metaplastic_gate`; None: these weights move freely
            (alpha = 1), as biases do.

    The other arguments, and what is raised, are those of :func:`metaplastic_sgd_`.
    """
    weights, grads = check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    if not weights:
        return
    exact = exact_dtype(weights[0])
    if alpha is None:
        # f = 1: the anchor is never looked at.
        a, f, sources, parameters = encode([Field.uniform(0)] * len(weights), [1.0] * len(weights))
        state: GateState = (a, f, [], sources, parameters)
    else:
        alphas = _checks.as_list(alpha, "alpha", len(weights))
        for w, value in zip(weights, alphas, strict=True):
            _checks.check_matches(value, "alpha", w, (exact,))
        state = ([], [], _checks.contiguous(alphas), [], [])
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    _run("gated_sgd_", weights, grads, state,
         momentum_buffer, master, lr, 1.0, rule, nonfinite)  # fmt: skip


def _run(
    op: str,
    weights: list[Tensor],
    grads: list[Tensor],
    state: GateState,
    momentum_buffer: Tensor | Sequence[Tensor] | None,
    master: Tensor | Sequence[Tensor] | None,
    lr: float | Tensor,
    scale: float | Tensor,
    rule: tuple[float, float, float, bool, bool],
    nonfinite: str,
) -> None:
    buffers, masters = momentum_and_master(momentum_buffer, master, weights, rule[1])
    dtype = weights[0].dtype
    backend = choose(op, weights[0].device, lambda name: _checks.native_dtypes(name, dtype))
    if nonfinite == "raise":
        _checks.check_finite(grads)
    n, m = len(weights), len(buffers)
    written = [*weights, *buffers, *masters]
    check_writes(written, [*grads, *state[0], *state[1], *state[2]], "weight, momentum_buffer or master")
    in_place(
        written,
        lambda dense: SGD.on(backend)(
            dense[:n], _checks.contiguous(grads), *state, dense[n : n + m], dense[n + m :],
            *split(lr), *split(scale), *rule, nonfinite != "propagate",
        ),
    )  # fmt: skip
