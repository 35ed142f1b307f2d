"""What the metaplastic optimizers do, in float64 and as plainly as the paper has it (arXiv 2407.07133)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Model", "Weight"]

TINY = 2.0**-126


@dataclass
class Weight:
    """One parameter: its exact value before the step, and what is remembered of it.

    f: its flexibility in float64; None: it moves freely.
    """

    exact: Tensor
    f: Tensor | None
    anchor: Tensor | None = None
    alpha: Tensor | None = None
    items: int = 0
    alpha_item: int = 0
    steps: int = 0
    states: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Model:
    """A group of parameters.

    kind: "SGD", "AdamW" or "wrapped", which is torch's SGD.
    options: of the group; ``scale`` is a number, or None while "auto" is unmeasured.
    """

    kind: str
    options: dict[str, Any]
    weights: list[Weight]

    def step(self, grads: list[Tensor | None]) -> list[Tensor]:
        """The exact weights after a step; how far each element moved is the second result's size."""
        sizes = []
        for w, g in zip(self.weights, grads, strict=True):
            sizes.append(torch.zeros_like(w.exact) if g is None else self._step(w, g.double()))
        return sizes

    def consolidate(self) -> None:
        for w in self.weights:
            if w.items:
                w.items += 1

    # ------------------------------------------------------------------ one parameter

    def _step(self, w: Weight, g: Tensor) -> Tensor:
        if w.anchor is None:
            w.anchor, w.items = w.exact.clone(), 1
        alpha = self._alpha(w)
        direction, states = (self._adamw if self.kind == "AdamW" else self._sgd)(w, g)
        change = self.options["lr"] * alpha * direction
        new = w.exact - change
        # What is not finite in float32 is left as it is, with its states; torch's own SGD does not promise it.
        moved = new.abs() < 3e38
        w.exact = torch.where(moved, new, w.exact)
        for name, value in states.items():
            w.states[name] = torch.where(moved, value, w.states[name]) if name in w.states else value
        w.steps += 1
        return change.abs().nan_to_num(0.0)

    def _alpha(self, w: Weight) -> Tensor:
        one = torch.ones_like(w.exact)
        if w.f is None:
            return one
        at_rest = torch.where(w.f < TINY, 0.0, one)
        if self.options["scale"] is None:
            return at_rest
        if self.options["gate"] == "step":
            return self._gate(w)
        if w.items == 1:
            return at_rest
        if w.alpha_item != w.items:
            w.alpha, w.alpha_item = self._gate(w), w.items
        assert w.alpha is not None
        return w.alpha

    def _gate(self, w: Weight) -> Tensor:
        """sech(k)^2 with k = scale (1 - f) / f |w - a|."""
        assert w.f is not None
        assert w.anchor is not None
        k = self.options["scale"] * (1 - w.f) / w.f.clamp(min=TINY) * (w.exact - w.anchor).abs()
        return torch.where(w.f < TINY, 0.0, 1 / torch.cosh(k.clamp(max=300.0)) ** 2)

    def _sgd(self, w: Weight, g: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        o = self.options
        g = (-g if o["maximize"] else g) + o["weight_decay"] * w.exact
        if not o["momentum"]:
            return g, {}
        old = w.states.get("momentum_buffer")
        if old is None:
            w.states["momentum_buffer"] = torch.zeros_like(g)
        buffer = g if old is None else o["momentum"] * old + (1 - o["dampening"]) * g
        return g + o["momentum"] * buffer if o["nesterov"] else buffer, {"momentum_buffer": buffer}

    def _adamw(self, w: Weight, g: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        o, (beta1, beta2), t = self.options, self.options["betas"], w.steps + 1
        g = -g if o["maximize"] else g
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            w.states.setdefault(name, torch.zeros_like(g))
        mean = beta1 * w.states["exp_avg"] + (1 - beta1) * g
        square = beta2 * w.states["exp_avg_sq"] + (1 - beta2) * g * g
        largest = torch.maximum(w.states["max_exp_avg_sq"], square) if o["amsgrad"] else square
        root = (largest / (1 - beta2**t)).sqrt() + o["eps"]
        states = {"exp_avg": mean, "exp_avg_sq": square}
        if o["amsgrad"]:
            states["max_exp_avg_sq"] = largest
        return mean / (1 - beta1**t) / root + o["weight_decay"] * w.exact, states
