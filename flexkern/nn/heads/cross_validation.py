"""Generalised cross-validation of ridge regression, from what running sums know: no sample is held out."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_ridge", "plain_best_ridge", "ridges_of"]

# A ridge whose fit uses more than this share of the samples up is not taken. With more columns than samples the
# score is 0 / 0 where every sample is fitted, and near there it follows the noise.
_MOST_USED = 0.5


def ridges_of(mean: Tensor) -> Tensor:
    """The values that are compared: 10^-8 ... 10^8 times the mean eigenvalue, in steps of a factor sqrt 10."""
    return mean * 10 ** (torch.arange(-16, 17, dtype=mean.dtype, device=mean.device) / 2)


def best_ridge(values: Tensor, z: Tensor, samples: int, total: float) -> Tensor:
    """The ridge of least ``RSS / (1 - tr H / n)^2`` among those with ``tr H <= n / 2``.

    RSS and ``n - tr H`` are sums of what the ridge leaves over in each direction, and not differences of what
    is large: so they are right where nearly all is fitted.

    Args:
        values: eigenvalues of the Gram matrix, float64 [D], ascending.
        z: the products of columns and targets in its eigenvectors' coordinates, [D, C].
        samples: n, without those that an intercept uses up; at least 1.
        total: squared length of all targets.
    """
    ridges = ridges_of(values.mean())
    top = values[-min(samples, len(values)) :]  # no more directions than samples
    live = top > top[-1] * len(values) * torch.finfo(top.dtype).eps
    top, z = top[live], z[-min(samples, len(values)) :][live]
    fitted = (z * z).sum(1) / top  # of the targets, by each direction without a ridge
    unreached = samples - len(top)
    beyond = (total - fitted.sum()).clamp(min=0) if unreached else torch.zeros_like(fitted.sum())
    left = ridges[:, None] / (top + ridges[:, None])
    free = unreached + left.sum(1)
    score = (beyond + (fitted * left * left).sum(1)) / free.square()
    # The largest ridge leaves nearly all samples free: there is always one.
    score = score.masked_fill(free < (1 - _MOST_USED) * samples, torch.inf)
    return ridges[score.argmin()]


def plain_best_ridge(values: Tensor, z: Tensor, samples: Tensor) -> Tensor:
    """What earlier versions took, to the bit: no limit on ``tr H``, and differences that cancel."""
    ridges = ridges_of(values.mean())
    shrunk = values / (values + ridges[:, None])  # eigenvalues of H, [ridges, columns]
    # In the eigenvectors' coordinates, with z the rows of C: |y - phi W|^2 = |y|^2 - sum z^2 s (2 - s) / v.
    power = torch.where(values > 0, (z * z).sum(1) / values.clamp(min=1e-300), 0.0)
    rest = samples - (power * shrunk * (2 - shrunk)).sum(1)
    free = (1 - shrunk.sum(1) / samples).clamp(min=1e-12)
    return ridges[(rest.clamp(min=0) / free**2).argmin()]
