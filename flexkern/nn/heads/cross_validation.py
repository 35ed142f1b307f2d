"""Generalised cross-validation of ridge regression, from what running sums know: no sample is held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flexkern.nn.growing import seeded

__all__ = [
    "MOST_USED",
    "best_ridge",
    "best_ridge_by_factors",
    "plain_best_ridge",
    "ridges_of",
    "signs_for_trace",
    "valley",
]

# A ridge whose fit uses more than this share of the samples up is not taken. With more columns than samples the
# score is 0 / 0 where every sample is fitted, and near there it follows the noise.
MOST_USED = 0.5
# Up to so many columns a trace is exact; from there on it is the mean over so many random vectors of signs.
_EXACT_COLUMNS, _SIGNS = 512, 64
_STEP = 4  # of the first look: two powers of ten


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
    score = score.masked_fill(free < (1 - MOST_USED) * samples, torch.inf)
    return ridges[score.argmin()]


def best_ridge_by_factors(gram: Tensor, cross: Tensor, samples: int, total: float) -> float:
    """As :func:`best_ridge`, without eigenvalues: by some ten Cholesky factorisations.

    The score falls to its minimum and rises from there, so that few of the ridges are looked at, from the
    largest down. ``tr H`` is estimated from random signs (Girard 1989), the same ones for the same number of
    columns, with a standard deviation of at most ``sqrt(tr H / 32)``. Each factorisation takes ``D^3 / 3``
    multiplications in products of blocks; eigenvectors take some ``9 D^3``, many of them bound by memory.

    Args:
        gram: of the columns, floating-point [D, D]; the lower triangle is read. A copy of it is made.
        cross: products of columns and targets, [D, C].
        samples, total: as there.
    """
    ridges = ridges_of(gram.diagonal().double().mean()).tolist()
    probes, traces = signs_for_trace(gram)
    cross = cross.to(gram.dtype)
    asked = torch.cat([cross, probes], 1)
    classes = cross.shape[1]
    return valley(ridges, lambda ridge: _score(gram, asked, classes, ridge, traces, samples, total))


def signs_for_trace(matrix: Tensor) -> tuple[Tensor, float]:
    """Columns z, and the factor by which the sum of all ``z^T M^-1 z`` is the trace of M^-1, or estimates it.

    Args:
        matrix: M, [D, D]; only its size, dtype and device count.
    """
    columns = len(matrix)
    if columns <= _EXACT_COLUMNS:
        return torch.eye(columns, dtype=matrix.dtype, device=matrix.device), 1.0
    generator = seeded(torch.device("cpu"), columns)
    signs = torch.randint(0, 2, (columns, _SIGNS), generator=generator, device="cpu") * 2 - 1
    return signs.to(matrix), 1 / _SIGNS


def valley(ridges: Sequence[float], score_of: Callable[[float], float]) -> float:
    """The ridge of least score, which falls to its minimum and rises again; few are looked at, from above."""
    scores: dict[int, float] = {}

    def score(place: int) -> float:
        if place not in scores:
            scores[place] = score_of(ridges[place])
        return scores[place]

    best = last = len(ridges) - 1
    for place in range(last, -1, -_STEP):
        if score(place) < score(best):
            best = place
        elif score(place) > 1.01 * score(best):
            break
    step = _STEP
    while step > 1:
        step //= 2
        best = min((p for p in (best, best + step, best - step) if 0 <= p <= last), key=score)
    return ridges[best]


def _score(
    gram: Tensor, asked: Tensor, targets: int, ridge: float, traces: float, samples: int, total: float
) -> float:
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        return math.inf
    solved = torch.cholesky_solve(asked, factor)
    products = (asked * solved).sum(0, dtype=torch.float64)
    # n - tr H, of the columns' inverse: H has the eigenvalues 1 - ridge / (v + ridge).
    free = samples - len(gram) + ridge * traces * float(products[targets:].sum())
    if free < (1 - MOST_USED) * samples:
        return math.inf
    weights = solved[:, :targets]
    rest = total - float(products[:targets].sum()) - ridge * float(weights.square().sum(dtype=torch.float64))
    return max(rest, 0.0) / free**2


def plain_best_ridge(values: Tensor, z: Tensor, samples: Tensor) -> Tensor:
    """What earlier versions took, to the bit: no limit on ``tr H``, and differences that cancel."""
    ridges = ridges_of(values.mean())
    shrunk = values / (values + ridges[:, None])  # eigenvalues of H, [ridges, columns]
    # In the eigenvectors' coordinates, with z the rows of C: |y - phi W|^2 = |y|^2 - sum z^2 s (2 - s) / v.
    power = torch.where(values > 0, (z * z).sum(1) / values.clamp(min=1e-300), 0.0)
    rest = samples - (power * shrunk * (2 - shrunk)).sum(1)
    free = (1 - shrunk.sum(1) / samples).clamp(min=1e-12)
    return ridges[(rest.clamp(min=0) / free**2).argmin()]
