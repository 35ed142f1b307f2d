"""The pass over a layer's synapses inside the product that makes their gradient (docs/design.md, One pass)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.fields import Field
from flexkern.ops import checks
from flexkern.ops.choices import RULES as COINCIDENCE_RULES
from flexkern.ops.layers import (
    Conversions,
    LayerGate,
    attempt_layer,
    check_layers,
    check_matrix,
    check_silent,
    conversions_of,
    layer_arguments,
    make_sources,
)
from flexkern.ops.operator import Operator, is_word, tries_compiled
from flexkern.ops.steps import (
    Given,
    InsertionRule,
    Options,
    check_rule,
    of_options,
    rule_of,
    split_options,
    states_and_master,
)
from flexkern.spec import RULES

__all__ = ["STEPS", "linear_step_", "linear_step_by_rule"]

# Of each rule, by their names.
STEPS = {kind.operator("linear"): Operator(kind.operator("linear")) for kind in RULES}
LINEAR = STEPS["linear_step_"]


def linear_step_(
    weight: Tensor,
    x: Tensor,
    grad_out: Tensor,
    anchor: Tensor | Field,
    flexibility: Tensor | Field | float | None,
    silent: Tensor | None = None,
    post: Tensor | None = None,
    *,
    lr: float | Tensor,
    scale: float | Tensor | None = None,
    rule: str = "hebbian",
    threshold: float | Tensor = 0.0,
    alpha: Tensor | None = None,
    momentum_buffer: Tensor | None = None,
    master: Tensor | None = None,
    nonfinite: str = "skip",
    **options: Any,
) -> Conversions:
    """:func:`flexkern.ops.synapse_step_` with the gradient of a linear layer, which is never written to memory.

    For y = x weight^T the gradient is grad_out^T x. It is made a tile (on the CPU: a block of rows) at a time,
    and each tile's synapses step and convert while it is at hand. In a backward pass compute
    ``grad_x = grad_out @ weight`` first. To accumulate over micro-batches, pass their concatenation.

    Args:
        weight: [out, in], float32, bfloat16, float16 or float64, updated in place.
        x: [batch, in], the layer's input, float32, bfloat16 or float16; products are accumulated in float32.
            On a CPU that multiplies bfloat16 (AVX512-BF16, AMX), a gradient of bfloat16 operands and at least
            2**22 multiplications is rounded to bfloat16, once, before the step, as that of autograd is;
            coincidences are not. On a GPU float32 is multiplied as torch.backends.cuda.matmul.fp32_precision
            says.
        grad_out: [batch, out], dtype of ``x``.
        anchor, flexibility, alpha, lr, scale: as in :func:`flexkern.ops.synapse_step_`.
        silent: packed mask as there, updated in place; None: all synapses are functional (also those that are
            silent by some mask: they would step), and what says how they convert is not used.
        post: [batch, out], dtype of ``x``: what the postsynaptic units did. The presynaptic activity is ``x``;
            of both the negative part counts as 0.
        rule: "hebbian": c[j, i] = mean_b post[b, j] x[b, i], a second product, made only for tiles that still
            have silent synapses. "rate": mean_b post[b, j] mean_b x[b, i].
        threshold, options: as there.
        momentum_buffer, master: as in :func:`flexkern.ops.metaplastic_sgd_`.
        nonfinite: as there; "raise" looks at ``x`` and ``grad_out``.

    Returns:
        :class:`flexkern.ops.Conversions`; all 0 without ``silent``.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2; arXiv 2410.05899; the fusion is this package's own.
    """
    insertion, numbers = split_options(options)
    given = (lr, scale, {"momentum_buffer": momentum_buffer}, master, nonfinite, numbers, insertion)
    gate = anchor, flexibility, alpha
    return linear_step_by_rule(LINEAR, weight, x, grad_out, gate, silent, post, rule, threshold, given)


def linear_step_by_rule(
    operator: Operator,
    weight: Tensor,
    x: Tensor,
    grad_out: Tensor,
    gate: tuple[Any, Any, Any],
    silent: Tensor | None,
    post: Tensor | None,
    rule: str,
    threshold: float | Tensor,
    given: Given,
) -> Conversions:
    """:func:`linear_step_` by the operator of any rule; ``given`` has its states and numbers by name."""
    attempt = None
    if tries_compiled() and (silent is None or is_word(rule, ("hebbian",))):
        activities = None if silent is None else (post,)
        attempt = attempt_layer(operator, (weight, x, grad_out), gate, silent, activities, threshold, given)
    return conversions_of(
        operator(attempt, _checked, operator, weight, x, grad_out, gate, silent, post, rule, threshold, given)
    )


def _checked(
    operator: Operator,
    weight: Tensor,
    x: Tensor,
    grad_out: Tensor,
    gate: tuple[Any, Any, Any],
    silent: Tensor | None,
    post: Tensor | None,
    rule: str,
    threshold: float | Tensor,
    given: Given,
) -> Conversions:
    name, options, gated = operator.spec.name, Options(*given), LayerGate(*gate)
    step_rule = rule_of(operator, options, name)
    insertion = of_options(InsertionRule, options.insertion, name)
    checks.check_matches(weight, "weight", weight, checks.FLOAT_DTYPES)
    checks.check_writable(weight, "weight")
    check_matrix(weight)
    check_rule(weight, step_rule, options)
    checked_states, masters = states_and_master(options, [weight], step_rule)
    if silent is not None:
        check_silent(silent, weight, gated.anchor, threshold, insertion)
    writes_anchor = silent is not None and insertion.insert == "hebbian"
    sources = make_sources(weight, *gated, options.scale, writes_anchor)
    out, units_in = weight.shape
    _check_batch(x, "x", weight, None, units_in)
    _check_batch(grad_out, "grad_out", weight, x, out)
    activities: list[Tensor] = []
    if silent is not None:
        checks.check_word(rule, "rule", COINCIDENCE_RULES)
        _check_batch(post, "post", weight, x, out)
        assert post is not None
        exact = checks.exact_dtype(weight)
        activities = [_mean_activity(x, exact), _mean_activity(post, exact)] if rule == "rate" else [post]
    backend = operator.choose(weight)
    if options.nonfinite == "raise":
        checks.check_finite([x], "x")
        checks.check_finite([grad_out], "grad_out")
    x, grad_out, *activities = checks.contiguous([x, grad_out, *activities])
    layer = layer_arguments(
        operator, {"weight": weight, "x": x, "grad_out": grad_out}, sources, gated.alpha, silent, activities,
        threshold, {name: values[0] if values else None for name, values in checked_states.items()},
        masters[0] if masters else None, insertion, step_rule, options,
    )  # fmt: skip
    check_layers([layer])
    return conversions_of(operator.run(layer, backend))


def _check_batch(tensor: object, name: str, weight: Tensor, like: Tensor | None, units: int) -> None:
    """A batch [B, units] of the dtype and batch size of ``like``, which is x."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor [batch, {units}], got {type(tensor).__name__}")
    checks.check_dense(tensor, name)
    allowed = (torch.float64,) if weight.dtype is torch.float64 else (torch.float32, *checks.LOW_PRECISION)
    if tensor.dtype not in allowed:
        names = " or ".join(str(d) for d in allowed)
        raise TypeError(f"{name} must be {names}, got {tensor.dtype}")
    if tensor.dim() != 2 or tensor.shape[1] != units:
        raise ValueError(
            f"{name} must be [batch, {units}] for a weight {tuple(weight.shape)}, got {tuple(tensor.shape)}; "
            "flatten other leading dimensions into the batch"
        )
    if tensor.device != weight.device:
        raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {tensor.device}")
    if like is not None and (tensor.dtype, len(tensor)) != (like.dtype, len(like)):
        raise ValueError(
            f"{name} must have the dtype and batch size of x, {like.dtype} and {len(like)}, got {tensor.dtype} "
            f"and {len(tensor)}"
        )


def _mean_activity(batch: Tensor, exact: torch.dtype) -> Tensor:
    return reference.activity(batch).mean(0, dtype=exact)
