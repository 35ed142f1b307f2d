"""What gradients must be before a step of a metaplastic optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.optim.sharded import check_gradient

__all__ = ["all_zero", "check_grads"]


def _check_stepped(grad: SteppedGrad, i: int, optimizer: object) -> None:
    p = f"parameter {i} of its group, shape {tuple(grad.shape)},"
    if grad.optimizer() is not optimizer:
        raise RuntimeError(
            f"{p} was stepped in backward by another optimizer, which owns it too; give each weight to one "
            "optimizer"
        )
    if grad.batches:
        raise RuntimeError(
            f"{p} has seen {len(grad.batches)} of the {grad.window} micro-batches of its window, so backward "
            "has not stepped it yet; call step() after the last one, or zero_grad() to drop those seen"
        )
    if grad.counted:
        raise RuntimeError(
            f"{p} was stepped once by its backward, and a second step() without another backward cannot step "
            "it again; call zero_grad() and backward() before each step()"
        )


def check_grads(group: dict[str, Any], optimizer: object) -> None:
    """Checks all gradients of a group before a step of ``optimizer``.

    Raises:
        RuntimeError: if one stands for a fused step that does not go with this step.
        TypeError: if one is sparse, or of a dtype or a sharding that does not fit its parameter.
    """
    for i, p in enumerate(group["params"]):
        if p.grad is None:
            continue
        if isinstance(p.grad, SteppedGrad):
            _check_stepped(p.grad, i, optimizer)
            continue
        if p.grad.layout is not torch.strided:
            raise TypeError(
                f"gradient of parameter {i} of its group, shape {tuple(p.shape)}, is sparse ({p.grad.layout}); "
                "this optimizer steps every synapse, so use sparse=False in the layer, or grad.to_dense()"
            )
        # Shape and device are those of the parameter: torch checks them when a gradient is assigned.
        if p.grad.dtype not in (p.dtype, torch.float32):
            raise TypeError(
                f"gradient of parameter {i} of its group must be {p.dtype} or torch.float32, got {p.grad.dtype}"
            )
        check_gradient(p, i)


def all_zero(param_groups: list[dict[str, Any]]) -> bool:
    """Whether all learning rates that can be read without waiting for a device are 0, and all gradients, of
    which there are some, hold nothing but zeros."""
    for group in param_groups:
        lr = group["lr"]
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0:
            return False
    grads = [p.grad for group in param_groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not any(isinstance(g, SteppedGrad) or bool(g.any()) for g in grads)
