"""What synapse_step_ and linear_step_ take after their gradient: said once, for schemas and implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["LAYER_SCHEMA", "LayerArguments"]

# The end of both schemas, and their result. What is rarely given comes last (flexkern.ops._define says why).
LAYER_SCHEMA = (
    "Tensor(b!)? anchor, Tensor? flexibility, Tensor(c!)? silent, Tensor[]? drive, float threshold, "
    "float lr, float scale, Tensor? alpha=None, int[]? sources=None, float[]? parameters=None, "
    "Tensor(d!)? momentum_buffer=None, Tensor(e!)? master=None, Tensor? threshold_tensor=None, "
    "Tensor? lr_tensor=None, Tensor? scale_tensor=None, bool hebbian=False, float eta=1.0, float prune=0.0, "
    "float weight_decay=0.0, float momentum=0.0, float dampening=0.0, bool nesterov=False, "
    "bool maximize=False, bool skip_nonfinite=True) -> Tensor"
)


class LayerArguments(NamedTuple):
    """The arguments of LAYER_SCHEMA by name, in its order. (csrc/bindings/layer_arguments.h has the same.)

    ``anchor`` and ``flexibility`` are None where they are not stored: ``sources`` and ``parameters`` then have
    a row for each of the two; empty: both are stored. With a stored ``alpha`` the flexibility is not looked at.
    ``silent`` is None where no synapse is silent, and ``drive`` empty; else it is what the operator's own
    comment says. ``threshold_tensor`` has one element, or one for each row of the weight; ``hebbian`` is the
    rule of insertion.
    """

    anchor: Tensor | None
    flexibility: Tensor | None
    silent: Tensor | None
    drive: Sequence[Tensor]
    threshold: float
    lr: float
    scale: float
    alpha: Tensor | None
    sources: Sequence[int]
    parameters: Sequence[float]
    momentum_buffer: Tensor | None
    master: Tensor | None
    threshold_tensor: Tensor | None
    lr_tensor: Tensor | None
    scale_tensor: Tensor | None
    hebbian: bool
    eta: float
    prune: float
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    maximize: bool
    skip_nonfinite: bool

    def writes(self) -> dict[str, Tensor]:
        """The tensors beside the weight that a pass updates, by their names."""
        anchor = self.anchor if self.hebbian and self.silent is not None else None
        state = {
            "momentum_buffer": self.momentum_buffer,
            "master": self.master,
            "silent": self.silent,
            "anchor": anchor,
        }
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    def written(self, weight: Tensor) -> list[Tensor]:
        """The tensors that a pass over ``weight`` updates."""
        return [weight, *self.writes().values()]

    def read(self) -> list[Tensor]:
        """The tensors that a pass only reads."""
        anchor = None if "anchor" in self.writes() else self.anchor
        state = (anchor, self.flexibility, self.alpha, *self.drive, self.threshold_tensor)
        return [tensor for tensor in state if tensor is not None]
