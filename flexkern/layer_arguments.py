"""What synapse_step_ and linear_step_ take after their gradient: said once, for schemas and implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["LAYER_SCHEMA", "LayerArguments"]

# The end of both schemas, and their result.
LAYER_SCHEMA = (
    "Tensor(b!)[] anchor, Tensor[] flexibility, Tensor[] alpha, int[] sources, float[] parameters, "
    "Tensor(c!)[] momentum_buffer, Tensor(d!)[] master, Tensor(e!)[] silent, Tensor[] drive, float threshold, "
    "Tensor? threshold_tensor, bool hebbian, float eta, float prune, float lr, Tensor? lr_tensor, float scale, "
    "Tensor? scale_tensor, float weight_decay, float momentum, float dampening, bool nesterov, bool maximize, "
    "bool skip_nonfinite) -> Tensor"
)


class LayerArguments(NamedTuple):
    """The arguments of LAYER_SCHEMA by name, in its order. (csrc/bindings/layer_arguments.h has the same.)

    ``anchor`` to ``silent`` are the state of flexkern.ops._layer.Layer. ``drive`` is empty without silent
    synapses; else it is what the operator's own comment says. ``threshold_tensor`` has one element, or one for
    each row of the weight; ``hebbian`` is the rule of insertion.
    """

    anchor: Sequence[Tensor]
    flexibility: Sequence[Tensor]
    alpha: Sequence[Tensor]
    sources: Sequence[int]
    parameters: Sequence[float]
    momentum_buffer: Sequence[Tensor]
    master: Sequence[Tensor]
    silent: Sequence[Tensor]
    drive: Sequence[Tensor]
    threshold: float
    threshold_tensor: Tensor | None
    hebbian: bool
    eta: float
    prune: float
    lr: float
    lr_tensor: Tensor | None
    scale: float
    scale_tensor: Tensor | None
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    maximize: bool
    skip_nonfinite: bool

    def written(self, weight: Tensor) -> list[Tensor]:
        """The tensors that a pass over ``weight`` updates."""
        anchor = self.anchor if self._writes_anchor() else []
        return [weight, *self.momentum_buffer, *self.master, *self.silent, *anchor]

    def read(self) -> list[Tensor]:
        """The tensors that a pass only reads."""
        anchor = [] if self._writes_anchor() else self.anchor
        theta = [] if self.threshold_tensor is None else [self.threshold_tensor]
        return [*anchor, *self.flexibility, *self.alpha, *self.drive, *theta]

    def _writes_anchor(self) -> bool:
        return self.hebbian and bool(self.silent)
