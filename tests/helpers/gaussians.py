"""Tasks of gaussian classes with one covariance, for tests of statistics and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexkern.nn.gates.synapse_gate import SynapseGate

WIDTH = 12
Task = tuple[Tensor, Tensor]
TASKS = 3
GATES: list[dict[str, Any]] = [
    {"gate": "mlp"},
    {"gate": "mlp", "inputs": "whitened", "positives": "gaussian"},
    {"gate": "mlp", "negatives": "replay", "calibration": "platt"},
    {"gate": "mlp", "calibration": "softmax"},
    {"gate": "energy"},
    {"gate": "mahalanobis"},
    {"gate": "knn"},
    {"gate": "likelihood_ratio"},
    {"gate": "ridge", "features": 50},
    {"gate": "ridge", "features": 0, "calibration": "platt"},
]


def make_tasks(
    tasks: int = 3, classes: int = 2, n: int = 60, *, seed: int = 0, apart: float = 4.0
) -> tuple[list[Task], Callable[[int, int], Tensor]]:
    """Training data of each task, (features, labels), and draw(task, n per class) for fresh features.

    Class means are ``apart`` times unit vectors in random directions from each other, the deviation in each
    direction is between 0.5 and 1.5.
    """
    g = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn((tasks, classes, WIDTH), generator=g), dim=-1) * apart
    shape = torch.linalg.qr(torch.randn((WIDTH, WIDTH), generator=g)).Q * torch.linspace(0.5, 1.5, WIDTH)

    def draw(task: int, n: int) -> Tensor:
        mean = means[task].repeat_interleave(n, 0)
        return mean + torch.randn(mean.shape, generator=g) @ shape

    data = [
        (draw(t, n), torch.arange(t * classes, (t + 1) * classes).repeat_interleave(n)) for t in range(tasks)
    ]
    return data, draw


def fresh(draw: Callable[[int, int], Tensor], tasks: int, n: int = 200) -> Task:
    """Fresh features of all tasks, n per class, and their tasks."""
    parts = [draw(t, n) for t in range(tasks)]
    return torch.cat(parts), torch.cat([torch.full((len(p),), t) for t, p in enumerate(parts)])


def taught(tasks: int = TASKS, n: int = 60, seed: int = 0, apart: float = 6.0, **options: Any) -> SynapseGate:
    """A gate that has learned tasks of ``make_tasks``."""
    gate = SynapseGate(WIDTH, **{"lr": 0.03, "epochs": 4, "hidden": 16, **options})
    for x, y in make_tasks(tasks, 2, n, seed=seed, apart=apart)[0]:
        gate.learn(x, y)
    return gate


def points(n: int = 200, seed: int = 0, apart: float = 6.0) -> Task:
    """Fresh features of the tasks that ``taught`` has learned, and their tasks."""
    return fresh(make_tasks(TASKS, 2, 60, seed=seed, apart=apart)[1], TASKS, n)
