"""One pass over the synapses of a layer (docs/design.md): functional ones step, silent ones convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flexkern.fields import Field
from flexkern.ops import checks
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
from flexkern.ops.operator import Operator, tries_compiled
from flexkern.ops.steps import (
    Given,
    InsertionRule,
    Options,
    check_step,
    of_options,
    rule_of,
    split_options,
    states_and_master,
)
from flexkern.spec import RULES

__all__ = ["STEPS", "Conversions", "synapse_step_", "synapse_step_by_rule"]

# Of each rule, by their names.
STEPS = {kind.operator("synapse"): Operator(kind.operator("synapse")) for kind in RULES}
SYNAPSE = STEPS["synapse_step_"]


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
    alpha: Tensor | Sequence[Tensor] | None = None,
    momentum_buffer: Tensor | Sequence[Tensor] | None = None,
    master: Tensor | Sequence[Tensor] | None = None,
    nonfinite: str = "skip",
    **options: Any,
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
        silent: int32 words [out, ceil(in / 32)] from :func:`flexkern.ops.pack_mask`, updated in place;
            bits past the last column stay as they are.
        pre, post: float32 [in] and [out]: mean activity of each unit over the batch (the rate rule); a negative
            value counts as 0.
        threshold: theta >= 0, a number, or a float32 tensor with one element or one for each of the out units.
        lr, scale: numbers, or one-element float32 tensors. ``scale`` may be None where ``alpha`` is given.
        coincidence: float32 [out, in] in place of ``pre`` and ``post``: c itself, for example mean_b post[b, j]
            pre[b, i] (the Hebbian rule), over as many batches as wanted.
        alpha: float32 [out, in], a gate that is kept through an item. It should be 1 where ``silent`` is set.
        momentum_buffer, master, nonfinite: as in :func:`flexkern.ops.metaplastic_sgd_`. An infinite or NaN
            coincidence converts nothing. "raise" looks at all of ``grad``.
        options: those of :class:`flexkern.ops.InsertionRule` (``insert``, ``eta``, ``prune``) and of
            :class:`flexkern.ops.SgdRule` (``weight_decay``, ``momentum``, ...) by name.

    Returns:
        :class:`Conversions`, or a list of them; nothing waits for the device.

    Raises:
        TypeError, ValueError: if an argument does not fit; nothing has been changed then.
        FloatingPointError: with ``nonfinite="raise"``.

    Source: arXiv 2407.07133, section 2, for the update; arXiv 2410.05899 for silent and functional synapses.
    """
    insertion, rule = split_options(options)
    given = (lr, scale, {"momentum_buffer": momentum_buffer}, master, nonfinite, rule, insertion)
    gate = anchor, flexibility, alpha
    return synapse_step_by_rule(SYNAPSE, weight, grad, gate, silent, pre, post, coincidence, threshold, given)


def synapse_step_by_rule(
    operator: Operator,
    weight: Any,
    grad: Any,
    gate: tuple[Any, Any, Any],
    silent: Any,
    pre: Any,
    post: Any,
    coincidence: Any,
    threshold: Any,
    given: Given,
) -> Conversions | list[Conversions]:
    """:func:`synapse_step_` by the operator of any rule; ``given`` has its states and numbers by name."""
    attempt = None
    if tries_compiled() and (coincidence is None or (pre is None and post is None)):
        activities = (pre, post) if coincidence is None else (coincidence,)
        attempt = attempt_layer(operator, (weight, grad), gate, silent, activities, threshold, given)
    result = operator(
        attempt, _checked, operator, weight, grad, gate, silent, pre, post, coincidence, threshold, given
    )
    return result if isinstance(result, list) else conversions_of(result)


def _checked(
    operator: Operator,
    weight: Any,
    grad: Any,
    gate: tuple[Any, Any, Any],
    silent: Any,
    pre: Any,
    post: Any,
    coincidence: Any,
    threshold: Any,
    given: Given,
) -> Conversions | list[Conversions]:
    name, options, gated = operator.spec.name, Options(*given), LayerGate(*gate)
    rule = rule_of(operator, options, name)
    insertion = of_options(InsertionRule, options.insertion, name)
    weights, grads = check_step(weight, grad, options, rule)
    several = isinstance(weight, (list, tuple))
    if not weights:
        return []

    def column(value: Any, name: str) -> list[Any]:
        """An entry for each layer; None and a number serve all of them."""
        shared = several and (value is None or isinstance(value, (int, float)))
        return [value] * len(weights) if shared else checks.as_list(value, name, len(weights))

    of_layers = {**gated._asdict(), "silent": silent, "pre": pre, "post": post, "coincidence": coincidence,
             "threshold": threshold}  # fmt: skip
    columns = {name: column(value, name) for name, value in of_layers.items()}
    checked_states, masters = states_and_master(options, weights, rule)
    layers = []
    for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
        of = {name: values[i] for name, values in columns.items()}
        check_matrix(w)
        check_silent(of["silent"], w, of["anchor"], of["threshold"], insertion)
        sources = make_sources(
            w, of["anchor"], of["flexibility"], of["alpha"], options.scale, insertion.insert == "hebbian"
        )
        activities = _check_activities(w, of["pre"], of["post"], of["coincidence"])
        own = {name: values[i] if values else None for name, values in checked_states.items()}
        layers.append(layer_arguments(
            operator, {"weight": w, "grad": g}, sources, of["alpha"], of["silent"], activities,
            of["threshold"], own, masters[i] if masters else None, insertion, rule, options,
        ))  # fmt: skip
    backend = operator.choose(weights[0])
    if options.nonfinite == "raise":
        checks.check_finite(grads)
    check_layers(layers)
    for layer, dense in zip(layers, checks.contiguous(grads), strict=True):
        layer.grad = dense  # type: ignore[attr-defined]
    results = [conversions_of(operator.run(layer, backend)) for layer in layers]
    return results if several else results[0]


def _check_activities(
    weight: Tensor, pre: Tensor | None, post: Tensor | None, coincidence: Tensor | None
) -> list[Tensor]:
    exact, (units_out, units_in) = checks.exact_dtype(weight), weight.shape
    if coincidence is not None:
        if pre is not None or post is not None:
            raise ValueError("give either coincidence, or pre and post, not both")
        checks.check_matches(coincidence, "coincidence", weight, (exact,))
        return checks.contiguous([coincidence])
    activities = []
    for name, value, size in (("pre", pre, units_in), ("post", post, units_out)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor of mean activities, got {type(value).__name__}; or give coincidence"
            )
        checks.check_dense(value, name)
        if value.dtype is not exact or tuple(value.shape) != (size,):
            raise ValueError(
                f"{name} must be {exact} [{size}], the mean activity of each unit over the batch, got "
                f"{value.dtype} {tuple(value.shape)}; of a batch take {name}.mean(0, dtype={exact})"
            )
        if value.device != weight.device:
            raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {value.device}")
        activities.append(value)
    return checks.contiguous(activities)
