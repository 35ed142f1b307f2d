"""One pass over the synapses of a layer (DESIGN 1.3, 1.4): functional ones step, driven silent ones convert."""

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
from flexkern.ops._step import check_step, exact_dtype, momentum_and_master, tries_compiled
from flexkern.ops.layer_arguments import LAYER_SCHEMA, LayerArguments

__all__ = ["Conversions", "synapse_step_"]


def _synapse_fake(weight: Tensor, *rest: object) -> Tensor:
    return weight.new_empty((2, weight.shape[0]), dtype=torch.int32)


def _synapse_reference(weight: Tensor, grad: Tensor, *arguments: Any) -> Tensor:
    given = LayerArguments(*arguments)
    assert given.silent is not None
    anchor, alpha, *rest = reference_step(weight, [grad], given)
    c = given.drive[0] if len(given.drive) == 1 else reference.coincidence(given.drive[0], given.drive[1])
    return reference.synapse_step_(weight, grad, anchor, alpha, given.silent, c, *rest)


def _triton_synapse() -> Callable[..., Any]:
    from flexkern.triton_kernels.synapse import synapse_step_

    return synapse_step_


# `drive` is the coincidence matrix, or the mean activities pre and post.
SYNAPSE = Operator(
    "synapse_step_",
    "(Tensor(a!) weight, Tensor grad, " + LAYER_SCHEMA,
    fake=_synapse_fake,
    reference=_synapse_reference,
    triton=_triton_synapse,
)


def _check_drive(
    weight: Tensor, pre: Tensor | None, post: Tensor | None, coincidence: Tensor | None
) -> list[Tensor]:
    exact, (units_out, units_in) = exact_dtype(weight), weight.shape
    if coincidence is not None:
        if pre is not None or post is not None:
            raise ValueError("give either coincidence, or pre and post, not both")
        _checks.check_matches(coincidence, "coincidence", weight, (exact,))
        return _checks.contiguous([coincidence])
    drive = []
    for name, value, size in (("pre", pre, units_in), ("post", post, units_out)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor of mean activities, got {type(value).__name__}")
        check_dense(value, name)
        if value.dtype is not exact or tuple(value.shape) != (size,):
            raise ValueError(
                f"{name} must be {exact} [{size}], the mean activity of each unit over the batch, got "
                f"{value.dtype} {tuple(value.shape)}; of a batch take {name}.mean(0, dtype={exact})"
            )
        if value.device != weight.device:
            raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {value.device}")
        drive.append(value)
    return _checks.contiguous(drive)


def synapse_step_(
    weight: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    anchor: Tensor | Field | Sequence[Tensor | Field],
    flexibility: Tensor | Field | float | Sequence[Tensor | Field | float] | None,
    silent: Tensor | Sequence[Tensor],
    pre: Tensor | Sequence[Tensor] | None = None,
    post: Tensor | Sequence[Tensor] | None = None,
    *,
    threshold: float | Tensor | Sequence[float | Tensor],
    lr: float | Tensor,
    scale: float | Tensor | None = None,
    coincidence: Tensor | Sequence[Tensor] | None = None,
    insert: str = "init",
    eta: float = 1.0,
    prune: float = 0.0,
    alpha: Tensor | Sequence[Tensor] | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
) -> Conversions | list[Conversions]:
    """The flexible update of functional synapses and the conversion of silent ones, in one pass over a layer.

    A silent synapse has the weight 0 and gets no gradient update. It becomes functional when the coincidence
    of its units, ``c[j, i] = post[j] pre[i]``, reaches the threshold: it is given a weight, which is its
    anchor, and no momentum. Takes one layer, or lists of equal length (one call; one launch for each layer).

    Args:
        weight: [out, in], float32, bfloat16, float16 or float64, updated in place. It must be 0 where
            ``silent`` is set, and stays untouched there.
        grad: [out, in], of the weight's dtype or float32; ignored where ``silent`` is set.
        anchor: float32 [out, in], or a Field. Where a synapse is silent it is the layer's own initial draw.
        flexibility: float32 [out, in], a Field, or a number in [0, 1]; None where ``alpha`` is given.
        silent: int32 words [out, ceil(in / 32)] from :func:`flexkern.ops.pack_mask`, updated in place.
        pre, post: float32 [in] and [out]: mean activity of each unit over the batch (DESIGN 1.3, the rate
            rule); a negative value counts as 0.
        threshold: theta >= 0, a number, or a float32 tensor with one element or one for each of the out units.
        lr, scale: numbers, or one-element float32 tensors. ``scale`` may be None where ``alpha`` is given.
        coincidence: float32 [out, in] in place of ``pre`` and ``post``: c itself, for example mean_b post[b, j]
            pre[b, i] (the Hebbian rule), over as many batches as wanted.
        insert: "init": the inserted weight is the anchor. "hebbian": it is ``eta * c``, and is written to the
            anchor too, which then must be a tensor.
        prune: a functional synapse with |w| under it before and after the step goes silent; 0: none does.
        alpha: float32 [out, in], a gate that is held through an item. It should be 1 where ``silent`` is set.
        weight_decay, momentum, dampening, nesterov, maximize, momentum_buffer, master, nonfinite: as in
            :func:`flexkern.ops.metaplastic_sgd_`. An infinite or NaN coincidence converts nothing. "raise"
            looks at all of ``grad``.

    Returns:
        :class:`Conversions`, or a list of them; nothing waits for the device.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2, for the update; arXiv 2410.05899 for silent and functional synapses.
    """
    rule = (weight_decay, momentum, dampening, nesterov, maximize)
    if tries_compiled() and (coincidence is None or (pre is None and post is None)):
        drives = (pre, post) if coincidence is None else (coincidence,)
        done = try_layer(
            SYNAPSE, (weight, grad), (anchor, flexibility, alpha), silent, drives, threshold, lr, scale,
            momentum_buffer, master, insert, eta, prune, rule, nonfinite,
        )  # fmt: skip
        if done is not None:
            return done
    weights, grads = check_step(weight, grad, lr, weight_decay, momentum, dampening, nesterov, nonfinite)
    several = isinstance(weight, (list, tuple))
    if not weights:
        return []

    def column(value: Any, name: str) -> list[Any]:
        """An entry for each layer; None and a number serve all of them."""
        shared = several and (value is None or isinstance(value, (int, float)))
        return [value] * len(weights) if shared else _checks.as_list(value, name, len(weights))

    per_layer = zip(
        weights,
        column(anchor, "anchor"),
        column(flexibility, "flexibility"),
        column(silent, "silent"),
        column(pre, "pre"),
        column(post, "post"),
        column(coincidence, "coincidence"),
        column(threshold, "threshold"),
        column(alpha, "alpha"),
        strict=True,
    )
    buffers, masters = momentum_and_master(momentum_buffer, master, weights, momentum)
    layers = []
    for i, (w, a, f, words, pre_i, post_i, c, theta, held) in enumerate(per_layer):
        check_matrix(w)
        check_silent(words, w, a, theta, insert, eta, prune)
        gate = make_gate(w, a, f, held, scale, insert == "hebbian")
        drive = _check_drive(w, pre_i, post_i, c)
        buffer, exact = (state[i] if state else None for state in (buffers, masters))
        arguments = layer_arguments(
            gate, words, drive, theta, lr, scale, buffer, exact, insert, eta, prune, rule, nonfinite
        )
        layers.append((w, arguments))
    dtype = weights[0].dtype
    backend = choose("synapse_step_", weights[0].device, lambda name: _checks.native_dtypes(name, dtype))
    if nonfinite == "raise":
        _checks.check_finite(grads)
    check_layers(layers, grads)
    operator, grads = SYNAPSE.on(backend), _checks.contiguous(grads)
    results = [run_layer(operator, w, [g], given) for (w, given), g in zip(layers, grads, strict=True)]
    return results if several else results[0]
