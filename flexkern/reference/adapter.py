"""The gated adapter in plain PyTorch: the specification of its kernels, and the implementation of last resort.

Low-precision inputs are computed in float32 and rounded where the kernels round: the hidden units, their
gradient and the results. With float64 inputs these functions are the judge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.fields import Kind, Purpose
from flexkern.reference.field import field
from flexkern.spec.adapter import AdapterBackward, AdapterForward

__all__ = ["backward", "dropout_mask", "forward", "gated_adapter", "gated_adapter_backward"]


def dropout_mask(shape: tuple[int, ...], seed: Tensor, p: float, device: torch.device) -> Tensor:
    """Which hidden units stay: those whose uniform float32 draw, found from its position, is at least ``p``."""
    source = [int(Kind.UNIFORM), int(seed.item()), 0, 0, int(Purpose.DROPOUT)]
    return field(shape, source, [0.0, 1.0], device) >= torch.tensor(p, dtype=torch.float32, device=device)


def _wide(x: Tensor) -> Tensor:
    """Low precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def forward(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    index: Tensor,
    residual: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """out[s] = residual[s] + scale (hidden[s] up[t] + up_bias[t]) with t = index[s] and
    hidden[s] = dropout(relu(x[s] down[t] + down_bias[t])) (2403.12030, section 4.1; docs/design.md, Artsy).

    A sample of index -1 has no adapter: its ``out`` is ``residual``, or 0. If no task has the index, it is NaN.

    Returns:
        ``out`` [S, L, d], and ``hidden`` [S, L, r], which is 0 where there is no adapter.
    """
    out = torch.zeros_like(x) if residual is None else residual.clone()
    hidden = x.new_zeros((*x.shape[:2], down.shape[2]))
    if seed is not None:
        kept = dropout_mask(tuple(hidden.shape), seed, dropout_p, x.device)
    for t in range(len(down)):
        own = index == t
        z = torch.relu(_wide(x[own]) @ _wide(down[t]) + _wide(down_bias[t]))
        if seed is not None:
            z = torch.where(kept[own], z * (1 / (1 - dropout_p)), 0.0)
        hidden[own] = z.to(x.dtype)
        y = _wide(hidden[own]) @ _wide(up[t]) + _wide(up_bias[t])
        out[own] = (_wide(out[own]) + scale * y).to(x.dtype)
    out[(index < -1) | (index >= len(down))] = torch.nan
    return out, hidden


def backward(
    grad_out: Tensor,
    x: Tensor,
    hidden: Tensor,
    down: Tensor,
    up: Tensor,
    index: Tensor,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, down, down_bias, up and up_bias; that of residual is ``grad_out``.

    ``hidden`` is above 0 exactly where neither ReLU nor dropout closed the unit, so it serves as both masks.
    """
    grad_x = torch.zeros_like(x)
    grad_down, grad_up = torch.zeros_like(down), torch.zeros_like(up)
    grad_down_bias, grad_up_bias = down.new_zeros(down.shape[0::2]), up.new_zeros(up.shape[0::2])
    for t in range(len(down)):
        own = index == t
        g, h, inputs = (_wide(tensor[own]) for tensor in (grad_out, hidden, x))
        dz = torch.where(h > 0, (g @ _wide(up[t]).T) * (scale / (1 - dropout_p)), 0.0)
        dz = _wide(dz.to(x.dtype))
        grad_x[own] = (dz @ _wide(down[t]).T).to(x.dtype)
        grad_down[t] = torch.einsum("sld,slr->dr", inputs, dz)
        grad_down_bias[t] = dz.sum((0, 1))
        grad_up[t] = scale * torch.einsum("slr,sld->rd", h, g)
        grad_up_bias[t] = scale * g.sum((0, 1))
    return grad_x, grad_down, grad_down_bias, grad_up, grad_up_bias


def gated_adapter(given: AdapterForward) -> tuple[Tensor, Tensor]:
    """``flexkern::gated_adapter``.

    Raises:
        IndexError: on the CPU, if the bank does not have a task of ``index``.
    """
    index, tasks = given.index, len(given.down)
    if index.device.type == "cpu" and index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < -1 or high >= tasks:
            raise IndexError(f"index must be in [-1, {tasks}), got values from {low} to {high}")
    *arguments, keep_hidden = given.values()
    out, hidden = forward(*arguments)
    return out, hidden if keep_hidden else hidden.new_empty(0)


def gated_adapter_backward(given: AdapterBackward) -> tuple[Tensor, ...]:
    """``flexkern::gated_adapter_backward``."""
    *arguments, need_x, need_bank = given.values()
    needed = (need_x, *[need_bank] * 4)
    return tuple(g if need else g.new_empty(0) for g, need in zip(backward(*arguments), needed, strict=True))
