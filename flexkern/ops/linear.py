"""The pass over a layer's synapses inside the product that makes their gradient (DESIGN 1.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexkern import reference
from flexkern.backends import choose
from flexkern.fields import Field
from flexkern.ops import _checks
from flexkern.ops._define import Operator
from flexkern.ops._layer import (
    Conversions,
    check_dense,
    check_layers,
    check_matrix,
    check_silent,
    layer_arguments,
    make_gate,
    reference_step,
    run_layer,
    try_layer,
)
from flexkern.ops._step import check_rule, exact_dtype, momentum_and_master, tries_compiled
from flexkern.ops.layer_arguments import LAYER_SCHEMA, LayerArguments

__all__ = ["linear_step_"]

RULES = ("hebbian", "rate")


def _linear_fake(weight: Tensor, *rest: object) -> Tensor:
    return weight.new_empty((2, weight.shape[0]), dtype=torch.int32)


def _linear_reference(weight: Tensor, x: Tensor, grad_out: Tensor, *arguments: Any) -> Tensor:
    given = LayerArguments(*arguments)
    anchor, alpha, *rest = reference_step(weight, [x, grad_out], given)
    silent = c = None
    if given.silent is not None:
        silent = given.silent
        # The Hebbian rule has the post activity of the batch only: pre is x.
        pair = given.drive if len(given.drive) == 2 else (x, given.drive[0])
        c = reference.coincidence(*(activity.to(anchor.dtype) for activity in pair))
    return reference.linear_step_(weight, x, grad_out, anchor, alpha, silent, c, *rest)


def _triton_linear() -> Callable[..., Any]:
    from flexkern.triton_kernels.linear import linear_step_

    return linear_step_


# `drive` is empty without silent synapses. For the Hebbian rule it is the post activity of the batch, [B, out]
# (pre is x); for the rate rule, the mean activities pre [in] and post [out].
LINEAR = Operator(
    "linear_step_",
    "(Tensor(a!) weight, Tensor x, Tensor grad_out, " + LAYER_SCHEMA,
    fake=_linear_fake,
    reference=_linear_reference,
    triton=_triton_linear,
)


def _check_batch(tensor: object, name: str, weight: Tensor, like: Tensor | None, units: int) -> None:
    """A batch [B, units] of the dtype and batch size of ``like``, which is x."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor [batch, {units}], got {type(tensor).__name__}")
    check_dense(tensor, name)
    allowed = (torch.float64,) if weight.dtype is torch.float64 else (torch.float32, *_checks.LOW_PRECISION)
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
    insert: str = "init",
    eta: float = 1.0,
    prune: float = 0.0,
    alpha: Tensor | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffer: Tensor | None = None,
    master: Tensor | None = None,
    nonfinite: str = "skip",
) -> Conversions:
    """:func:`flexkern.ops.synapse_step_` with the gradient of a linear layer, which is never written to memory.

    For y = x weight^T the gradient is grad_out^T x. It is made a tile (on the CPU: a block of rows) at a time,
    and each tile's synapses step and convert while it is at hand. In a backward pass compute
    ``grad_x = grad_out @ weight`` first. To accumulate over micro-batches, pass their concatenation.

    Args:
        weight: [out, in], float32, bfloat16, float16 or float64, updated in place.
        x: [batch, in], the layer's input, float32, bfloat16 or float16; products are accumulated in float32.
            On a GPU float32 is multiplied as torch.backends.cuda.matmul.allow_tf32 says.
        grad_out: [batch, out], dtype of ``x``.
        anchor, flexibility, alpha, lr, scale: as in :func:`flexkern.ops.synapse_step_`.
        silent: packed mask as there, updated in place; None: all synapses are functional (also those that are
            silent by some mask: they would step), and ``rule`` to ``prune`` are not used.
        post: [batch, out], dtype of ``x``: what the postsynaptic units did. The presynaptic activity is ``x``;
            of both the negative part counts as 0.
        rule: "hebbian": c[j, i] = mean_b post[b, j] x[b, i], a second product, made only for tiles that still
            have silent synapses. "rate": mean_b post[b, j] mean_b x[b, i].
        threshold, insert, eta, prune: as there.
        weight_decay, momentum, dampening, nesterov, maximize, momentum_buffer, master: as in
            :func:`flexkern.ops.metaplastic_sgd_`.
        nonfinite: as there; "raise" looks at ``x`` and ``grad_out``.

    Returns:
        :class:`flexkern.ops.Conversions`; all 0 without ``silent``.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2; arXiv 2410.05899; the fusion is this package's own.
    """
    numbers = (weight_decay, momentum, dampening, nesterov, maximize)
    if tries_compiled() and (silent is None or rule == "hebbian"):
        done = try_layer(
            LINEAR, (weight, x, grad_out), (anchor, flexibility, alpha), silent,
            None if silent is None else (post,), threshold, lr, scale,
            momentum_buffer, master, insert, eta, prune, numbers, nonfinite,
        )  # fmt: skip
        if done is not None:
            return done
    _checks.check_matches(weight, "weight", weight, _checks.FLOAT_DTYPES)
    _checks.check_writable(weight, "weight")
    check_matrix(weight)
    check_rule(weight, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    state = momentum_and_master(momentum_buffer, master, [weight], momentum)
    buffer, exact_weight = (tensors[0] if tensors else None for tensors in state)
    if silent is not None:
        check_silent(silent, weight, anchor, threshold, insert, eta, prune)
    writes_anchor = silent is not None and insert == "hebbian"
    gate = make_gate(weight, anchor, flexibility, alpha, scale, writes_anchor)
    out, units_in = weight.shape
    _check_batch(x, "x", weight, None, units_in)
    _check_batch(grad_out, "grad_out", weight, x, out)
    drive: list[Tensor] = []
    if silent is not None:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
        _check_batch(post, "post", weight, x, out)
        assert post is not None
        exact = exact_dtype(weight)
        drive = [_mean_activity(x, exact), _mean_activity(post, exact)] if rule == "rate" else [post]
    backend = choose("linear_step_", weight.device, lambda name: _serves(name, weight.dtype))
    if nonfinite == "raise":
        _checks.check_finite([x], "x")
        _checks.check_finite([grad_out], "grad_out")
    x, grad_out, *drive = _checks.contiguous([x, grad_out, *drive])
    arguments = layer_arguments(
        gate, silent, drive, threshold, lr, scale, buffer, exact_weight, insert, eta, prune, numbers, nonfinite
    )
    check_layers([(weight, arguments)], [x, grad_out])
    return run_layer(LINEAR.on(backend), weight, [x, grad_out], arguments)


def _serves(backend: str, dtype: torch.dtype) -> str | None:
    if backend == "cuda":
        return "linear_step_ has no CUDA C++ kernel; on a GPU it runs on tensor cores through Triton"
    return _checks.native_dtypes(backend, dtype)
