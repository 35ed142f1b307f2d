"""The flexible update (arXiv 2407.07133; DESIGN 1.1): the gate alpha, and the SGD step that it scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import choose
from flexkern.fields import Field
from flexkern.ops import _checks
from flexkern.ops._define import Operator

__all__ = ["gated_sgd_", "metaplastic_gate", "metaplastic_sgd_"]

NONFINITE = ("raise", "skip", "propagate")

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
    a, f = _reference_sources([weight], anchor, flexibility, sources, parameters)
    return reference.gate(weight, a[0], f[0], _number(scale, scale_tensor, weight))


def _reference_sources(
    weight: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
) -> tuple[list[Tensor], list[Tensor]]:
    """Anchors and flexibilities as tensors. The rows of ``sources`` are the anchors, then the flexibilities."""
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    a = reference.sources_to_tensors(anchor, sources[:half_ints], parameters[:half_floats], weight)
    f = reference.sources_to_tensors(flexibility, sources[half_ints:], parameters[half_floats:], weight)
    return a, f


def _number(value: float, tensor: Tensor | None, like: Tensor) -> float | Tensor:
    return value if tensor is None else tensor.reshape(()).to(like.device)


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
        a, f = _reference_sources(exact, anchor, flexibility, sources, parameters)
        s = _number(scale, scale_tensor, weight[0])
        gates = [reference.gate(exact[i], a[i], f[i], s) for i in range(len(exact))]
    rule = reference.SgdRule(
        _number(lr, lr_tensor, weight[0]), weight_decay, momentum, dampening, nesterov, maximize, skip_nonfinite
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


def _check_source(value: object, name: str, like: Tensor, dtype: torch.dtype) -> None:
    if isinstance(value, Field):
        if name == "flexibility" and not value.is_flexibility():
            raise ValueError(f"flexibility must be in [0, 1], got the field {value}")
        return
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "flexibility":
        if not 0 <= value <= 1:
            raise ValueError(f"flexibility must be in [0, 1], got {value}")
        return
    if not isinstance(value, Tensor):
        number = ", a number" if name == "flexibility" else ""
        raise TypeError(f"{name} must be a tensor{number} or a flexkern.Field, got {type(value).__name__}")
    _checks.check_matches(value, name, like, (dtype,))


def _encode(
    anchor: Sequence[Tensor | Field], flexibility: Sequence[Tensor | Field | float]
) -> tuple[list[Tensor], list[Tensor], list[int], list[float]]:
    if all(isinstance(v, Tensor) for v in (*anchor, *flexibility)):
        return _checks.contiguous(anchor), _checks.contiguous(flexibility), [], []  # type: ignore[arg-type]
    stored_a, ints_a, floats_a = _checks.encode_sources(anchor)
    stored_f, ints_f, floats_f = _checks.encode_sources(flexibility)
    return stored_a, stored_f, list(chain(*ints_a, *ints_f)), list(chain(*floats_a, *floats_f))


def _split(value: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, value) if isinstance(value, Tensor) else (float(value), None)


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
    _check_source(anchor, "anchor", weight, weight.dtype)
    _check_source(flexibility, "flexibility", weight, weight.dtype)
    _checks.check_number(scale, "scale", weight, positive=True)
    backend = choose("metaplastic_gate", weight.device, lambda name: _checks.native_dtypes(name, weight.dtype))
    a, f, sources, parameters = _encode([anchor], [flexibility])
    with torch.no_grad():
        return GATE.on(backend)(weight.contiguous(), a, f, sources, parameters, *_split(scale))


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
    weights = _check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    if not weights:
        return
    exact = torch.float64 if weights[0].dtype is torch.float64 else torch.float32
    anchors = _checks.as_list(anchor, "anchor", len(weights))
    flexibilities = _checks.as_list(flexibility, "flexibility", len(weights))
    for w, a, f in zip(weights, anchors, flexibilities, strict=True):
        _check_source(a, "anchor", w, exact)
        _check_source(f, "flexibility", w, exact)
    _checks.check_number(scale, "scale", weights[0], positive=True)
    a_stored, f_stored, sources, parameters = _encode(anchors, flexibilities)
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    state: GateState = (a_stored, f_stored, [], sources, parameters)
    _run("metaplastic_sgd_", weights, _checks.as_list(grad, "grad"), state,
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
    weights = _check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    if not weights:
        return
    exact = torch.float64 if weights[0].dtype is torch.float64 else torch.float32
    if alpha is None:
        # f = 1: the anchor is never looked at.
        a, f, sources, parameters = _encode([Field.uniform(0)] * len(weights), [1.0] * len(weights))
        state: GateState = (a, f, [], sources, parameters)
    else:
        alphas = _checks.as_list(alpha, "alpha", len(weights))
        for w, value in zip(weights, alphas, strict=True):
            _checks.check_matches(value, "alpha", w, (exact,))
        state = ([], [], _checks.contiguous(alphas), [], [])
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    _run("gated_sgd_", weights, _checks.as_list(grad, "grad"), state,
         momentum_buffer, master, lr, 1.0, rule, nonfinite)  # fmt: skip


def _check_step(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    nonfinite: str,
) -> list[Tensor]:
    """Checks what both steps share and returns the weights as a list."""
    weights = _checks.as_list(weight, "weight")
    grads = _checks.as_list(grad, "grad", len(weights))
    for w, g in zip(weights, grads, strict=True):
        _checks.check_matches(w, "weight", w, _checks.FLOAT_DTYPES)
        _checks.check_writable(w, "weight")
        if w.dtype != weights[0].dtype or w.device != weights[0].device:
            raise ValueError(
                f"weights of one call must share dtype and device, got {weights[0].dtype} on "
                f"{weights[0].device} and {w.dtype} on {w.device}; make one call for each"
            )
        _checks.check_matches(g, "grad", w, (w.dtype, torch.float32))
        if g.dtype != grads[0].dtype:
            raise ValueError(f"grads of one call must share a dtype, got {grads[0].dtype} and {g.dtype}")
    if weights:
        _checks.check_number(lr, "lr", weights[0])
    for name, value in (("weight_decay", weight_decay), ("momentum", momentum)):
        if not 0 <= value <= _checks.LARGEST_NUMBER:
            raise ValueError(f"{name} must be >= 0 and at most {_checks.LARGEST_NUMBER}, got {value}")
    if not abs(dampening) <= _checks.LARGEST_NUMBER:
        raise ValueError(f"dampening must be a finite number, got {dampening}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("nesterov needs momentum > 0 and dampening = 0")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
    return weights


def _float32_state(
    value: Tensor | Sequence[Tensor] | None, name: str, weights: list[Tensor], needed: str
) -> list[Tensor]:
    """``momentum_buffer`` or ``master`` as a checked list, empty where none is needed."""
    if value is None:
        if needed:
            raise ValueError(f"{name} is needed: {needed}")
        return []
    exact = torch.float64 if weights[0].dtype is torch.float64 else torch.float32
    values = _checks.as_list(value, name, len(weights))
    for w, v in zip(weights, values, strict=True):
        _checks.check_matches(v, name, w, (exact,))
        _checks.check_writable(v, name)
    return values


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
    dtype = weights[0].dtype
    low = dtype in _checks.LOW_PRECISION
    momentum = rule[1]
    buffers = _float32_state(
        momentum_buffer if momentum else None,
        "momentum_buffer",
        weights,
        "momentum is not 0" if momentum else "",
    )
    masters = _float32_state(
        master if low else None, "master", weights,
        f"a {dtype} weight cannot hold its displacement; pass weight.float() once and keep it" if low else "",
    )  # fmt: skip
    backend = choose(op, weights[0].device, lambda name: _checks.native_dtypes(name, dtype))
    if nonfinite == "raise":
        _checks.check_finite(grads)
    # The kernels index memory in row-major order: other layouts are stepped through a dense copy.
    written = [*weights, *buffers, *masters]
    dense = _checks.contiguous(written)
    if not torch.compiler.is_compiling():  # the addresses of traced tensors are not known
        _checks.check_copied(written, [*grads, *state[0], *state[1], *state[2]])
        if any(t.is_inference() for t in written) and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "weight, momentum_buffer or master is an inference tensor; pass a .clone() of it"
            )
    n, m = len(weights), len(buffers)
    with torch.no_grad():
        SGD.on(backend)(
            dense[:n], _checks.contiguous(grads), *state, dense[n : n + m], dense[n + m :],
            *_split(lr), *_split(scale), *rule, nonfinite != "propagate",
        )  # fmt: skip
        for target, result in zip(written, dense, strict=True):
            if target is not result:
                target.copy_(result)
    # Operators outside ATen do not tell autograd that they wrote: a backward through an old value must raise.
    torch.autograd.graph.increment_version(written)
