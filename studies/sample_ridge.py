"""RanPAC's head of more columns than samples, worked out among the samples.

:class:`flexkern.nn.RidgeHead` keeps sums of columns by columns, as a learner must that keeps no data. A
study has all features, and of N samples and D columns the same weights follow from N x N products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.nn.heads.cross_validation import best_ridge
from flexkern.nn.heads.ridge import random_projection

__all__ = ["SampleRidge"]


class SampleRidge(torch.nn.Module):
    """Answers as ``RidgeHead(width, features=features, seed=seed)`` does, with the ridge by eigenvalues.

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
        samples, columns = self._phi.shape
        values, vectors = torch.linalg.eigh(self._phi @ self._phi.T)
        values = values.clamp(min=0)
        targets = vectors.T @ torch.nn.functional.one_hot(self._labels).double()
        # As eigenvalues of G: without the samples' surplus, or with the columns' zeros.
        some = min(samples, columns)
        of_columns = values.new_zeros(columns)
        of_columns[-some:] = values[-some:]
        z = targets.new_zeros(columns, targets.shape[1])
        z[-some:] = values[-some:, None].sqrt() * targets[-some:]
        ridge = best_ridge(of_columns, z, samples, float(samples))
        return self._phi.T @ (vectors @ (targets / (values + ridge)[:, None]))
