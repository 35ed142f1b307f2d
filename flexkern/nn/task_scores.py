"""Scores of classes as scores of the tasks that they belong to, without a loop over either."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["class_sums", "group_logsumexp", "group_max", "others_logsumexp", "rank_in_class"]


def group_max(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """The largest of each group, [N, groups], of scores [N, C]; -inf for an empty group.

    ``group`` is int64 [C], the group of each column.
    """
    out = scores.new_full((len(scores), groups), -torch.inf)
    return out.scatter_reduce_(1, group.expand_as(scores), scores, "amax")


def group_logsumexp(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """log sum exp of each group, [N, groups], of scores [N, C]; -inf for an empty group.

    ``group`` is int64 [C], the group of each column.
    """
    top = group_max(scores, group, groups)
    shifted = torch.exp(scores - top.gather(1, group.expand_as(scores)))
    member = one_hot(group, groups).to(shifted)  # not index_add_: its order on a GPU is any
    return top + torch.log(shifted @ member)


def others_logsumexp(scores: Tensor) -> Tensor:
    """For each column of [N, T], T >= 2, log sum exp of all other columns, [N, T].

    Not log(total - own): that cancels where the own column is the largest, so there it is summed anew.
    """
    best = scores.argmax(1, keepdim=True)
    rest = scores.scatter(1, best, -torch.inf)
    without_best = torch.logsumexp(rest, 1, keepdim=True)
    top = scores.gather(1, best)
    # The best is in every other column's sum, so that 1 + the rest's share is a sum of positive numbers.
    share = torch.exp(rest - top)
    others = top + torch.log1p((share.sum(1, keepdim=True) - share).clamp(min=0))
    return others.scatter(1, best, without_best)


def class_sums(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which classes there are, int64 [S], and the sums of their rows of ``values`` [n, D], float64 [S, D].

    A product, not ``index_add_``: the same bits each time on a GPU too.
    """
    seen, place = labels.unique(return_inverse=True)
    values = values.double()
    return seen, one_hot(place, len(seen)).to(values).T @ values


def rank_in_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample's place, 0, 1, ..., in a random order of its class's samples: int64 [n]."""
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    order = order[torch.sort(labels[order], stable=True).indices]
    ordered = labels[order]
    first = torch.searchsorted(ordered, ordered)  # where each sample's class begins
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels), device=labels.device) - first
    return ranks
