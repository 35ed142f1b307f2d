"""The flexible update as its paper writes it (arXiv 2407.07133, section 2), in place, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fused_sgd", "gate", "update", "update_foreach"]


# torch's tanh on the CPU is MKL's, which chooses its code at the first call. Where two threads made that call
# at once, half of its values were good to 1e-4 only (torch 2.13); so one thread makes it, here.
torch.tanh(torch.zeros(1))


def gate(w: Tensor, a: Tensor, f: Tensor, scale: float) -> Tensor:
    """alpha = 1 - tanh(k)^2, k = scale (1 - f) / f |w - a|."""
    return 1 - torch.tanh(scale * (1 - f) / f * (w - a).abs()) ** 2


def update(w: Tensor, g: Tensor, a: Tensor, f: Tensor, lr: float, scale: float) -> None:
    """w <- w - lr alpha g. Also what torch.compile is given."""
    w.sub_(lr * gate(w, a, f, scale) * g)


def update_foreach(
    ws: list[Tensor],
    gs: list[Tensor],
    anchors: list[Tensor],
    fs: list[Tensor],
    lr: float,
    scale: float,
) -> None:
    """The same for many tensors, by torch's multi-tensor operators."""
    d = torch._foreach_sub(ws, anchors)
    torch._foreach_abs_(d)
    k = torch._foreach_neg(fs)
    torch._foreach_add_(k, 1.0)
    torch._foreach_mul_(k, scale)
    torch._foreach_div_(k, fs)
    torch._foreach_mul_(k, d)
    torch._foreach_tanh_(k)
    torch._foreach_mul_(k, k)
    torch._foreach_mul_(k, -1.0)
    torch._foreach_add_(k, 1.0)
    torch._foreach_mul_(k, gs)
    torch._foreach_add_(ws, k, alpha=-lr)


def fused_sgd(weights: Sequence[Tensor], grads: Sequence[Tensor], lr: float) -> torch.optim.SGD:
    """torch's own fused SGD, its gradients set: what plain training of the same weights costs."""
    params = [torch.nn.Parameter(w) for w in weights]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return torch.optim.SGD(params, lr=lr, fused=True)
