"""Synaptic intelligence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.mlp.penalty import QuadraticPenalty, numbered
from flexkern.learners.mlp.rows import Rows
from flexkern.learners.registry import register_method
from flexkern.plain import number

__all__ = ["SI"]


@register_method("si")
class SI(QuadraticPenalty):
    """Synaptic intelligence (Zenke, Poole, Ganguli 2017, arXiv 1703.04200).

    While an item is learned, with g the gradient of the cross-entropy alone and d theta the step that was
    taken, each parameter gathers what it gave to the fall of the loss (equation 3)::

        omega_i = - sum over steps of  g_i d theta_i

    At the item's end, with Delta_i how far the parameter has come in it (equation 5)::

        Omega_i <- max(0, Omega_i + omega_i / (Delta_i^2 + damping))

    and the loss of the next items is ``cross-entropy + strength sum_i Omega_i (theta_i - theta*_i)^2`` with
    theta* the parameters at the end of the last item (equation 4). The maximum is not in the paper but in its
    authors' code: with momentum, or against the penalty, a step can go up the gradient, omega can come out
    negative, and a negative Omega would push a parameter away. Where ``2 strength Omega`` is over 1 / lr it
    counts as 1 / lr: a step of plain SGD would go beyond theta*.

    Args:
        strength: c, at least 0; 0 is the conventional network. The default is the best of a sweep on ten
            two-digit items with lr 5e-3; it belongs to the data and the learning rate.
        damping: xi > 0, which keeps Omega finite where Delta is about 0.
        input_shape, classes, widths, features, lr, momentum, batch_size, seed, device: as in
            :class:`flexkern.learners.MetaplasticMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    _FACTOR = 2.0  # the formula has no 1/2
    _takes_rows = True

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        strength: float = 100.0,
        damping: float = 1e-3,
        **common: Any,
    ) -> None:
        # A parameter that stood still divides by it, in float32.
        damping = number(damping, "damping", 1e-30, 1e30)
        super().__init__(input_shape, classes, strength=strength, **common)
        self._configuration["damping"] = damping
        self._path = self._zeros()
        self._step_from: list[tuple[Tensor, Tensor]] = []  # of the step that is being taken

    def _before_step(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self._step_from = list(zip(gradients, self._copies(), strict=True))
        super()._before_step()

    @torch.no_grad()
    def _after_step(self) -> None:
        for path, p, (gradient, before) in zip(self._path, self._exact(), self._step_from, strict=True):
            path.addcmul_(gradient, p - before, value=-1)
        self._step_from = []

    @torch.no_grad()
    def _after_item(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        now, damping = self._copies(), self._configuration["damping"]
        self._importance = [
            (importance + path / ((p - anchor).square() + damping)).clamp_(min=0)
            for importance, path, anchor, p in zip(
                self._importance, self._path, self._anchors, now, strict=True
            )
        ]
        self._anchors, self._path = now, self._zeros()

    def _extra_state(self) -> dict[str, Tensor]:
        return super()._extra_state() | numbered("path", self._path)

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        super()._load_extra_state(state)
        self._path = self._like_parameters(state, "path")
