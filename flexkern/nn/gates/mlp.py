"""One two-layer MLP for each task, all in one stack: evaluated, and trained, by one batched product."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from flexkern.nn.feature_statistics import FeatureStatistics
from flexkern.nn.growing import GrowingState

__all__ = ["Scaling", "StackedMLP"]

_AT_ONCE = 2**24  # hidden activities: bounds memory to 64 MiB


class Scaling(NamedTuple):
    """``(h - centre) @ matrix``: inputs of similar size in all directions, in which an MLP trains quickly.

    centre: float32 [width].
    matrix, inverse: float32 [width, width].
    """

    centre: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, statistics: FeatureStatistics, inputs: str) -> Scaling:
        """``"standard"``: mean 0 and deviation 1 in each dimension, over all classes; ``"whitened"``: the
        shrunk within-class covariance becomes the identity."""
        centre = statistics.mean().float()
        if inputs == "whitened":
            lower = statistics.cholesky()
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            return cls(centre, inverse.T.float(), lower.T.float())
        spread = statistics.total_covariance().diagonal().clamp(min=1e-12).sqrt()
        return cls(centre, (1 / spread).diag().float(), spread.diag().float())


class StackedMLP(GrowingState):
    """``S_t(h) = w_t relu(W_t h + b_t) + c_t`` for all tasks t at once (arXiv 2410.05899).

    The layers are buffers, as nothing outside trains them. While training, inputs are scaled by a
    :class:`Scaling`, which is folded into ``hidden_weight`` and ``hidden_bias`` afterwards, so that evaluating
    is one product for the hidden layers of all tasks and one sum.

    Args:
        width: of h.
        hidden: units of each hidden layer.
        device: of the state.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    _SIZES: ClassVar = {
        "hidden_weight": ("T", "hidden", "width"), "hidden_bias": ("T", "hidden"),
        "out_weight": ("T", "hidden"), "out_bias": ("T",),
    }  # fmt: skip

    def __init__(self, width: int, hidden: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.register_buffer(
            "hidden_weight", torch.zeros((0, hidden, width), dtype=torch.float32, device=device)
        )
        self.register_buffer("hidden_bias", torch.zeros((0, hidden), dtype=torch.float32, device=device))
        self.register_buffer("out_weight", torch.zeros((0, hidden), dtype=torch.float32, device=device))
        self.register_buffer("out_bias", torch.zeros(0, dtype=torch.float32, device=device))

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.out_bias)

    def forward(self, h0: Tensor) -> Tensor:
        """float32 [N, width] to the logits of all T MLPs, float32 [N, T]."""
        weight, bias = self.hidden_weight.flatten(0, 1), self.hidden_bias.flatten()
        rows = max(1, _AT_ONCE // max(1, len(bias)))
        out = []
        for x in h0.split(rows):
            activity = linear(x, weight, bias).relu_().view(len(x), self.tasks, self.hidden)
            out.append(activity.mul_(self.out_weight).sum(2))
        return torch.cat(out) + self.out_bias

    @torch.no_grad()
    def add(self, generator: torch.Generator) -> None:
        """Appends an MLP; its weights are those of ``nn.Linear``, drawn from ``generator`` (of the device)."""

        def draw(*shape: int, fan_in: int) -> Tensor:
            u = torch.rand(shape, generator=generator, dtype=torch.float32, device=self.out_bias.device)
            return (2 * u - 1) / math.sqrt(fan_in)

        self._append("hidden_weight", draw(1, self.hidden, self.width, fan_in=self.width))
        self._append("hidden_bias", draw(1, self.hidden, fan_in=self.width))
        self._append("out_weight", draw(1, self.hidden, fan_in=self.hidden))
        self._append("out_bias", draw(1, fan_in=self.hidden))

    def fit(
        self,
        which: Tensor,
        batches: Iterable[tuple[Tensor, Tensor]],
        steps: int,
        *,
        lr: float,
        weight_decay: float,
        scaling: Scaling,
    ) -> None:
        """Trains some of the MLPs at once, each on its own batches, by AdamW with a cosine schedule to 0.

        Training starts from the weights as they are. The gradient of one MLP does not depend on the others.

        Args:
            which: int64 [G], which MLPs.
            batches: (x [G, B, width], y [G, B]), y = 1 for an MLP's own task, else 0.
            steps: how many batches there are.
            lr, weight_decay: of AdamW.
            scaling: of the inputs.
        """
        with torch.no_grad():
            w, b = self.hidden_weight[which], self.hidden_bias[which]
            parameters = [
                w @ scaling.inverse.T,
                b + w @ scaling.centre,
                self.out_weight[which],
                self.out_bias[which],
            ]
        parameters = [p.clone().requires_grad_() for p in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        with torch.enable_grad():
            for x, y in batches:
                hw, hb, ow, ob = parameters
                activity = relu(torch.baddbmm(hb[:, None], (x - scaling.centre) @ scaling.matrix, hw.mT))
                logits = (activity @ ow[..., None]).squeeze(2) + ob[:, None]
                # The mean over each MLP's batch, summed over MLPs.
                loss = binary_cross_entropy_with_logits(logits, y) * len(which)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            hw, hb, ow, ob = parameters
            w = hw @ scaling.matrix.T
            self.hidden_weight[which] = w
            self.hidden_bias[which] = hb - w @ scaling.centre
            self.out_weight[which] = ow
            self.out_bias[which] = ob

    def _check_state(self, state: dict[str, Any]) -> None:
        w = state.get("hidden_weight")
        if w is not None and tuple(w.shape[1:]) != (self.hidden, self.width):
            raise ValueError(
                f"the state has MLPs of [hidden, width] = {list(w.shape[1:])}, here are "
                f"[{self.hidden}, {self.width}]"
            )

    def extra_repr(self) -> str:
        return f"width={self.width}, hidden={self.hidden}, tasks={self.tasks}"
