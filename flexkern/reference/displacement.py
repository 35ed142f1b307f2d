"""The scaled displacement in plain PyTorch (docs/design.md, The scaled displacement)."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.reference.metaplastic import check_shape, gate, number, tensors_of
from flexkern.spec.displacement import ScaleDisplacement

__all__ = ["scale_displacement_"]


def scale_displacement_(given: ScaleDisplacement) -> None:
    """``flexkern::scale_displacement_``; computed in the dtype of the weight or its master."""
    if not given.weight:
        return
    given.check_memory()
    exact = [_exact(given, i) for i in range(len(given.weight))]
    if given.alpha:
        alphas = [alpha.to(w0.dtype) for alpha, w0 in zip(given.alpha, exact, strict=True)]
    else:
        a, f = tensors_of(exact, given.anchor, given.flexibility, given.sources, given.parameters)
        scale = number(given.scale, given.scale_tensor, given.weight[0])
        alphas = [gate(*of_weight, scale) for of_weight in zip(exact, a, f, strict=True)]
    results = []  # all of them, before any is written: an argument that does not fit must not leave half a call
    for i, (weight, before) in enumerate(zip(given.weight, given.before, strict=True)):
        w, old, alpha = weight.to(exact[i].dtype), exact[i], alphas[i]
        new = old + alpha * (w - before.to(old.dtype))
        new = torch.where(alpha == 0, old, torch.where(alpha == 1, w, new))
        rounded = new.to(weight.dtype)
        if given.skip_nonfinite:
            moved = rounded.isfinite()
            new, rounded = torch.where(moved, new, old), torch.where(moved, rounded, before)
        check_shape(rounded, weight)
        results.append((rounded, new))
    for i, (rounded, new) in enumerate(results):
        given.weight[i].copy_(rounded)
        if given.master:
            given.master[i].copy_(new)


def _exact(given: ScaleDisplacement, i: int) -> Tensor:
    """w0 as exactly as it is known: the master, unless it does not round to w0: somebody wrote the weight."""
    before = given.before[i]
    if not given.master:
        return before
    master = given.master[i]
    is_rounding = master.to(before.dtype).view(torch.int16) == before.view(torch.int16)  # tells 0 from -0
    return torch.where(is_rounding, master, before.to(master.dtype))
