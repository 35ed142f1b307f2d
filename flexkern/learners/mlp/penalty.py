"""What EWC and SI have in common: a quadratic penalty on moving weights that mattered to earlier items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.learners.base import Item
from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.scenarios import FEW, SCENARIOS
from flexkern.ops.checks import exact_dtype
from flexkern.plain import number
from flexkern.streams.base import Experience

__all__ = ["QuadraticPenalty", "numbered"]


class QuadraticPenalty(MLPLearner):
    """Pulls each parameter towards the value it had when the last item ended, by a quadratic penalty.

    The step on the penalty ``stiffness / 2 (theta - anchor)^2`` is that of its gradient, except that it never
    goes beyond the anchor: stiffness counts as 1 / lr where it is more. Plain SGD would overshoot there, and
    diverge from twice that stiffness on. Importance differs so much between weights that the largest would then
    keep strength too low for the others: on ten two-digit items (bundled digits, random convolutions, widths
    256, one seed) the best average accuracy was 0.28 for both methods, and with the bound it is 0.47 (EWC) and
    0.48 (SI).

    In the first step of an item the penalty is 0: the parameters are where the last item ended. So a stream of
    items of one step each would be learned by plain SGD. An item of fewer than 16 inputs must have two steps,
    and such streams are not among what the method ``takes``.
    """

    takes = tuple(scenario for scenario in SCENARIOS if scenario != "online")

    _FACTOR: float  # stiffness = _FACTOR * strength * importance
    _captures_hooks = True  # anchors and importance are others in each item only

    def __init__(self, input_shape: Sequence[int], classes: int, *, strength: float, **common: Any) -> None:
        strength = number(strength, "strength", 0, 1e30)  # more, times 0, is not a number in float32
        super().__init__(input_shape, classes, **common)
        self._configuration["strength"] = strength
        self._anchors = self._copies()
        self._importance = self._zeros()

    def _take_up(self, experience: Experience, epochs: int) -> Item:
        inputs = len(experience.train_labels)
        if inputs < FEW and epochs * math.ceil(inputs / self.batch_size) < 2:
            raise ValueError(
                f"experience: {experience.name!r} has {inputs} inputs, a single step, and the penalty of "
                f"{type(self).__name__} is 0 in an item's first step, so that nothing would be protected; give "
                f"items of more inputs, or epochs=2 (it takes {', '.join(self.takes)} streams)"
            )
        return super()._take_up(experience, epochs)

    @torch.no_grad()
    def _before_step(self) -> None:
        strength, lr = self._FACTOR * self._configuration["strength"], self._configuration["lr"]
        if strength == 0 or self.items_learned == 0:
            return
        of_each = zip(self.model.parameters(), self._exact(), self._anchors, self._importance, strict=True)
        for p, exact, anchor, importance in of_each:
            assert p.grad is not None
            stiffness = (strength * importance).clamp_(max=1 / lr if lr else math.inf)
            # A new tensor: SI reads the gradient without the penalty after the step.
            p.grad = torch.addcmul(p.grad, stiffness, exact - anchor).to(p.dtype)

    def _zeros(self) -> list[Tensor]:
        """A tensor of zeros for each parameter, float32."""
        return [torch.zeros_like(p, dtype=exact_dtype(p)) for p in self.model.parameters()]

    def _exact(self) -> list[Tensor]:
        """The parameters, float32: of bfloat16 ones the masters. Not to be written to."""
        if self._dtype is torch.float32:  # each step of a penalty asks, and the optimizer looks for each
            return [p.detach() for p in self.model.parameters()]
        assert self.optimizer is not None
        return [self.optimizer.exact(p) for p in self.model.parameters()]

    def _copies(self) -> list[Tensor]:
        """The parameters as they are, float32."""
        return [p.clone() for p in self._exact()]

    def _extra_state(self) -> dict[str, Tensor]:
        return numbered("anchor", self._anchors) | numbered("importance", self._importance)

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        self._anchors = self._like_parameters(state, "anchor")
        self._importance = self._like_parameters(state, "importance")

    def _like_parameters(self, state: dict[str, Tensor], name: str) -> list[Tensor]:
        """A tensor for each parameter, as :func:`numbered` named them.

        Raises:
            ValueError: if one is missing, or has another shape than its parameter.
        """
        found = [state.get(f"{name}.{i}") for i, _ in enumerate(self.model.parameters())]
        for i, (value, p) in enumerate(zip(found, self.model.parameters(), strict=True)):
            dtype = exact_dtype(p)
            if value is None or value.shape != p.shape or value.dtype is not dtype:
                have = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise ValueError(f"extra.{name}.{i} is {have}, and must be {dtype} {list(p.shape)}")
        return [value for value in found if value is not None]


def numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    """A name for each tensor, for checkpoints."""
    return {f"{name}.{i}": t for i, t in enumerate(tensors)}
