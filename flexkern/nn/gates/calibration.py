"""Scores of tasks to probabilities, so that a threshold of 0.5 means the same for all gates."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.nn.task_scores import others_logsumexp

__all__ = ["CALIBRATIONS", "fit_platt", "fit_softmax", "softmax_logit"]

CALIBRATIONS = ("none", "platt", "softmax")


def fit_platt(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """For each of G gates, slope and offset of ``sigmoid(slope score + offset)``, the own task's probability.

    Logistic regression on one score (Platt 1999), positives and negatives with half the weight each, whatever
    their numbers, and Platt's smoothed targets ``(n + 1) / (n + 2)``, which keep the slope finite where scores
    separate the two. A slope is at least 1e-3 over the score's deviation: a gate that is worse than chance
    becomes nearly indifferent, and is never inverted.

    Args:
        scores: [M, G].
        positive: bool [M, G]; each gate needs positives and negatives.

    Returns:
        (slope, offset), float32 [G].
    """
    x, positive = scores.double(), positive.double()
    n_pos, n_neg = positive.sum(0), (1 - positive).sum(0)
    weight = positive / (2 * n_pos) + (1 - positive) / (2 * n_neg)
    target = torch.where(positive > 0, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    # Around the weighted mean the two parameters hardly depend on each other.
    centre = (weight * x).sum(0)
    spread = ((weight * (x - centre) ** 2).sum(0)).sqrt().clamp(min=1e-30)
    x = (x - centre) / spread
    slope, offset = torch.ones_like(centre), torch.zeros_like(centre)
    for _ in range(50):
        p = torch.sigmoid(slope * x + offset)
        rest, curve = weight * (p - target), weight * p * (1 - p)
        g0, g1 = rest.sum(0), (rest * x).sum(0)
        h00, h01, h11 = curve.sum(0) + 1e-9, (curve * x).sum(0), (curve * x * x).sum(0) + 1e-9
        determinant = h00 * h11 - h01 * h01
        d_offset = (h11 * g0 - h01 * g1) / determinant
        d_slope = (h00 * g1 - h01 * g0) / determinant
        # A Newton step of at most 1: the loss is convex, so that short steps arrive.
        shorter = 1 / torch.maximum(d_offset.abs(), d_slope.abs()).clamp(min=1)
        slope, offset = slope - shorter * d_slope, offset - shorter * d_offset
    indifferent = torch.logit((weight * target).sum(0))
    offset = torch.where(slope < 1e-3, indifferent, offset)
    slope = slope.clamp(min=1e-3)
    return (slope / spread).float(), (offset - slope * centre / spread).float()


def fit_softmax(scores: Tensor, task: Tensor) -> float:
    """The factor a for which ``softmax(a scores)`` over T tasks has the least cross-entropy.

    This is temperature scaling.

    The true task has target 1 - e + e / T and the others e / T, with e = T / (M + T), which keeps a finite.
    Found by bisection of the derivative, which grows with a, for a between 1e-3 and 1e4 over the deviation of
    the scores.

    Args:
        scores: [M, T], T >= 2.
        task: int64 [M], the true task; tasks count equally, whatever their samples.
    """
    x = scores.double()
    x = x - x.mean(1, keepdim=True)
    samples, tasks = x.shape
    spread = x.square().mean().sqrt().clamp(min=1e-30)
    x = x / spread
    per_task = torch.bincount(task, minlength=tasks).clamp(min=1)
    weight = 1 / (per_task[task] * (per_task > 0).sum()).float()
    smoothing = tasks / (samples + tasks)
    target = (1 - smoothing) * x.gather(1, task[:, None]).squeeze(1)  # the smoothed rest has mean 0
    low, high = x.new_tensor(1e-3).log(), x.new_tensor(1e4).log()
    for _ in range(60):
        middle = (low + high) / 2
        expected = (torch.softmax(middle.exp() * x, 1) * x).sum(1)
        too_large = (weight * (expected - target)).sum() > 0
        low, high = torch.where(too_large, low, middle), torch.where(too_large, middle, high)
    return float(low.exp() / spread)


def softmax_logit(scores: Tensor, factor: Tensor) -> Tensor:
    """log(p / (1 - p)) of ``p = softmax(factor scores)``, [N, T], T >= 2, without the rounding of p near 1."""
    scaled = scores * factor
    return scaled - others_logsumexp(scaled)
