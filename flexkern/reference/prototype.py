"""The prototype classifier of EASE in loops, as the paper writes it: specifies flexkern.ops.prototype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["complete_prototypes", "prototype_logits"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos of the angle between two vectors; 0 if one of them is 0."""
    lengths = a.norm() * b.norm()
    return (a @ b) / lengths if lengths > 0 else lengths


def prototype_logits(
    features: Tensor,
    prototypes: Tensor,
    own_subspace: Tensor,
    *,
    weight: float = 0.1,
    reweighting: str = "code",
    base: bool = False,
    base_weight: float = 0.0,
    openings: Tensor | None = None,
) -> Tensor:
    """As :func:`flexkern.ops.prototype.prototype_logits`, sample by sample (arXiv 2403.12030)."""
    samples, subspaces, _ = features.shape
    tasks = subspaces - 1 if base else subspaces
    logits = features.new_zeros((samples, len(prototypes)))
    for n in range(samples):
        for c in range(len(prototypes)):
            for k in range(subspaces):
                if k == int(own_subspace[c]):
                    w = 1.0
                elif base and k == 0:
                    w = base_weight
                elif reweighting == "code":
                    w = weight / (tasks - 1)
                else:
                    w = weight
                opening = 1.0 if openings is None else openings[n, k]
                logits[n, c] += opening * w * cosine(features[n, k], prototypes[c, k])
    return logits


def complete_prototypes(
    prototypes: Tensor, own_subspace: Tensor, known: Tensor | None = None, *, over: str = "later"
) -> Tensor:
    """As :func:`flexkern.ops.prototype.complete_prototypes`, class by class (arXiv 2403.12030)."""
    classes, subspaces, _ = prototypes.shape
    own = own_subspace.tolist()
    if known is None:
        known = torch.tensor([[k <= own[c] for k in range(subspaces)] for c in range(classes)])
    completed = prototypes.clone()
    for o in range(classes):
        for k in range(subspaces):
            if known[o, k]:
                continue
            new = [n for n in range(classes) if known[n, k] and known[n, own[o]]]
            if over == "new":
                new = [n for n in new if own[n] == k]
            completed[o, k] = 0
            if new:
                cosines = [cosine(prototypes[o, own[o]], prototypes[n, own[o]]) for n in new]
                shares = torch.softmax(torch.stack(cosines), 0)
                completed[o, k] = sum(s * prototypes[n, k] for s, n in zip(shares, new, strict=True))
    return completed
