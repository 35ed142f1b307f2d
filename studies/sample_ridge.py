"""RanPAC's head of more columns than samples, worked out among the samples.

:class:`flexkern.nn.RidgeHead` keeps sums of columns by columns, as a learner must that keeps no data. A
study has all features, and of N samples and D columns the same weights follow from N x N products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexkern.nn.heads.cross_validation import MOST_USED, ridges_of, signs_for_trace, valley
from flexkern.nn.heads.ridge import random_projection

__all__ = ["SampleRidge"]


class SampleRidge(torch.nn.Module):
    """Answers as ``RidgeHead(width, features=features, seed=seed)`` does.

    ``phi (G + r I)^-1 C = phi Phi^T (K + r I)^-1 Y`` with ``K = Phi Phi^T``, whose eigenvalues are those of G
    but for zeros.

    Args:
        width, features, seed, device: as there.
    """

    def __init__(self, width: int, *, features: int, seed: int = 0, device: str = "cpu") -> None:
        super().__init__()
        self.features = features
        self._projection = random_projection(width, features, seed).to(device, torch.float64)
        self._phi = torch.zeros((0, features), dtype=torch.float64, device=device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=device)
        self._weight: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of what RidgeHead would keep: G, C, counts and the sum of phi."""
        classes = int(self._labels.max()) + 1 if len(self._labels) else 0
        return 8 * (self.features * (self.features + classes + 1) + classes)

    def update(self, h0: Tensor, labels: Tensor) -> None:
        """Adds features [n, width] of classes ``labels``, integers [n]."""
        self._phi = torch.cat([self._phi, self._project(h0)])
        self._labels = torch.cat([self._labels, labels.to(self._labels)])
        self._weight = None

    def logits(self, h0: Tensor) -> Tensor:
        """Scores float32 [n, classes]."""
        if self._weight is None:
            self._weight = self._solve()
        return (self._project(h0) @ self._weight).float()

    def _project(self, h0: Tensor) -> Tensor:
        return torch.relu(h0.double() @ self._projection)

    def _solve(self) -> Tensor:
        kernel = self._phi @ self._phi.T
        targets = torch.nn.functional.one_hot(self._labels).double()
        probes, traces = signs_for_trace(kernel)
        asked = torch.cat([targets, probes], 1)
        solved: dict[float, Tensor] = {}

        def score(ridge: float) -> float:
            """Generalised cross-validation, where the fit leaves enough samples free."""
            damped = kernel.clone()
            damped.diagonal().add_(ridge)
            factor, info = torch.linalg.cholesky_ex(damped)
            if int(info):
                return math.inf  # too small for what rounding left of K
            answers = torch.cholesky_solve(asked, factor)
            solved[ridge] = answers[:, : targets.shape[1]]
            # Eigenvalues k of K: a fit leaves ridge / (k + ridge) of what lies in their direction.
            free = ridge * traces * float((probes * answers[:, targets.shape[1] :]).sum())
            if free < (1 - MOST_USED) * len(kernel):
                return math.inf
            return float((ridge * solved[ridge]).square().sum()) / free**2

        ridge = valley(ridges_of(kernel.trace() / self.features).tolist(), score)
        return self._phi.T @ solved[ridge]
