"""The synapses of one layer as the operators take them: their state, and the checks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern import reference
from flexkern.fields import Field
from flexkern.layer_arguments import LayerArguments
from flexkern.ops import _checks
from flexkern.ops._step import (
    check_source,
    check_writes,
    encode,
    exact_dtype,
    in_place,
    number,
    reference_sources,
    split,
)
from flexkern.ops.mask import words_in_row

__all__ = [
    "Conversions",
    "Layer",
    "check_dense",
    "check_layers",
    "check_matrix",
    "check_silent",
    "make_layer",
    "reference_step",
    "split_threshold",
]

INSERTS = ("init", "hebbian")


class Conversions(NamedTuple):
    """What a pass did, for each postsynaptic unit: int32 [out], on the device of the weight.

    converted: silent synapses that became functional.
    pruned: functional synapses that went silent.
    """

    converted: Tensor
    pruned: Tensor


class Layer(NamedTuple):
    """What is known of the synapses of a weight [out, in]; each list is empty or has one tensor.

    ``sources`` and ``parameters`` have a row for the anchor and one for the flexibility; empty: both are
    stored. With a stored ``alpha`` the flexibility's row is there but unused.
    """

    weight: Tensor
    anchor: list[Tensor]
    flexibility: list[Tensor]
    alpha: list[Tensor]
    sources: list[int]
    parameters: list[float]
    momentum_buffer: list[Tensor]
    master: list[Tensor]
    silent: list[Tensor]
    writes_anchor: bool

    def _written(self) -> list[str]:
        names = ["momentum_buffer", "master", "silent"]
        return [*names, "anchor"] if self.writes_anchor else names

    def written(self) -> list[Tensor]:
        """The tensors that a pass updates."""
        return [self.weight, *(t for name in self._written() for t in getattr(self, name))]

    def read(self) -> list[Tensor]:
        """The tensors that a pass only reads."""
        anchor = [] if self.writes_anchor else self.anchor
        return [*anchor, *self.flexibility, *self.alpha]

    def run(self, call: Callable[..., Tensor]) -> Conversions:
        """Runs ``call(weight, *state)`` in place, after check_layers."""

        def on_dense(dense: list[Tensor]) -> Tensor:
            rest = iter(dense[1:])
            new: dict[str, Any] = {name: [next(rest) for _ in getattr(self, name)] for name in self._written()}
            weight, *state, _ = self._replace(weight=dense[0], **new)
            return call(weight, *state)

        return Conversions(*in_place(self.written(), on_dense).unbind(0))


def check_layers(layers: Sequence[Layer], inputs: Sequence[Tensor]) -> None:
    """No tensor that a pass over these layers writes shares memory with another, or with ``inputs``.

    Raises:
        ValueError, RuntimeError: naming what does not fit.
    """
    written = [t for layer in layers for t in layer.written()]
    read = [*inputs, *(t for layer in layers for t in layer.read())]
    check_writes(written, read, "weight, momentum_buffer, master, silent or anchor")
    if len(layers) > 1 and not torch.compiler.is_compiling():  # one layer: the operator looks itself
        _checks.check_memory(*([t for t in tensors if t.is_contiguous()] for tensors in (written, read)))


def check_matrix(weight: Tensor) -> None:
    """The weight of a layer is [out, in]."""
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {tuple(weight.shape)}")


def check_dense(tensor: Tensor, name: str) -> None:
    """Not a sparse tensor."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")


def make_layer(
    weight: Tensor,
    anchor: Tensor | Field,
    flexibility: Tensor | Field | float | None,
    alpha: Tensor | None,
    scale: float | Tensor | None,
    momentum_buffer: list[Tensor],
    master: list[Tensor],
    silent: list[Tensor],
    insert: str,
) -> Layer:
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
    a, f, sources, parameters = encode([anchor], [flexibility])
    held = [] if alpha is None else _checks.contiguous([alpha])
    writes_anchor = bool(silent) and insert == "hebbian"
    if writes_anchor:
        a = [anchor]  # type: ignore[list-item] # check_silent has seen that it is a tensor; written in its layout
    return Layer(weight, a, f, held, sources, parameters, momentum_buffer, master, silent, writes_anchor)


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


def split_threshold(threshold: float | Tensor) -> tuple[float, Tensor | None]:
    """As the operators have it: a number, or a contiguous tensor."""
    return split(threshold.contiguous() if isinstance(threshold, Tensor) else threshold)


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
    exact = given.master[0] if given.master else weight
    if given.alpha:
        rows = given.sources[: len(given.sources) // 2], given.parameters[: len(given.parameters) // 2]
        anchor, alpha = reference.sources_to_tensors(given.anchor, *rows, [exact])[0], given.alpha[0]
    else:
        a, f = reference_sources([exact], given.anchor, given.flexibility, given.sources, given.parameters)
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
        given.momentum_buffer[0] if given.momentum_buffer else None,
        given.master[0] if given.master else None,
        rule,
    )
