"""The synapses of one layer as the operators take them: their state, and the checks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern import reference
from flexkern.fields import Field
from flexkern.ops import _checks
from flexkern.ops._define import Operator
from flexkern.ops._step import (
    PLAIN_RULE,
    QUICK_NONFINITE,
    Rule,
    are_numbers,
    are_plain,
    check_source,
    check_writes,
    encode,
    exact_dtype,
    in_place,
    number,
    quick_sources,
    reference_sources,
    split,
)
from flexkern.ops.layer_arguments import LayerArguments
from flexkern.ops.mask import words_in_row

__all__ = [
    "Conversions",
    "Gate",
    "check_dense",
    "check_layers",
    "check_matrix",
    "check_silent",
    "layer_arguments",
    "make_gate",
    "reference_step",
    "run_layer",
    "try_layer",
]

INSERTS = ("init", "hebbian")
# hebbian, eta, prune, the rule and skip_nonfinite, where all have their defaults
PLAIN_NUMBERS = (False, 1.0, 0.0, *PLAIN_RULE, True)


class Conversions(NamedTuple):
    """What a pass did, for each postsynaptic unit: int32 [out], on the device of the weight.

    converted: silent synapses that became functional.
    pruned: functional synapses that went silent.
    """

    converted: Tensor
    pruned: Tensor


def check_layers(layers: Sequence[tuple[Tensor, LayerArguments]], inputs: Sequence[Tensor]) -> None:
    """No tensor that a pass over these weights writes shares memory with another, or with ``inputs``, which the
    operators take before LayerArguments.

    Raises:
        ValueError, RuntimeError: naming what does not fit.
    """
    written = [t for weight, arguments in layers for t in arguments.written(weight)]
    read = [*inputs, *(t for _, arguments in layers for t in arguments.read())]
    check_writes(written, read, "weight, momentum_buffer, master, silent or anchor")
    if len(layers) > 1 and not torch.compiler.is_compiling():  # one layer: the operator looks itself
        _checks.check_memory(*([t for t in tensors if t.is_contiguous()] for tensors in (written, read)))


def run_layer(
    operator: Callable[..., Tensor], weight: Tensor, inputs: Sequence[Tensor], arguments: LayerArguments
) -> Conversions:
    """Runs ``operator`` in place, after check_layers; ``inputs`` are its arguments before LayerArguments."""

    def on_dense(dense: list[Tensor]) -> Tensor:
        state: dict[str, Any] = dict(zip(arguments.writes(), dense[1:], strict=True))
        replaced = arguments._replace(**state)
        return operator(dense[0], *inputs, *replaced)

    return Conversions(*in_place(arguments.written(weight), on_dense).unbind(0))


def check_matrix(weight: Tensor) -> None:
    """The weight of a layer is [out, in]."""
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {tuple(weight.shape)}")


def check_dense(tensor: Tensor, name: str) -> None:
    """Not a sparse tensor."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")


class Gate(NamedTuple):
    """The part of :class:`LayerArguments` that alpha comes from."""

    anchor: Tensor | None
    flexibility: Tensor | None
    alpha: Tensor | None
    sources: list[int]
    parameters: list[float]


def make_gate(
    weight: Tensor,
    anchor: Tensor | Field,
    flexibility: Tensor | Field | float | None,
    alpha: Tensor | None,
    scale: float | Tensor | None,
    writes_anchor: bool,
) -> Gate:
    """Checks anchor, flexibility or alpha, and scale of a matrix.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    exact = exact_dtype(weight)
    check_source(anchor, "anchor", weight, exact)
    if alpha is not None:
        _checks.check_matches(alpha, "alpha", weight, (exact,))
        flexibility = 1.0  # its row is not looked at
    elif flexibility is None or scale is None:
        raise TypeError("flexibility and scale are needed where no alpha is given")
    else:
        check_source(flexibility, "flexibility", weight, exact)
        _checks.check_number(scale, "scale", weight, positive=True)
    stored_a, stored_f, sources, parameters = encode([anchor], [flexibility])
    a, f = (stored[0] if stored else None for stored in (stored_a, stored_f))
    if writes_anchor:
        a = anchor  # type: ignore[assignment] # check_silent has seen that it is a tensor; written in its layout
    return Gate(a, f, None if alpha is None else alpha.contiguous(), sources, parameters)


def check_silent(
    silent: object,
    weight: Tensor,
    anchor: Tensor | Field,
    threshold: float | Tensor,
    insert: str,
    eta: float,
    prune: float,
) -> None:
    """Checks the packed mask and how synapses convert.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    shape = (weight.shape[0], words_in_row(weight.shape[1]))
    if not isinstance(silent, Tensor) or silent.dtype is not torch.int32 or tuple(silent.shape) != shape:
        got = f"{silent.dtype} {tuple(silent.shape)}" if isinstance(silent, Tensor) else type(silent).__name__
        raise TypeError(f"silent must be int32 {shape} from flexkern.ops.pack_mask, got {got}")
    if silent.device != weight.device:
        raise ValueError(f"silent must be on the device of weight, {weight.device}, got {silent.device}")
    check_dense(silent, "silent")
    _checks.check_writable(silent, "silent")
    if insert not in INSERTS:
        raise ValueError(f"insert must be one of {INSERTS}, got {insert!r}")
    if insert == "hebbian":
        if not isinstance(anchor, Tensor):
            raise ValueError(
                "insert='hebbian' writes the anchor of each synapse that it converts, so the anchor must be a "
                "tensor; take flexkern.ops.materialize(field, weight.shape), or insert='init'"
            )
        _checks.check_writable(anchor, "anchor")
    for name, value in (("eta", eta), ("prune", prune)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not 0 <= value <= _checks.LARGEST_NUMBER:
            raise ValueError(f"{name} must be >= 0 and at most {_checks.LARGEST_NUMBER}, got {value}")
    _check_threshold(threshold, weight)


def layer_arguments(
    gate: Gate,
    silent: Tensor | None,
    drive: Sequence[Tensor],
    threshold: float | Tensor,
    lr: float | Tensor,
    scale: float | Tensor | None,
    momentum_buffer: Tensor | None,
    master: Tensor | None,
    insert: str,
    eta: float,
    prune: float,
    rule: Rule,
    nonfinite: str,
) -> LayerArguments:
    """All of them, once they have been checked."""
    theta = split(threshold.contiguous() if isinstance(threshold, Tensor) else threshold)
    lr_number, lr_tensor = split(lr)
    scale_number, scale_tensor = split(0.0 if scale is None else scale)
    return LayerArguments(
        gate.anchor, gate.flexibility, silent, drive, theta[0], lr_number, scale_number, gate.alpha,
        gate.sources, gate.parameters, momentum_buffer, master, theta[1], lr_tensor, scale_tensor,
        insert == "hebbian", float(eta), float(prune), *rule, nonfinite != "propagate",
    )  # fmt: skip


def try_layer(
    operator: Operator,
    inputs: tuple[Any, ...],
    gate: tuple[Any, Any, Any],
    silent: Any,
    drive: tuple[Any, ...] | None,
    threshold: Any,
    lr: Any,
    scale: Any,
    momentum_buffer: Any,
    master: Any,
    insert: str,
    eta: Any,
    prune: Any,
    rule: Rule,
    nonfinite: str,
) -> Conversions | None:
    """Takes the step if the compiled operator does not refuse, after tries_compiled; else nothing has changed.

    ``inputs``: weight and what comes before LayerArguments; ``gate``: anchor, flexibility and alpha.
    """
    weight = inputs[0]
    anchor, flexibility, alpha = gate
    held = alpha is not None
    if held:
        scale = 0.0
    hebbian = insert == "hebbian" and silent is not None
    buffer = momentum_buffer if rule[1] else None
    exact = None if master is None or getattr(weight, "dtype", None) is torch.float32 else master
    written = [t for t in (weight, silent, buffer, exact, anchor if hebbian else None) if t is not None]
    if not (
        are_plain(written)
        and are_numbers((lr, scale, threshold, eta, prune))
        and insert in INSERTS
        and nonfinite in QUICK_NONFINITE
    ):
        return None
    sources = quick_sources(anchor, 1.0 if held else flexibility)
    if sources is None:
        return None
    a, f, ints, floats = sources
    arguments: tuple[Any, ...] = (
        a, f, silent, drive, threshold, lr, scale, alpha, ints, floats, buffer, exact
    )  # fmt: skip
    numbers = (hebbian, eta, prune, *rule, nonfinite == "skip")
    if numbers != PLAIN_NUMBERS:
        arguments = (*arguments, None, None, None, *numbers)
    try:
        counts = operator.compiled(*inputs, *arguments)
    except RuntimeError:  # the checks say why
        return None
    torch.autograd.graph.increment_version(written)
    return Conversions(*counts.unbind(0))


def _check_threshold(threshold: float | Tensor, weight: Tensor) -> None:
    if not isinstance(threshold, Tensor):
        _checks.check_number(threshold, "threshold", weight)
        return
    check_dense(threshold, "threshold")
    exact, out = exact_dtype(weight), weight.shape[0]
    if threshold.dtype is not exact or tuple(threshold.shape) not in ((), (1,), (out,)):
        raise ValueError(
            f"threshold as a tensor must be {exact} with one element, or one for each of the {out} "
            f"postsynaptic units, got {threshold.dtype} {tuple(threshold.shape)}"
        )
    if threshold.device != weight.device:
        raise ValueError(f"threshold must be on {weight.device}, got {threshold.device}")


# --------------------------------------------------------------------------- for the reference implementations


def reference_step(weight: Tensor, inputs: Sequence[Tensor], given: LayerArguments) -> tuple[Any, ...]:
    """Checks memory, and returns what reference.synapse_step_ and linear_step_ take beside gradient and drive:
    anchor and alpha as tensors, the insertion, momentum buffer, master and rule.

    Raises:
        ValueError: if a written tensor shares memory with another argument, or with one of ``inputs``.
    """
    _checks.check_memory(given.written(weight), [*inputs, *given.read()])
    exact = weight if given.master is None else given.master
    stored_a, stored_f = ([] if t is None else [t] for t in (given.anchor, given.flexibility))
    if given.alpha is not None:
        rows = given.sources[: len(given.sources) // 2], given.parameters[: len(given.parameters) // 2]
        anchor, alpha = reference.sources_to_tensors(stored_a, *rows, [exact])[0], given.alpha
    else:
        a, f = reference_sources([exact], stored_a, stored_f, given.sources, given.parameters)
        anchor, alpha = a[0], reference.gate(exact, a[0], f[0], number(given.scale, given.scale_tensor, weight))
    theta = given.threshold if given.threshold_tensor is None else given.threshold_tensor
    rule = reference.SgdRule(
        number(given.lr, given.lr_tensor, weight), given.weight_decay, given.momentum, given.dampening,
        given.nesterov, given.maximize, given.skip_nonfinite,
    )  # fmt: skip
    return (
        anchor,
        alpha,
        reference.Insertion(theta, given.hebbian, given.eta, given.prune),
        given.momentum_buffer,
        given.master,
        rule,
    )
