"""The conventional network, with what the learners that are compared with the metaplastic one share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.learners.mlp.metaplastic import MetaplasticMLP

__all__ = ["ConventionalMLP", "check_count", "check_number"]


class ConventionalMLP(MetaplasticMLP):
    """The conventional network, with the arguments that matter to it."""

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        widths: tuple[int, int] = (512, 512),
        features: nn.Module | None = None,
        lr: float = 1e-2,
        momentum: float = 0.0,
        batch_size: int = 50,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(
            input_shape,
            classes,
            widths=widths,
            features=features,
            network="conventional",
            lr=lr,
            scale=1.0,  # of no effect where f = 1
            momentum=momentum,
            batch_size=batch_size,
            seed=seed,
            device=device,
            cuda_graph=cuda_graph,
        )
        own = ("input_shape", "classes", "widths", "lr", "momentum", "batch_size", "seed")
        self._configuration = {name: self._configuration[name] for name in own}

    def _rng(self, what: int, epoch: int = 0, step: int = 0) -> np.random.Generator:
        """Decided by these, seed and item, so there is no generator to save."""
        return np.random.default_rng([self.seed, self.items_learned, epoch, step, what])

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.model.parameters()]

    def _copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


def check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
