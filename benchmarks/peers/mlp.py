"""The metaplasticity paper's classifier (arXiv 2407.07133) in plain PyTorch: same network, same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.benchmarks.peers import formula

__all__ = ["Flexible", "PlainMLP", "PlainSGD", "update_by_hand"]

Update = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], object]


def update_by_hand(w: Tensor, g: Tensor, a: Tensor, ratio: Tensor, lr: float, _scale: float) -> None:
    """The flexible update with as few passes as torch's operators in place allow.

    Args:
        w, g, a: weight, gradient, anchor.
        ratio: scale (1 - f) / f, which is fixed for life.
    """
    closed = torch.sub(w, a).mul_(ratio).tanh_().square_()  # 1 - alpha; the square makes |w - a| needless
    w.addcmul_(closed.sub_(1), g, value=lr)


class PlainSGD:
    """``torch.optim.SGD(fused=True)``: what is to be matched."""

    def __init__(self, params: Sequence[Tensor], lr: float) -> None:
        self._optimizer = torch.optim.SGD(params, lr, fused=True)

    def begin(self) -> None:
        """An item begins."""

    def step(self) -> None:
        """Moves the parameters by their gradients."""
        self._optimizer.step()


class Flexible:
    """The flexible update of a network's weights, with what it needs stored; biases move freely.

    Args:
        params: weights and biases alternating.
        anchors, flexibilities: of each weight, float32 of its shape.
        lr, scale: as in the paper.
        gate: "step", or "item": alpha is computed when an item begins and kept.
        update: the step of one weight with ``gate="step"``: the formula as it is written, one of its
            rewritings, or an operator.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        anchors: Sequence[Tensor],
        flexibilities: Sequence[Tensor],
        *,
        lr: float,
        scale: float,
        gate: str = "step",
        update: Update = formula.update,
    ) -> None:
        self._weights, self._biases = params[0::2], params[1::2]
        self._anchors, self._flexibilities = anchors, flexibilities
        if update is update_by_hand:
            self._flexibilities = [scale * (1 - f) / f for f in flexibilities]
        self._lr, self._scale, self._gate, self._update = lr, scale, gate, update
        self._alphas: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """An item begins."""
        if self._gate == "item":
            fields = zip(self._weights, self._anchors, self._flexibilities, strict=True)
            self._alphas = [formula.gate(w, a, f, self._scale) for w, a, f in fields]

    @torch.no_grad()
    def step(self) -> None:
        """Moves the parameters by their gradients."""
        for b in self._biases:
            assert b.grad is not None
            b.add_(b.grad, alpha=-self._lr)
        for i, w in enumerate(self._weights):
            assert w.grad is not None
            if self._gate == "item":
                w.addcmul_(self._alphas[i], w.grad, value=-self._lr)
            else:
                self._update(w, w.grad, self._anchors[i], self._flexibilities[i], self._lr, self._scale)


class PlainMLP:
    """Linear layers with ReLU between them, trained by cross-entropy.

    Args:
        layers: whose weights and biases are copied.
        rule: makes what moves the parameters, weights and biases alternating.
        seed, batch_size: they decide the batches, as the learner's do.
        autocast: whether products are bfloat16, by torch.autocast.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        rule: Callable[[list[Tensor]], PlainSGD | Flexible],
        *,
        seed: int,
        batch_size: int,
        autocast: bool = False,
    ) -> None:
        self._autocast = autocast
        self.params = [p.detach().clone().requires_grad_() for x in layers for p in (x.weight, x.bias)]
        self._rule = rule(self.params)
        self._seed, self._batch_size = seed, batch_size
        self.items_learned = 0

    def _logits(self, x: Tensor) -> Tensor:
        weights, biases = self.params[0::2], self.params[1::2]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            x = functional.relu(functional.linear(x, w, b), inplace=True)
        return functional.linear(x, weights[-1], biases[-1])

    def learn(self, inputs: Tensor, labels: Tensor, *, epochs: int = 1) -> float:
        """One item: float32 [n, features] and int64 [n]. Returns the mean loss of the last epoch."""
        self._rule.begin()
        total = torch.zeros((), device=labels.device)
        for epoch in range(epochs):
            order = np.random.default_rng([self._seed, self.items_learned, epoch]).permutation(len(labels))
            total = torch.zeros((), device=labels.device)
            for rows in torch.from_numpy(order).to(labels.device).split(self._batch_size):
                for p in self.params:
                    p.grad = None
                with torch.autocast(labels.device.type, torch.bfloat16, enabled=self._autocast):
                    loss = functional.cross_entropy(self._logits(inputs[rows]), labels[rows])
                loss.backward()
                with torch.profiler.record_function("update"):
                    self._rule.step()
                total += loss.detach() * len(rows)
        self.items_learned += 1
        return float(total) / len(labels)
