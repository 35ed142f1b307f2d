"""The flexible update (arXiv 2407.07133; docs/design.md): the gate alpha, and the step that it scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.ops import checks
from flexkern.ops.operator import Attempt, Operator, are_numbers, are_plain, is_tensor, is_word, tries_compiled
from flexkern.ops.ordinary import ordinary
from flexkern.ops.sources import Sources, check_source, encode, free, quick_sources, single
from flexkern.ops.steps import (
    NO_OPTIONS,
    QUICK_NONFINITE,
    Given,
    Options,
    check_step,
    number_and_tensor,
    quick_rule,
    rule_of,
    states_and_master,
)
from flexkern.spec import RULES

__all__ = [
    "gated_adamw_",
    "gated_sgd_",
    "gated_step_by_rule",
    "metaplastic_adamw_",
    "metaplastic_gate",
    "metaplastic_sgd_",
    "step_by_rule",
]

GATE = Operator("metaplastic_gate")
# The steps of a list of weights by each rule, by its operator's name.
STEPS = {kind.operator("metaplastic"): Operator(kind.operator("metaplastic")) for kind in RULES}
SGD, ADAMW = STEPS["metaplastic_sgd_"], STEPS["metaplastic_adamw_"]


def metaplastic_gate(
    weight: Tensor, anchor: Tensor | Field, flexibility: Tensor | Field | float, scale: float | Tensor
) -> Tensor:
    """alpha = sech(k)^2 with k = scale (1 - f) / f |w - a|: how freely each synapse moves now.

    Args:
        weight: float32 (or float64) tensor w of any shape. Of a low-precision parameter pass the float32
            master: |w - a| is usually smaller than a bfloat16 ulp of w.
        anchor: a, the weights at initialisation: a tensor like ``weight``, or a Field.
        flexibility: f in [0, 1]: a tensor like ``weight``, a Field, or one number for all. An f under 2**-126
            counts as 0.
        scale: s > 0, a number or a one-element float32 tensor.

    Returns:
        alpha in [0, 1], shape and dtype of ``weight``. f = 1 gives exactly 1 (whatever the anchor is),
        f = 0 exactly 0.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: arXiv 2407.07133, section 2. Within ``(9 * 2k + 11) * 2**-24`` of alpha, relative, on the CPU
    (roundings counted in tests/helpers/judge.py), and within twice that on a GPU; alpha under 2**-123 may be 0.
    """
    attempt = None
    if tries_compiled():
        direct = GATE.goes_direct(weight)
        quick = quick_sources(anchor, flexibility)
        if quick is not None and (direct or (are_plain((weight,), GATE) and are_numbers((scale,)))):
            a, f, rows, numbers = quick
            attempt = GATE.direct if direct else GATE.compiled, (weight, a, f, scale, rows, numbers), ()
    return GATE(attempt, _checked_gate, weight, anchor, flexibility, scale)


def _checked_gate(
    weight: Tensor, anchor: Tensor | Field, flexibility: Tensor | Field | float, scale: float | Tensor
) -> Tensor:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype in checks.LOW_PRECISION:
        raise TypeError(
            f"weight must be float32, got {weight.dtype}: pass its float32 master, because the displacement "
            "from the anchor is lost in low precision"
        )
    checks.check_matches(weight, "weight", weight, checks.FLOAT_DTYPES)
    check_source(anchor, "anchor", weight, weight.dtype)
    check_source(flexibility, "flexibility", weight, weight.dtype)
    checks.check_number(scale, "scale", weight, positive=True)
    backend = GATE.choose(weight)
    a, f, rows, numbers = single(encode([anchor], [flexibility]))
    value, tensor = number_and_tensor(scale)
    given = GATE.spec.record.of_call((ordinary(weight), a, f, value, rows or (), numbers or (), tensor))
    return GATE.run(given, backend)


def metaplastic_sgd_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    anchor: Tensor | Field | Sequence[Tensor | Field],
    flexibility: Tensor | Field | float | Sequence[Tensor | Field | float],
    *,
    lr: float | Tensor,
    scale: float | Tensor,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
    **rule: Any,
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
        momentum_buffer: float32 like the weight, updated in place; needed where ``momentum`` is not 0.
        master: float32 copy of each low-precision weight, updated in place; the weight is its rounding. An
            element that is not, because it was written from outside, is first taken as its own master.
        nonfinite: "skip" leaves a synapse and its momentum as they are where the new weight would be
            infinite or NaN; "raise" looks at the gradients first (one more pass, waits for the device) and
            raises before anything changes (not under ``torch.compile(fullgraph=True)``); "propagate" writes
            what comes out.
        rule: the numbers of :class:`flexkern.ops.SgdRule` by name: ``weight_decay``, ``momentum``,
            ``dampening``, ``nesterov``, ``maximize``, as in :class:`torch.optim.SGD`; alpha scales the step,
            not what enters the momentum buffer.

    The CPU kernels flush what is under 2**-126 to 0, weights included.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2.
    """
    given = (lr, scale, {"momentum_buffer": momentum_buffer}, master, nonfinite, rule, NO_OPTIONS)
    step_by_rule(SGD, weight, grad, anchor, flexibility, given)


def gated_sgd_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    alpha: Tensor | Sequence[Tensor] | None,
    *,
    lr: float | Tensor,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
    **rule: Any,
) -> None:
    """The flexible SGD step with an alpha that was computed before: once per item, ``gate="item"``.

    So does the release of the paper (arXiv 2407.07133): w <- w - lr alpha g, with one alpha for a whole item.

    Args:
        alpha: float32 like the weight, from :func:`metaplastic_gate`, or its rounding to bfloat16: two bytes
            fewer to read, and each step is off by at most 2**-8 of itself (0 and 1 stay exact). None: these
            weights move freely (alpha = 1), as biases do; also for single ones of a list. The kernels of the
            CPU and the reference take bfloat16; the others do not yet, so on a GPU the reference runs it.

    The other arguments, and what is raised, are those of :func:`metaplastic_sgd_`.
    """
    given = (lr, 1.0, {"momentum_buffer": momentum_buffer}, master, nonfinite, rule, NO_OPTIONS)
    gated_step_by_rule(SGD, "gated_sgd_", weight, grad, alpha, given)


def metaplastic_adamw_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    anchor: Tensor | Field | Sequence[Tensor | Field],
    flexibility: Tensor | Field | float | Sequence[Tensor | Field | float],
    *,
    lr: float | Tensor,
    scale: float | Tensor,
    exp_avg: Tensor | Sequence[Tensor],
    exp_avg_sq: Tensor | Sequence[Tensor],
    step: Tensor | Sequence[Tensor],
    max_exp_avg_sq: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
    **rule: Any,
) -> None:
    """The flexible AdamW step in one pass, alpha computed from the weights as they stand (``gate="step"``).

    w <- w - lr alpha (m_hat / (sqrt(v_hat) + eps) + weight_decay w), where alpha enters neither m nor v:
    alpha = 1 is :class:`torch.optim.AdamW`, and a stiff synapse does not decay either.

    Args:
        exp_avg, exp_avg_sq: m and v, float32 like the weight, 0 before the first step; updated in place.
        step: of each weight the number of this step, which the caller has counted already (1 in the first): a
            one-element float32 tensor on its device. It is read there (no synchronisation, and a CUDA graph
            reads it anew), for the corrections of m and v; weights of one call may differ in it.
        max_exp_avg_sq: as these, the largest v so far; needed with ``amsgrad``.
        rule: the numbers of :class:`flexkern.ops.AdamWRule` by name: ``beta1``, ``beta2``, ``eps``,
            ``weight_decay``, ``amsgrad``, ``maximize``, as in :class:`torch.optim.AdamW`.

    The other arguments, lists, and what is raised, are those of :func:`metaplastic_sgd_`. ``nonfinite="skip"``
    leaves a synapse, its m and its v as they are where the new weight would be infinite or NaN.

    Source: arXiv 2407.07133, section 2, for alpha; Loshchilov and Hutter, arXiv 1711.05101, for AdamW.
    """
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq, "step": step}
    given = (lr, scale, states, master, nonfinite, rule, NO_OPTIONS)
    step_by_rule(ADAMW, weight, grad, anchor, flexibility, given)


def gated_adamw_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    alpha: Tensor | Sequence[Tensor] | None,
    *,
    lr: float | Tensor,
    exp_avg: Tensor | Sequence[Tensor],
    exp_avg_sq: Tensor | Sequence[Tensor],
    step: Tensor | Sequence[Tensor],
    max_exp_avg_sq: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
    **rule: Any,
) -> None:
    """The flexible AdamW step with an alpha that was computed before: once per item, ``gate="item"``.

    ``alpha`` is that of :func:`gated_sgd_`, all else as in :func:`metaplastic_adamw_`.
    """
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq, "step": step}
    given = (lr, 1.0, states, master, nonfinite, rule, NO_OPTIONS)
    gated_step_by_rule(ADAMW, "gated_adamw_", weight, grad, alpha, given)


# ------------------------------------------------------------------ the step of any rule


def step_by_rule(
    operator: Operator,
    weight: Any,
    grad: Any,
    anchor: Any,
    flexibility: Any,
    given: Given,
) -> None:
    """:func:`metaplastic_sgd_` by the operator of any rule; ``given`` has its states and numbers by name."""
    attempt = None
    if tries_compiled():
        sources = quick_sources(anchor, flexibility)
        if sources is not None:
            attempt = _attempt(operator, None, weight, grad, sources, None, given)
    operator(attempt, _checked_step, operator, weight, grad, anchor, flexibility, given)


def gated_step_by_rule(
    operator: Operator,
    name: str,
    weight: Any,
    grad: Any,
    alpha: Any,
    given: Given,
) -> None:
    """:func:`gated_sgd_` by the operator of any rule, for the function of this name."""
    attempt = None
    if tries_compiled():
        count = len(weight) if isinstance(weight, (list, tuple)) else 1
        sources = free(count) if alpha is None else (None, None, None, None)
        attempt = _attempt(operator, name, weight, grad, sources, alpha, given)
    operator(attempt, _checked_gated_step, operator, name, weight, grad, alpha, given)


def _attempt(
    operator: Operator,
    name: str | None,
    weight: Any,
    grad: Any,
    sources: Any,
    alpha: Any,
    given: Given,
) -> Attempt | None:
    """The step of a compiled operator, after tries_compiled; ``sources`` and ``alpha`` are as it takes them."""
    several = type(weight) is list
    if several and not weight:
        return None  # nothing would be looked at
    kind = operator.spec.rule
    assert kind is not None
    lr, scale, states, master, nonfinite, numbers, _ = given
    rule = quick_rule(kind, numbers)
    if rule is None or not is_word(nonfinite, QUICK_NONFINITE):
        return None
    needed = rule.none or rule.states(states)
    first = weight[0] if several else weight
    if master is not None and getattr(first, "dtype", None) is torch.float32:
        master = None
    a, f, rows, floats = sources
    arguments: tuple[Any, ...] = (weight, grad, a, f, lr, scale)
    takes_all = not (rule.is_plain and nonfinite == "skip")
    # What is passed costs time, also if it is None.
    if takes_all or not rule.none or not (alpha is None and rows is None and master is None):
        arguments = (*arguments, alpha, rows, floats, *needed, master)
    if takes_all:
        arguments = (*arguments, None, None, *rule.numbers, nonfinite == "skip")
    if operator.goes_direct(first):
        return operator.direct if several else operator.direct_one, arguments, ()
    if not are_numbers((lr, scale)):
        return None
    updated = needed[: rule.updated]
    if several:
        if not all(v is None or type(v) is list for v in (grad, a, f, alpha, *needed, master)):
            return None  # a Tensor would pass for a list of its rows
        read = (alpha, *needed[rule.updated :])
        if not all(is_tensor(t) for values in read if values is not None for t in values):
            return None
        written = [*weight, *(t for state in (*updated, master) if state is not None for t in state)]
    else:
        written = [weight, *(t for t in (*updated, master) if t is not None)]
    if not are_plain(written, operator, name):
        return None
    return operator.compiled if several else operator.compiled_one, arguments, written


def _checked_step(
    operator: Operator,
    weight: Any,
    grad: Any,
    anchor: Any,
    flexibility: Any,
    given: Given,
) -> None:
    options = Options(*given)
    rule = rule_of(operator, options, operator.spec.name)
    weights, grads = check_step(weight, grad, options, rule)
    if not weights:
        return
    exact = checks.exact_dtype(weights[0])
    anchors = checks.as_list(anchor, "anchor", len(weights))
    flexibilities = checks.as_list(flexibility, "flexibility", len(weights))
    for w, a, f in zip(weights, anchors, flexibilities, strict=True):
        check_source(a, "anchor", w, exact)
        check_source(f, "flexibility", w, exact)
    checks.check_number(options.scale, "scale", weights[0], positive=True)
    sources = encode(anchors, flexibilities)
    _run(operator, weights, grads, sources, [], options, rule)


def _checked_gated_step(
    operator: Operator,
    name: str,
    weight: Any,
    grad: Any,
    alpha: Any,
    given: Given,
) -> None:
    options = Options(*given)
    rule = rule_of(operator, options, name)
    weights, grads = check_step(weight, grad, options, rule)
    if not weights:
        return
    alphas: list[Tensor] = []
    if alpha is not None:
        exact = checks.exact_dtype(weights[0])
        allowed = (exact,) if exact is torch.float64 else (exact, torch.bfloat16)
        for w, value in zip(weights, checks.as_list(alpha, "alpha", len(weights)), strict=True):
            if value is not None:
                checks.check_matches(value, "alpha", w, allowed)
            # An empty one says that the weight moves freely; that of an empty weight has its shape.
            nothing = (0,) if w.numel() else w.shape
            alphas.append(w.new_empty(nothing, dtype=exact) if value is None else value)
    sources = free(len(weights)) if alpha is None else Sources((), (), None, None)
    _run(operator, weights, grads, sources, alphas, options, rule, name)


def _run(
    operator: Operator,
    weights: list[Tensor],
    grads: list[Tensor],
    sources: Sources,
    alphas: list[Tensor],
    options: Options,
    rule: Any,
    public_name: str | None = None,
) -> None:
    checked, masters = states_and_master(options, weights, rule)
    backend = operator.choose(weights[0], lambda name: _takes(name, alphas), public_name)
    if options.nonfinite == "raise":
        checks.check_finite(grads)
    lr_number, lr_tensor = number_and_tensor(options.lr)
    scale_number, scale_tensor = number_and_tensor(options.scale)
    given = operator.spec.record(
        weight=weights,
        grad=checks.contiguous(grads),
        anchor=sources.anchor or (),
        flexibility=sources.flexibility or (),
        lr=lr_number,
        scale=scale_number,
        alpha=checks.contiguous(alphas),
        sources=sources.rows or (),
        parameters=sources.numbers or (),
        master=masters,
        lr_tensor=lr_tensor,
        scale_tensor=scale_tensor,
        skip_nonfinite=options.nonfinite != "propagate",
        **checked,
        **vars(rule),
    )
    operator.run(given, backend)


def _takes(backend: str, alphas: list[Tensor]) -> str | None:
    if backend in ("cuda", "triton") and any(alpha.dtype is torch.bfloat16 for alpha in alphas):
        return "alpha in bfloat16 is taken by the CPU kernels and the reference only; pass alpha.float()"
    return None
