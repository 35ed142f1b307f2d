"""What stands in ``weight.grad`` after a fused backward: a gradient that never existed."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern.nn.fused.norm import foreach_norms, norm_of_none

__all__ = ["MicroBatch", "SteppedGrad"]


class MicroBatch(NamedTuple):
    """What one backward pass of a linear layer leaves to be stepped with.

    x: [batch, in], the layer's input.
    grad_out: [batch, out], the loss's derivative by its output.
    post: [batch, out], what the postsynaptic units did; None where no synapse is silent.
    """

    x: Tensor
    grad_out: Tensor
    post: Tensor | None


class SteppedGrad(Tensor):
    """A gradient without values: it has the shape, dtype and device of its weight, and no storage.

    Everything that would read or write it (gradient clipping, a GradScaler, another optimizer, another gradient
    that is added to it) raises, and says why. Attributes work, and so does ``zero_grad()``. So does
    ``clip_grad_norm_`` with an infinite ``max_norm``, by which trainers log the norm of all gradients: it is
    that of the gradients that exist (:class:`flexkern.nn.fused.norm.NormOfOthers`).

    Args:
        weight: whose gradient it stands for.
        optimizer: the one that has stepped the weight or will; kept by a weak reference.
        window: how many micro-batches make one step.
        batches: those that are waiting for the step; empty: it has been made. ``zero_grad()`` drops them, as it
            drops a sum of gradients.
    """

    # Only what computes comes to __torch_dispatch__: attributes are read without any Python of ours.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    optimizer: weakref.ref[Any]
    window: int
    batches: list[MicroBatch]
    counted: bool  # whether the optimizer's step() has seen it

    @staticmethod
    def __new__(
        cls: type[SteppedGrad], weight: Tensor, optimizer: object, window: int, batches: list[MicroBatch]
    ) -> SteppedGrad:
        grad = Tensor._make_wrapper_subclass(
            cls, weight.shape, strides=weight.stride(), dtype=weight.dtype, device=weight.device
        )
        grad.optimizer = weakref.ref(optimizer)
        grad.window = window
        grad.batches = batches
        grad.counted = False
        return grad

    def _moved(self, dtype: torch.dtype, device: torch.device) -> SteppedGrad:
        other = Tensor._make_wrapper_subclass(
            SteppedGrad, self.shape, strides=self.stride(), dtype=dtype, device=device
        )
        other.__dict__.update(self.__dict__)
        return other

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default and not args[0].batches:
            # Module.to(device or dtype) moves gradients too. This one has no values that could be moved.
            grad, to = args[0], kwargs or {}
            return grad._moved(to.get("dtype") or grad.dtype, to.get("device") or grad.device)
        if func is torch.ops.aten.linalg_vector_norm.default and len(args) <= 2 and not kwargs:
            return norm_of_none(args[0], _error)
        if func is torch.ops.aten._foreach_norm.Scalar:
            return foreach_norms(args[0], args[1:], kwargs or {}, cls._is_one, _error)
        raise _error(func.__name__.split(".")[0])

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        """Raises: torch's optimizers and GradScaler ask this first; some then decay weights before they look
        at a gradient."""
        raise _error("an optimizer or GradScaler")

    @staticmethod
    def _is_one(grad: Tensor) -> bool:
        return isinstance(grad, SteppedGrad)

    def norm(self, *_: Any, **__: Any) -> Tensor:
        """Raises: who asks this gradient alone would take the 0 that it adds to others' for its norm."""
        raise _error("norm")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        state = f"{len(self.batches)} of {self.window} micro-batches" if self.batches else "stepped in backward"
        return f"SteppedGrad({state}, shape={tuple(self.shape)}, dtype={self.dtype})"


def _error(who: str) -> RuntimeError:
    return RuntimeError(
        f"{who} needs a gradient that does not exist: with fused_step the backward pass itself steps the "
        "weight, and this stands in its .grad. So gradients of such weights cannot be clipped, unscaled by a "
        "GradScaler, added to, read, or zeroed in place, and no other optimizer can step the weight "
        "(clip_grad_norm_ with max_norm=inf only tells the norm of the others; for a transformers.Trainer set "
        "max_grad_norm=0). Call zero_grad() (set_to_none=True, the default) before each backward pass (each "
        "window of them), or set fused_step = False on the layer"
    )
