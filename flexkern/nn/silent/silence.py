"""What a layer with silent synapses begins with, and how their gradient is kept at 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field, Purpose
from flexkern.nn.silent.threshold import AdaptiveThreshold
from flexkern.ops.layers import INSERTS
from flexkern.ops.linear import RULES

__all__ = ["MaskGradient", "check_arguments", "silent_mask", "threshold_tensor"]


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


def check_arguments(
    silent: object,
    threshold: object,
    rule: str,
    insert: str,
    eta: object,
    prune: object,
    init: object,
    shape: tuple[int, int],
) -> None:
    """Checks the arguments of a layer with silent synapses.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, choice, allowed in (("rule", rule, RULES), ("insert", insert, INSERTS)):
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {choice!r}")
    for name, value in (("eta", eta), ("prune", prune)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value <= 1e38:
            raise ValueError(f"{name} must be finite and >= 0, got {value}")
    if init is not None and not isinstance(init, Field):
        raise TypeError(f"init must be a flexkern.Field or None, got {type(init).__name__}")
    _check_silent(silent, shape)
    if isinstance(threshold, AdaptiveThreshold):
        return
    values = _as_numbers(threshold, "threshold", shape[0], " or a flexkern.nn.AdaptiveThreshold")
    if not bool((values >= 0).all()):
        raise ValueError(f"threshold must be >= 0, got {threshold}")


def _check_silent(silent: object, shape: tuple[int, int]) -> None:
    if isinstance(silent, Tensor) and silent.dtype is torch.bool:
        if tuple(silent.shape) != shape:
            raise ValueError(f"silent as a mask must be bool [out, in] = {shape}, got {tuple(silent.shape)}")
        return
    shares = _as_numbers(silent, "silent", shape[0], f" or a bool mask {shape}")
    if not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ValueError(f"silent must be a share of synapses in [0, 1], got {silent}")


def _as_numbers(value: object, name: str, units: int, other: str) -> Tensor:
    """A number, or a floating tensor with one for each unit, as a float64 tensor."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or tuple(value.shape) not in ((), (1,), (units,)):
            raise ValueError(
                f"{name} as a tensor must be floating-point with one value, or one for each of the {units} "
                f"units{other}, got {value.dtype} {tuple(value.shape)}"
            )
        return value.detach().double()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, a tensor [{units}]{other}, got {value!r}")
    return torch.tensor(float(value), dtype=torch.float64)


def silent_mask(silent: float | Tensor, shape: tuple[int, int], seed: int, stream: int) -> Tensor:
    """bool [out, in], on the CPU: which synapses begin silent.

    Each is silent with the probability that ``silent`` says, by its value in a procedural field.
    """
    if isinstance(silent, Tensor) and silent.dtype is torch.bool:
        return silent.detach().cpu().clone()
    share = _as_numbers(silent, "silent", shape[0], "").cpu()
    draw = ops.materialize(Field.uniform(seed, stream, purpose=Purpose.SILENCE), shape, device="cpu")
    return draw < share.reshape(-1, 1)


def threshold_tensor(threshold: float | Tensor | AdaptiveThreshold, units: int) -> Tensor:
    """theta as a float64 tensor: one element, or one for each unit."""
    if isinstance(threshold, AdaptiveThreshold):
        return torch.full((units,), threshold.start, dtype=torch.float64)
    return _as_numbers(threshold, "threshold", units, "").reshape(-1).clone()
