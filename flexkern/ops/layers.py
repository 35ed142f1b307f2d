"""What the passes over the synapses of a layer share: the checks, and the attempt before these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.ops import checks
from flexkern.ops.choices import INSERTS
from flexkern.ops.operator import Attempt, Operator, are_numbers, are_plain, is_tensor, is_word
from flexkern.ops.ordinary import is_ordinary, ordinary
from flexkern.ops.sources import Sources, check_source, encode, quick_sources, single
from flexkern.ops.steps import QUICK_NONFINITE, Given, InsertionRule, Options, number_and_tensor, quick_rule
from flexkern.spec import Arguments, Rule
from flexkern.spec.mask import words_in_row
from flexkern.spec.record import check_extents, extents

__all__ = [
    "Conversions",
    "LayerGate",
    "attempt_layer",
    "check_layers",
    "check_matrix",
    "check_silent",
    "conversions_of",
    "layer_arguments",
    "make_sources",
]


class Conversions(NamedTuple):
    """What a pass did, for each postsynaptic unit: int32 [out], on the device of the weight.

    converted: silent synapses that became functional.
    pruned: functional synapses that went silent.
    """

    converted: Tensor
    pruned: Tensor


class LayerGate(NamedTuple):
    """Where alpha comes from, of one layer or of lists, as it was given: alpha itself, or a flexibility.

    It travels as a plain tuple until the checks need its names, as Options do.
    """

    anchor: Any
    flexibility: Any
    alpha: Any


# ------------------------------------------------------------------ checks


def check_matrix(weight: Tensor) -> None:
    """The weight of a layer is [out, in]."""
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {tuple(weight.shape)}")


def check_layers(layers: Sequence[Arguments]) -> None:
    """No tensor that a pass over these layers writes shares memory with another.

    Raises:
        ValueError, RuntimeError: naming what does not fit.
    """
    written = [named for given in layers for named in given.writes()]
    read = [named for given in layers for named in given.reads()]
    checks.check_writes(written, read)
    if len(layers) > 1 and not torch.compiler.is_compiling():  # one layer: the operator looks itself
        written, read = ([n for n in named if is_ordinary(n[1])] for named in (written, read))
        check_extents([*extents(written, is_written=True), *extents(read, is_written=False)])


def make_sources(
    weight: Tensor,
    anchor: Tensor | Field,
    flexibility: Tensor | Field | float | None,
    alpha: Tensor | None,
    scale: float | Tensor | None,
    writes_anchor: bool,
) -> Sources:
    """Checks anchor, flexibility or alpha, and scale of a matrix.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    exact = checks.exact_dtype(weight)
    check_source(anchor, "anchor", weight, exact)
    if alpha is not None:
        checks.check_matches(alpha, "alpha", weight, (exact,))
        flexibility = 1.0  # its row is not looked at
    elif flexibility is None or scale is None:
        raise TypeError("flexibility and scale are needed where no alpha is given")
    else:
        check_source(flexibility, "flexibility", weight, exact)
        checks.check_number(scale, "scale", weight, positive=True)
    sources = single(encode([anchor], [flexibility]))
    # check_silent has seen that a written anchor is a tensor; it is written in its own layout.
    return sources._replace(anchor=anchor) if writes_anchor else sources


def check_silent(
    silent: object, weight: Tensor, anchor: Tensor | Field, threshold: float | Tensor, insertion: InsertionRule
) -> None:
    """Checks the packed mask and how synapses convert.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    shape = (weight.shape[0], words_in_row(weight.shape[1]))
    if isinstance(silent, Tensor):
        checks.check_dense(silent, "silent")
    if not isinstance(silent, Tensor) or silent.dtype is not torch.int32 or tuple(silent.shape) != shape:
        got = f"{silent.dtype} {tuple(silent.shape)}" if isinstance(silent, Tensor) else type(silent).__name__
        raise TypeError(f"silent must be int32 {shape} from flexkern.ops.pack_mask, got {got}")
    if silent.device != weight.device:
        raise ValueError(f"silent must be on the device of weight, {weight.device}, got {silent.device}")
    checks.check_writable(silent, "silent")
    checks.check_word(insertion.insert, "insert", INSERTS)
    if insertion.insert == "hebbian":
        if not isinstance(anchor, Tensor):
            raise ValueError(
                "insert='hebbian' writes the anchor of each synapse that it converts, so the anchor must be a "
                "tensor; take flexkern.ops.materialize(field, weight.shape), or insert='init'"
            )
        checks.check_dense(anchor, "anchor")
        checks.check_writable(anchor, "anchor")
    for name, value in (("eta", insertion.eta), ("prune", insertion.prune)):
        if not checks.is_number(value):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not 0 <= value <= checks.LARGEST_NUMBER:
            got = checks.shown(value)
            raise ValueError(f"{name} must be >= 0 and at most {checks.LARGEST_NUMBER}, got {got}")
        checks.check_not_lost(value, name)
    _check_threshold(threshold, weight)


def _check_threshold(threshold: float | Tensor, weight: Tensor) -> None:
    if not isinstance(threshold, Tensor):
        checks.check_number(threshold, "threshold", weight, zero_is_special=True)
        return
    checks.check_dense(threshold, "threshold")
    exact, out = checks.exact_dtype(weight), weight.shape[0]
    if threshold.dtype is not exact or tuple(threshold.shape) not in ((), (1,), (out,)):
        raise ValueError(
            f"threshold as a tensor must be {exact} with one element, or one for each of the {out} "
            f"postsynaptic units, got {threshold.dtype} {tuple(threshold.shape)}"
        )
    if threshold.device != weight.device:
        raise ValueError(f"threshold must be on {weight.device}, got {threshold.device}")


def layer_arguments(
    operator: Operator,
    inputs: dict[str, Tensor],
    sources: Sources,
    alpha: Tensor | None,
    silent: Tensor | None,
    activities: Sequence[Tensor],
    threshold: float | Tensor,
    states: dict[str, Tensor | None],
    master: Tensor | None,
    insertion: InsertionRule,
    rule: Rule,
    options: Options,
) -> Arguments:
    """The call of a layer's operator, once all has been checked; ``inputs`` are weight and gradient by name."""
    theta = number_and_tensor(ordinary(threshold) if isinstance(threshold, Tensor) else threshold)
    lr_number, lr_tensor = number_and_tensor(options.lr)
    scale_number, scale_tensor = number_and_tensor(0.0 if alpha is not None else options.scale)
    return operator.spec.record(
        **inputs,
        anchor=sources.anchor,
        flexibility=sources.flexibility,
        silent=silent,
        activities=activities,
        threshold=theta[0],
        lr=lr_number,
        scale=scale_number,
        alpha=None if alpha is None else ordinary(alpha),
        sources=sources.rows or (),
        parameters=sources.numbers or (),
        master=master,
        threshold_tensor=theta[1],
        lr_tensor=lr_tensor,
        scale_tensor=scale_tensor,
        hebbian=silent is not None and insertion.insert == "hebbian",
        # Without silent synapses nothing converts, and what says how has not been looked at.
        eta=1.0 if silent is None else float(insertion.eta),
        prune=0.0 if silent is None else float(insertion.prune),
        skip_nonfinite=options.nonfinite != "propagate",
        **states,
        **vars(rule),
    )  # type: ignore[call-arg] # the record of this operator, as its declaration says


def conversions_of(counts: Tensor | tuple[Tensor, Tensor] | Conversions) -> Conversions:
    """The result of an operator, or of its direct call, by name; one that has been named stays."""
    if isinstance(counts, Conversions):
        return counts
    return Conversions._make(counts.unbind() if isinstance(counts, Tensor) else counts)


# ------------------------------------------------------------------ before the checks


def attempt_layer(
    operator: Operator,
    inputs: tuple[Any, ...],
    gate: tuple[Any, Any, Any],
    silent: Any,
    activities: tuple[Any, ...] | None,
    threshold: Any,
    given: Given,
) -> Attempt | None:
    """The step of one layer, after tries_compiled; ``inputs`` are weight and gradient."""
    weight = inputs[0]
    anchor, flexibility, alpha = gate
    lr, scale, states, master, nonfinite, numbers, insertion = given
    assert operator.spec.rule is not None
    rule = quick_rule(operator.spec.rule, numbers)
    if rule is None:
        return None
    insert: Any = "init"
    eta: Any = 1.0
    prune: Any = 0.0
    if insertion:
        insert, eta = insertion.get("insert", insert), insertion.get("eta", eta)
        prune = insertion.get("prune", prune)
        if not is_word(insert, INSERTS):
            return None
    if alpha is not None:
        scale, flexibility = 0.0, 1.0
    if not is_word(nonfinite, QUICK_NONFINITE):
        return None
    hebbian = insert == "hebbian" and silent is not None
    needed = rule.none or rule.states(states)
    exact = None if master is None or getattr(weight, "dtype", None) is torch.float32 else master
    sources = quick_sources(anchor, flexibility)
    if sources is None:
        return None
    a, f, rows, floats = sources
    arguments = (*inputs, a, f, silent, activities, threshold, lr, scale)
    takes_all = insertion or not rule.is_plain or nonfinite != "skip"
    # What is passed costs time, also if it is None.
    if takes_all or not rule.none or not (alpha is None and rows is None and exact is None):
        arguments = (*arguments, alpha, rows, floats, *needed, exact)
    if takes_all:
        arguments = (*arguments, None, None, None, hebbian, eta, prune, *rule.numbers, nonfinite == "skip")
    if operator.goes_direct(weight):
        return operator.direct, arguments, ()
    updated = needed[: rule.updated]
    written = [t for t in (weight, silent, *updated, exact, anchor if hebbian else None) if t is not None]
    if not (
        are_plain(written, operator)
        and are_numbers((lr, scale, threshold, eta, prune))
        and (activities is None or all(map(is_tensor, activities)))
    ):
        return None
    return operator.compiled, arguments, written
