"""Which synapses begin silent, and how the gradient of silent synapses is kept at 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field, Purpose
from flexkern.nn.silent.insertion import numbers_of_units

__all__ = ["MaskGradient", "check_silent", "silent_mask"]


class MaskGradient(torch.autograd.Function):
    """The weight itself; its gradient is 0 where synapses are silent. Can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, silent: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(silent)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (silent,) = ctx.saved_tensors
        # Not a product with the mask: that would keep an infinite gradient as NaN.
        return grad.masked_fill(ops.unpack_mask(silent, grad.shape[1]), 0.0), None


def check_silent(silent: object, shape: tuple[int, int]) -> None:
    """Raises TypeError or ValueError unless ``silent`` says what begins silent in a weight of this shape."""
    if isinstance(silent, Tensor) and silent.dtype is torch.bool and silent.dim():
        if tuple(silent.shape) != shape:
            raise ValueError(f"silent as a mask must be bool [out, in] = {shape}, got {tuple(silent.shape)}")
        return
    shares = numbers_of_units(silent, "silent", shape[0], f" or a bool mask {shape}")
    if not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ValueError(f"silent must be a share of synapses in [0, 1], got {silent}")


def silent_mask(silent: float | Tensor, shape: tuple[int, int], seed: int, stream: int) -> Tensor:
    """bool [out, in], on the CPU: which synapses begin silent.

    Each is silent with the probability that ``silent`` says, by its value in a procedural field.
    """
    if isinstance(silent, Tensor) and silent.dtype is torch.bool:
        return silent.detach().cpu().clone()
    share = numbers_of_units(silent, "silent", shape[0], "").cpu()
    draw = ops.materialize(Field.uniform(seed, stream, purpose=Purpose.SILENCE), shape, device="cpu")
    return draw < share.reshape(-1, 1)
