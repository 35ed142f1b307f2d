"""How much a covariance within classes is shrunk, its factor, and what is solved with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexkern.nn.heads.cross_validation import best_ridge_by_factors

__all__ = ["Solved", "by_validation", "factored"]


class Solved(NamedTuple):
    """centre: float32 [width], taken off features; weight: float32 [width, C]; bias: float32 [C]."""

    centre: Tensor
    weight: Tensor
    bias: Tensor


def by_validation(scatter: Tensor, count: Tensor, sums: Tensor) -> float:
    """rho by generalised cross-validation of the regression of one-hot labels on centred features.

    ``(G + ridge I)^-1 C`` has the directions of ``((1 - rho) S + rho tr(S)/d I)^-1`` times the class means,
    where G is the scatter of all samples around their mean, that within classes and that of their means.

    Args:
        scatter: within classes, floating-point [d, d]; of both triangles the lower one counts. It is written
            over.
        count: of classes with samples, int64 [C].
        sums: of their samples, float64 [C, d].
    """
    samples, within = int(count.sum()), float(scatter.diagonal().mean(dtype=torch.float64))
    apart = sums - count[:, None] * (sums.sum(0) / samples)
    scatter.addmm_((apart / count[:, None]).T.to(scatter), apart.to(scatter))
    total = samples - float(count.double().square().sum()) / samples
    ridge = best_ridge_by_factors(scatter, apart.T, samples - 1, total)
    return ridge / (ridge + within)


def factored(
    scatter: Callable[[torch.dtype], Tensor], dtypes: Sequence[torch.dtype], scale: float, added: float
) -> Tensor | None:
    """Lower triangle L with ``L L^T = scale * scatter + added I``; None if that is singular in all dtypes.

    Args:
        scatter: gives a copy of it in a dtype, of which the lower triangle is there.
        dtypes: tried one after the other: what is singular in float32 may not be so in float64.
    """
    for dtype in dtypes:
        lower = scatter(dtype).mul_(scale)
        lower.diagonal().add_(added)
        # The transposed one is in LAPACK's order: it is factored where it is.
        info = torch.zeros((), dtype=torch.int32, device=lower.device)
        torch.linalg.cholesky_ex(lower.T, upper=True, out=(lower.T, info))
        if not int(info):
            return lower
        del lower
    return None
