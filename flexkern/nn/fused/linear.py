"""``nn.Linear`` whose backward pass can step its weight (docs/design.md, One pass)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexkern.nn.fused.backward import FusedLinear, PendingBackward
from flexkern.plain import flag, whole_number

__all__ = ["NOT_ALONE", "MetaplasticLinear"]

# What a fused step says where several processes or devices train a weight together.
NOT_ALONE = (
    "{}: others have gradients for the same weights, to be reduced before the step, and a fused step forms "
    "none, so that the copies of the network would drift apart. Leave fuse_into_backward out: "
    "optimizer.step() takes the same step; or train in one process. Under DistributedDataParallel, "
    "fuse_into_backward(model, optimizer, process_group=...) with the very module that is wrapped, before it is"
)

_UNSAVED = ("_optimizer", "pending", "_narrow", "processes", "_wrapper")


class MetaplasticLinear(nn.Linear):
    """A drop-in for :class:`torch.nn.Linear` whose weight is stepped inside the backward pass.

    With ``fused_step``, in training, the backward pass first computes the gradient of the input with the weight
    as it is, then steps the weight by its :class:`flexkern.optim.MetaplasticSGD`, with
    :func:`flexkern.ops.linear_step_`: the weight's gradient is never formed. ``optimizer.step()`` then leaves
    this weight alone; it steps the bias and all others. Without ``fused_step``, in ``eval()``, under
    ``torch.no_grad()`` and with a frozen weight it is ``nn.Linear``.
    :func:`flexkern.optim.fuse_into_backward` tells the layer its optimizer, and also converts existing models::

        optimizer = MetaplasticSGD(model.parameters(), lr=0.05, scale="auto")
        fuse_into_backward(model, optimizer)
        optimizer.zero_grad()
        loss_function(model(x), y).backward()  # steps the weights of linear layers
        optimizer.step()  # steps the rest

    Both ways give the same weights up to the rounding of the gradient. What changes: the learning rate and
    other settings are read when backward runs; after an exception in a backward pass the layers behind this one
    have been stepped already; ``weight.grad`` is a ``SteppedGrad``, which has no values.

    **Windows.** With ``window=k`` the layer keeps inputs and output gradients of k backward passes and steps in
    the k-th, with all of them. As in any gradient accumulation, divide each loss by k and call ``zero_grad()``
    and ``step()`` once per window. The step is that of one batch of all k, up to rounding, if the loss is a
    mean and the k batches have one size, and if no layer treats a batch as a whole (as BatchNorm does). With
    unequal sizes the gradient is what the losses say, and coincidences of silent synapses are means over all
    samples.

    **bfloat16.** Products in bfloat16 with float32 weights: inside ``torch.autocast``, or with
    ``fuse_into_backward(..., precision="bfloat16")``, which needs no autocast and leaves the dtypes of the
    layer's input and output as they are, also in ``eval()``. The weight is cast once per training pass, into
    memory that the layer keeps (2 bytes per weight) and that serves both products; the step has the float32
    weight. The gradient is rounded to bfloat16 before it, as that of autocast is.

    **Not possible**, and an error that says so: a weight used more than once in a graph or shared between
    layers, a parametrized weight or one with hooks, double backward, a second backward through one graph,
    gradient clipping, a GradScaler (use bfloat16), a second optimizer for the weight; parts of a weight
    (fully_shard, tensor parallelism). Several processes that have the whole weight
    (DistributedDataParallel) step it with what all have: ``process_group`` of
    :func:`flexkern.optim.fuse_into_backward`.
    ``clip_grad_norm_`` with an infinite ``max_norm`` clips nothing, and tells the norm of the gradients that
    exist: of biases, norms, and layers that are not fused.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`.
        fused_step: whether backward steps the weight; needs :func:`flexkern.optim.fuse_into_backward`.
        window: how many backward passes make one step.

    Raises:
        TypeError, ValueError: if ``window`` is not an int of at least 1.

    Source: arXiv 2407.07133, section 2, for the update; the fusion is this package's own.
    """

    fused_step: bool
    window: int
    precision: str = "float32"  # of fused products; layers that were pickled before it was there have this one
    _narrow: Tensor | None = None
    _optimizer: Callable[[], Any] | None
    pending: weakref.WeakSet[PendingBackward]
    processes: Any = None
    _wrapper: Callable[[], Any] | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        fused_step: bool = False,
        window: int = 1,
    ) -> None:
        in_features = whole_number(in_features, "in_features", least=0)
        out_features = whole_number(out_features, "out_features", least=0)
        fused_step, window = flag(fused_step, "fused_step"), checked_window(window)
        super().__init__(in_features, out_features, flag(bias, "bias"), device, dtype)
        self._begin(fused_step, window)

    def _begin(self, fused_step: bool, window: int) -> None:
        """Sets what this class adds to nn.Linear; also for one that has just become of this class."""
        self.fused_step, self.window = fused_step, window
        self._optimizer, self.pending, self._narrow = None, weakref.WeakSet(), None
        self.processes = self._wrapper = None

    def fuse(self, optimizer: Any, window: int, precision: str | None = None, processes: Any = None) -> None:
        """From now on backward steps the weight; :func:`flexkern.optim.fuse_into_backward` calls this. Without
        ``precision`` the layer's stays. ``processes``: the group that steps it together."""
        self._begin(True, checked_window(window))
        self._optimizer, self.processes = weakref.ref(optimizer), processes
        self.precision = self.precision if precision is None else precision

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], as :func:`torch.nn.functional.linear`.

        Raises:
            RuntimeError: if this forward pass cannot be followed by a fused step, and why.
        """
        return self._fused(x, keep_post=False) if self._steps() else self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        """The product without a step, in the precision of those with one."""
        narrow = self._narrows(x)
        if narrow is None:
            return linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(narrow)
        return linear(x.to(narrow), self.weight.to(narrow), bias).to(x.dtype)

    def _narrows(self, x: Tensor) -> torch.dtype | None:
        """What this input is multiplied in by ``precision``; None: in its own dtype, or that of autocast."""
        narrows = self.fused_step and self.precision == "bfloat16" and x.dtype is torch.float32
        return torch.bfloat16 if narrows and not torch.is_autocast_enabled(x.device.type) else None

    def _narrowed(self, dtype: torch.dtype) -> Tensor:
        """The weight in this dtype: itself, or a copy that the next call overwrites."""
        weight = self.weight.detach()
        if weight.dtype in (dtype, torch.float64):
            return weight
        kept = self._narrow
        if kept is None or (kept.shape, kept.dtype, kept.device) != (weight.shape, dtype, weight.device):
            # Fresh memory of this size is cleared page by page, which takes five times as long as the cast.
            kept = self._narrow = torch.empty_like(weight, dtype=dtype)
        return kept.copy_(weight)

    def _trains(self) -> bool:
        return self.training and torch.is_grad_enabled() and self.weight.requires_grad

    def _steps(self) -> bool:
        trains = self._trains()
        if trains and self.processes is not None and not self.fused_step:
            raise RuntimeError(
                f"{type(self).__name__}({self.in_features}, {self.out_features}): its weight was fused for "
                "several processes, and DistributedDataParallel was told to leave its gradient alone, so that "
                "without fused_step nobody would reduce it; make the model and its wrapper anew without "
                "fuse_into_backward"
            )
        return trains and self.fused_step

    def _fused(self, x: Tensor, keep_post: bool) -> Tensor:
        self._check_fused(x)
        narrow = self._narrows(x)
        if narrow is not None:
            return self._apply_step(x.to(narrow), self._narrowed(narrow), keep_post).to(x.dtype)
        if torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:  # as autocast itself does
            low = torch.get_autocast_dtype(x.device.type)
            return self._apply_step(x.to(low), self._narrowed(low), keep_post)
        return self._apply_step(x, self.weight.detach(), keep_post)

    def _apply_step(self, x: Tensor, multiplied: Tensor, keep_post: bool) -> Tensor:
        return cast(Tensor, FusedLinear.apply(x, self.weight, self.bias, self, keep_post, multiplied))

    def _check_fused(self, x: Tensor) -> None:
        weight, who = self.weight, f"{type(self).__name__}({self.in_features}, {self.out_features})"
        if torch.compiler.is_compiling():
            raise RuntimeError(f"{who}: a fused step cannot be compiled; it runs between compiled parts")
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(f"{who}: torch.func transforms cannot go through a fused step; use eval()")
        self._check_wrapper(who)
        if not weight.is_leaf:
            raise RuntimeError(
                f"{who}: its weight is computed (parametrized, weight or spectral norm, or a part of what "
                "DataParallel or FullyShardedDataParallel has), so a step of it would be lost; set "
                "fused_step = False on the layer, or remove the parametrization"
            )
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            raise RuntimeError(
                f"{who}: its weight has gradient hooks, but with fused_step there is no gradient; remove them, "
                "or set fused_step = False on the layer"
            )
        if not self.stepping_optimizer().owns(weight):
            raise RuntimeError(
                f"{who}: the optimizer that it was fused with does not own its weight (any more); call "
                "flexkern.optim.fuse_into_backward(model, optimizer) with the optimizer that does. After "
                "fully_shard, parallelize_module or FullyShardedDataParallel none does: leave "
                "fuse_into_backward out there, or set fused_step = False on the layer"
            )
        device = x.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16:
            raise RuntimeError(
                f"{who}: fused_step under float16 autocast: float16 gradients need a GradScaler, which would "
                "have to look at gradients before the step; use torch.autocast(..., dtype=torch.bfloat16)"
            )

    def _check_wrapper(self, who: str) -> None:
        """Inside of DistributedDataParallel: that it leaves this weight to the fused step, and that all
        processes come to that step. RuntimeError if not."""
        wrapper: Any = nn.parallel.DistributedDataParallel._active_ddp_module
        if wrapper is None:
            return
        if self._wrapper is None or self._wrapper() is not wrapper:  # what does not change is looked at once
            if self.processes is None or any(p is self.weight for p in wrapper._module_parameters):
                raise RuntimeError(NOT_ALONE.format(f"{who} with fused_step inside DistributedDataParallel"))
            if wrapper.find_unused_parameters:
                raise RuntimeError(
                    f"{who} with fused_step inside DistributedDataParallel(find_unused_parameters=True): a "
                    "process that does not use the layer would leave the others waiting for its part of the "
                    "step; pass find_unused_parameters=False if all use it, or leave fuse_into_backward out"
                )
            self._wrapper = weakref.ref(wrapper)
        if wrapper._join_config.enable:
            raise RuntimeError(
                f"{who} with fused_step inside of DistributedDataParallel.join(): a process that has run out "
                "of data would leave the others waiting for its part of the step; give all processes as many "
                "batches, of any size, or leave fuse_into_backward out"
            )

    def stepping_optimizer(self) -> Any:
        """The optimizer that backward steps the weight with. RuntimeError if there is none."""
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is None:
            raise RuntimeError(
                f"{type(self).__name__}({self.in_features}, {self.out_features}) has fused_step but no "
                "optimizer (none was given, it is gone, or this is a copy of a fused layer); call "
                "flexkern.optim.fuse_into_backward(model, optimizer), or set fused_step = False on the layer"
            )
        return optimizer

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what was pickled, has weights of its own, which this layer's optimizer does not own.
        return {name: value for name, value in self.__dict__.items() if name not in _UNSAVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin(self.fused_step, self.window)

    def extra_repr(self) -> str:
        window = f", window={self.window}" if self.window > 1 else ""
        precision = f", precision={self.precision!r}" if self.precision != "float32" else ""
        return f"{super().extra_repr()}, fused_step={self.fused_step}{window}{precision}"


def checked_window(window: object) -> int:
    """``window`` as an int; TypeError or ValueError if it is not a number of micro-batches."""
    return whole_number(window, "window", kind="an int")
