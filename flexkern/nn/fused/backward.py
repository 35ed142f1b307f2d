"""The backward pass of a linear layer that steps the weight and makes no gradient of it.

See docs/design.md, One pass.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.functional import linear, relu

from flexkern.backends import requested_in_block, use_backend
from flexkern.distributed import GatheredRows, start_gather
from flexkern.nn.fused.stepped_grad import MicroBatch, SteppedGrad

__all__ = ["FusedLayer", "FusedLinear", "PendingBackward"]


class PendingBackward:
    """Lives while a graph through a layer waits for its backward pass."""


class FusedLayer(Protocol):
    """What a fused backward pass has to know of its layer; :class:`flexkern.nn.MetaplasticLinear` is one.

    in_features, out_features: of its weight [out, in].
    window: how many backward passes make one step.
    processes: the group that steps the weight together, each with what all have; None: this process alone.
    pending: of each graph through the layer that has had no backward pass yet.
    """

    in_features: int
    out_features: int
    window: int
    processes: Any
    pending: weakref.WeakSet[PendingBackward]

    def stepping_optimizer(self) -> Any:
        """The optimizer that steps the weight; RuntimeError if there is none."""


class FusedLinear(torch.autograd.Function):
    """``F.linear`` whose backward pass steps the weight, by the layer's optimizer.

    ``multiplied`` is the weight in the dtype of ``x``, or as it is. It stays as it is until backward, or the
    weight has changed, too.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: FusedLayer,
        keep_post: bool,
        multiplied: Tensor,
    ) -> Tensor:
        # Autocast would cast the weight here, and backward once more.
        with torch.autocast(x.device.type, enabled=False):
            low = multiplied.dtype is not weight.dtype
            y = linear(x, multiplied, bias.to(multiplied.dtype) if low and bias is not None else bias)
        # relu(y), not y: an in-place activation after the layer would overwrite y.
        ctx.save_for_backward(x, relu(y) if keep_post else None)
        ctx.layer, ctx.weight, ctx.version, ctx.multiplied = layer, weight, weight._version, multiplied
        ctx.stepped, ctx.pending = False, PendingBackward()
        layer.pending.add(ctx.pending)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.backend = requested_in_block()
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight: Tensor = ctx.weight
        _check_pass(ctx)
        # A backward(inputs=...) or autograd.grad that does not want the weight's gradient does not step it.
        steps = _wants_weight(ctx.next_functions[1][0])
        batches, optimizer = _check_step(ctx) if steps else ([], None)

        x, post = ctx.saved_tensors
        grad_out = grad_y.reshape(-1, weight.shape[0])
        if steps:
            post = None if post is None else post.reshape(-1, weight.shape[0])
            batches = [*batches, MicroBatch(x.reshape(-1, weight.shape[1]), grad_out, post)]
        coming = _start_gather(ctx.layer, batches)  # which the next product does not wait for
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ ctx.multiplied.to(grad_y.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.sum(0, dtype=ctx.bias_dtype)
        if steps or not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.pending = None  # no other backward pass may follow
        if steps:
            # A backward pass on a GPU runs in a thread of autograd's, which is outside of any block.
            same = contextlib.nullcontext() if ctx.backend is None else use_backend(ctx.backend)
            with same:
                _step(ctx.layer, weight, optimizer, batches, coming)
            ctx.stepped = True
        return grad_x, None, grad_bias, None, None, None


def _check_pass(ctx: Any) -> None:
    """Checks that this is the first ordinary backward pass through the graph, with the weight as it was.

    Raises:
        RuntimeError: saying what happened.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"double backward (create_graph=True) through {_name(ctx)}: its backward steps the weight in "
            "place, which cannot be differentiated; set fused_step = False on the layer"
        )
    if ctx.stepped:
        raise RuntimeError(
            f"second backward pass (retain_graph=True) through {_name(ctx)}: the first one has stepped the "
            "weight already; add the losses and call backward() once, or set fused_step = False on the layer"
        )
    if ctx.weight._version != ctx.version:
        raise RuntimeError(
            f"the weight of {_name(ctx)} was changed between this forward pass and its backward, by the step "
            "of another backward pass or by hand, so the gradient would be wrong; call backward() before the "
            "next change. A layer that is used several times in one graph needs fused_step = False"
        )


def _wants_weight(accumulate: Node) -> bool:
    """Whether the backward pass that runs now is to accumulate the weight's gradient."""
    try:
        return torch._C._will_engine_execute_node(accumulate)
    except RuntimeError as error:  # torch's way to say that autograd.grad was asked for this very gradient
        raise RuntimeError(
            "torch.autograd.grad was asked for the gradient of a weight with fused_step, which is never "
            "formed; set fused_step = False on its layer"
        ) from error


def _check_step(ctx: Any) -> tuple[list[MicroBatch], Any]:
    """The micro-batches that wait for this one, and the optimizer. Checks that they may be stepped with.

    Raises:
        RuntimeError: saying what happened.
    """
    layer: FusedLayer = ctx.layer
    optimizer = layer.stepping_optimizer()
    grad, batches = ctx.weight.grad, []
    if isinstance(grad, SteppedGrad):
        batches = grad.batches
        if not batches:
            raise RuntimeError(
                f"{_name(ctx)} has had its step since the last zero_grad(), and this is another backward pass. "
                "Call zero_grad() and step() for each, or accumulate over k micro-batches with "
                "fuse_into_backward(..., window=k)"
            )
        if grad.optimizer() is not optimizer:
            raise RuntimeError(
                f"{_name(ctx)} got another optimizer in the middle of a window; call zero_grad()"
            )
    elif grad is not None:
        raise RuntimeError(
            f"{_name(ctx)} has an ordinary gradient in weight.grad (from a penalty on the weight, or from "
            "before it was fused), which the fused step would leave out; call zero_grad(), or set "
            "fused_step = False on the layer"
        )
    if len(batches) + 1 >= layer.window and len(layer.pending) > 1:
        raise RuntimeError(
            f"{_name(ctx)} is about to step, but another graph through it still waits for its backward pass "
            "and would find other weights. A layer that is used several times in one graph (weight tying) "
            "needs fused_step = False; forward passes that are not for training belong under torch.no_grad()"
        )
    return batches, optimizer


def _joined(batches: list[MicroBatch]) -> MicroBatch:
    if len(batches) == 1:
        return batches[0]
    x, grad_out = torch.cat([b.x for b in batches]), torch.cat([b.grad_out for b in batches])
    posts = [b.post for b in batches if b.post is not None]
    return MicroBatch(x, grad_out, torch.cat(posts) if posts else None)


def _start_gather(layer: FusedLayer, batches: list[MicroBatch]) -> GatheredRows | None:
    """Where a window is complete: begins to gather what all processes have for the step. None: nothing is sent.

    As in DistributedDataParallel the gradient is the mean of those of all processes.
    """
    if layer.processes is None or len(batches) < layer.window:
        return None
    x, grad_out, post = _joined(batches)
    grad_out = grad_out / torch.distributed.get_world_size(layer.processes)
    return start_gather([x, grad_out] if post is None else [x, grad_out, post], layer.processes)


def _step(
    layer: FusedLayer, weight: Tensor, optimizer: Any, batches: list[MicroBatch], coming: GatheredRows | None
) -> None:
    if len(batches) < layer.window:
        weight.grad = SteppedGrad(weight, optimizer, layer.window, batches)
        return
    x, grad_out, *post = _joined(batches) if coming is None else coming.wait()
    optimizer.step_in_backward(weight, x, grad_out, *post)
    weight.grad = SteppedGrad(weight, optimizer, layer.window, [])


def _name(ctx: Any) -> str:
    layer = ctx.layer
    return f"{type(layer).__name__}({layer.in_features}, {layer.out_features}) with fused_step"
