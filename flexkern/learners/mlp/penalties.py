"""EWC and SI: weights that mattered to earlier items are held by a quadratic penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.mlp.conventional import ConventionalMLP, check_count, check_number
from flexkern.learners.mlp.fisher import diagonal_fisher

__all__ = ["ElasticMLP", "IntelligentMLP"]

_FISHER = 1  # what a random choice is for


class _AnchoredMLP(ConventionalMLP):
    """Holds each parameter to the value it had when the last item ended, by a quadratic penalty.

    The step on the penalty ``stiffness / 2 (theta - anchor)^2`` is that of its gradient, except that it never
    goes beyond the anchor: stiffness counts as 1 / lr where it is more. Plain SGD would overshoot there, and
    diverge from twice that stiffness on. Importance differs so much between weights that the largest would then
    keep strength too low for the others: on ten two-digit items (bundled digits, random convolutions, widths
    256, one seed) the best average accuracy was 0.28 for both methods, and with the bound it is 0.47 (EWC) and
    0.48 (SI).
    """

    _FACTOR: float  # stiffness = _FACTOR * strength * importance
    _captures_hooks = True  # anchors and importance are others in each item only

    def __init__(self, *args: Any, **common: Any) -> None:
        super().__init__(*args, **common)
        self._anchors = self._copies()
        self._importance = self._zeros()

    @torch.no_grad()
    def _before_step(self) -> None:
        strength, lr = self._FACTOR * self._configuration["strength"], self._configuration["lr"]
        if strength == 0 or self.items_learned == 0:
            return
        for p, anchor, importance in zip(self.model.parameters(), self._anchors, self._importance, strict=True):
            assert p.grad is not None
            stiffness = (strength * importance).clamp_(max=1 / lr if lr else math.inf)
            # A new tensor: SI reads the gradient without the penalty after the step.
            p.grad = torch.addcmul(p.grad, stiffness, p - anchor)

    def _extra_state(self) -> dict[str, Tensor]:
        return _numbered("anchor", self._anchors) | _numbered("importance", self._importance)

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        count = len(self._anchors)
        self._anchors = [state[f"anchor.{i}"] for i in range(count)]
        self._importance = [state[f"importance.{i}"] for i in range(count)]


class ElasticMLP(_AnchoredMLP):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796), in its online form.

    While an item is learned, each parameter is held to the anchor theta*, its value when the last item ended::

        L(theta) = cross-entropy + strength / 2  sum_i F_i (theta_i - theta*_i)^2          (equation 3)

    F is the diagonal of the Fisher information. One running sum, ``F <- decay F + F of the item that ended``,
    and one anchor stand for all earlier items, as in online EWC (Schwarz et al. 2018, arXiv 1805.06370), so
    state does not grow. An item's F is measured by :func:`flexkern.learners.mlp.fisher.diagonal_fisher`. Where
    ``strength * F`` is over 1 / lr it counts as 1 / lr: a step of plain SGD would go beyond the anchor.

    Args:
        strength: lambda, at least 0; 0 is the conventional network. The default is the best of a sweep on ten
            two-digit items with lr 5e-3; it belongs to the data and the learning rate.
        decay: gamma in [0, 1]: what is left of earlier items' Fisher information at the end of each item.
        fisher_samples: how many training inputs the Fisher information is measured on, at most.
        input_shape, classes, widths, features, lr, momentum, batch_size, seed, device: as in
            :class:`flexkern.learners.MetaplasticMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    _FACTOR = 1.0

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        strength: float = 2000.0,
        decay: float = 1.0,
        fisher_samples: int = 1000,
        **common: Any,
    ) -> None:
        check_strength(strength)
        check_number("decay", decay, 0, 1)
        check_count("fisher_samples", fisher_samples)
        super().__init__(input_shape, classes, **common)
        self._configuration |= {"strength": strength, "decay": decay, "fisher_samples": fisher_samples}

    def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
        rng = self._rng(_FISHER)
        count = min(len(labels), self._configuration["fisher_samples"])
        chosen = torch.from_numpy(rng.choice(len(labels), count, replace=False)).to(self.device)
        # Drawn on the CPU, so that one seed gives the same numbers on every device.
        draws = torch.from_numpy(rng.random(count)).to(self.device)
        fisher = self._zeros()
        for rows, u in zip(chosen.split(self.batch_size), draws.split(self.batch_size), strict=True):
            part = diagonal_fisher(self.model, inputs[rows], u)
            for total, mean in zip(fisher, part, strict=True):
                total.add_(mean, alpha=len(rows) / count)
        decay = self._configuration["decay"]
        self._importance = [decay * old + new for old, new in zip(self._importance, fisher, strict=True)]
        self._anchors = self._copies()


class IntelligentMLP(_AnchoredMLP):
    """Synaptic intelligence (Zenke, Poole, Ganguli 2017, arXiv 1703.04200).

    While an item is learned, with g the gradient of the cross-entropy alone and d theta the step that was
    taken, each parameter gathers what it gave to the fall of the loss (equation 3)::

        omega_i = - sum over steps of  g_i d theta_i

    At the item's end, with Delta_i how far the parameter has come in it (equation 5)::

        Omega_i <- max(0, Omega_i + omega_i / (Delta_i^2 + damping))

    and the loss of the next items is ``cross-entropy + strength sum_i Omega_i (theta_i - theta*_i)^2`` with
    theta* the parameters at the end of the last item (equation 4). The maximum is not in the paper but in its
    authors' code: with momentum, or against the penalty, a step can go up the gradient, omega can come out
    negative, and a negative Omega would drive a parameter away. Where ``2 strength Omega`` is over 1 / lr it
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

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        strength: float = 100.0,
        damping: float = 1e-3,
        **common: Any,
    ) -> None:
        check_strength(strength)
        # A parameter that stood still divides by it, in float32.
        check_number("damping", damping, 1e-30, 1e30)
        super().__init__(input_shape, classes, **common)
        self._configuration |= {"strength": strength, "damping": damping}
        self._path = self._zeros()
        self._step_from: list[tuple[Tensor, Tensor]] = []  # of the step that is being taken

    def _before_step(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self._step_from = list(zip(gradients, self._copies(), strict=True))
        super()._before_step()

    @torch.no_grad()
    def _after_step(self) -> None:
        for path, p, (gradient, before) in zip(
            self._path, self.model.parameters(), self._step_from, strict=True
        ):
            path.addcmul_(gradient, p - before, value=-1)
        self._step_from = []

    @torch.no_grad()
    def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
        now, damping = self._copies(), self._configuration["damping"]
        self._importance = [
            (importance + path / ((p - anchor).square() + damping)).clamp_(min=0)
            for importance, path, anchor, p in zip(
                self._importance, self._path, self._anchors, now, strict=True
            )
        ]
        self._anchors, self._path = now, self._zeros()

    def _extra_state(self) -> dict[str, Tensor]:
        return super()._extra_state() | _numbered("path", self._path)

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        super()._load_extra_state(state)
        self._path = [state[f"path.{i}"] for i in range(len(self._path))]


def _numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{i}": t for i, t in enumerate(tensors)}


def check_strength(strength: object) -> None:
    check_number("strength", strength, 0, 1e30)  # more, times 0, is not a number in float32
