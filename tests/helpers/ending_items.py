"""An optimizer that remembers after which of its steps items ended, and data to train with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexkern.optim import MetaplasticSGD


class Remembering(MetaplasticSGD):
    """``ended`` has, for each ``consolidate()``, how many steps there had been."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken, self.ended = 0, list[int]()

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        return super().step(closure)

    def consolidate(self) -> None:
        super().consolidate()
        self.ended.append(self.taken)


class Classifier(nn.Module):
    """A network of two layers that returns its loss, as a Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(count: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return [{"x": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(x)]


def remembering(model: nn.Module, **options: Any) -> Remembering:
    return Remembering(model.parameters(), **{"lr": 0.05, "scale": 10.0, **options})
