"""What linear discriminant analysis would answer for a sample that it has learned, had it not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexkern.nn.growing import check_features, check_labels
from flexkern.nn.heads.discriminant import LDAHead

__all__ = ["leave_one_out"]


@torch.no_grad()
def leave_one_out(head: LDAHead, h0: Tensor, labels: Tensor) -> Tensor:
    """Logits of samples that the head has learned, each by a head that has learned all samples but this one.

    Without x of class c, with n samples, mean m and ``r = x - m``, that class has mean ``m - r / (n - 1)``, and
    the scatter is less by ``n / (n - 1) r r^T``; the inverse of the shrunk covariance follows by the formula of
    Sherman and Morrison. So all samples together take one factorisation and products with it. What is left out
    of the difference is how the degrees of freedom, the trace and rho of ``shrinkage="oas"`` change: by some
    1 / samples of themselves.

    Args:
        head: the head; its ``priors`` count as they are.
        h0: floating-point [n, width], of what was learned.
        labels: integers [n], the classes that they were learned with.

    Returns:
        float32 [n, C], as :meth:`flexkern.nn.LDAHead.logits`. -inf for the own class of a sample that is its
        only one.

    Raises:
        TypeError, ValueError: naming the argument.
        NotLearnedError, RuntimeError: as :meth:`flexkern.nn.LDAHead.solve`.
    """
    check_features(h0, head.width)
    check_labels(labels, len(h0))
    labels = labels.to(head.count)
    if len(labels) and (int(labels.max()) >= head.classes or int(head.count[labels].min()) < 1):
        raise ValueError("labels must be classes that the head has learned")
    whole = head.factored()
    logits = torch.full((len(h0), head.classes), -math.inf, dtype=torch.float32, device=head.sum.device)
    if not len(h0):
        return logits
    known = (head.count > 0).nonzero().squeeze(1)
    x = h0.to(head.sum) - whole.centre
    means = head.sum[known] / head.count[known, None] - whole.centre
    place = torch.searchsorted(known, labels)
    rows = torch.arange(len(h0), device=place.device)
    n = head.count[labels].double()
    left = n - 1
    alone = left < 1
    ratio = n / left.clamp(min=1)  # x less the mean of the others is r times this
    inverse_x, inverse_means = whole.solve(x), whole.solve(means)
    inverse_rest = inverse_x - inverse_means[place]
    own = ((x - means[place]) * inverse_rest).sum(1)
    # From x to the means, in the metric of all samples; then what the missing one changes.
    distance = (x * inverse_x).sum(1, keepdim=True) - 2 * x @ inverse_means.T + (means * inverse_means).sum(1)
    along = (x * inverse_rest).sum(1, keepdim=True) - inverse_rest @ means.T
    distance[rows, place] = own * ratio**2
    along[rows, place] = own * ratio
    part = whole.weight * ratio
    # 1 is reached where a single sample makes its direction's whole covariance: then there is none without it.
    distance += (part / (1 - part * own).clamp(min=1e-9))[:, None] * along.square()
    freedom = int(head.freedom.sum())
    distance *= (freedom - 1) / freedom
    prior = head.count[known].double()[None].expand(len(h0), -1).clone()
    prior[rows, place] = left.clamp(min=1e-300)
    if head.priors == "uniform":
        prior = torch.ones_like(prior)
    found = (prior.log() - distance / 2).log_softmax(1)
    found[rows[alone], place[alone]] = -math.inf
    logits[:, known] = found.float()
    return logits
