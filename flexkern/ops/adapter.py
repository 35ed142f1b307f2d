"""Adapters in parallel to a layer, one for each task, chosen by sample (docs/design.md, Artsy)."""

from __future__ import annotations

import contextlib
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexkern.ops import checks
from flexkern.ops.operator import Operator, are_numbers, are_plain, tries_compiled
from flexkern.ops.ordinary import ordinary
from flexkern.spec.adapter import LARGEST_TRITON_RANK

__all__ = ["gated_adapter"]

FORWARD = Operator("gated_adapter")
BACKWARD = Operator("gated_adapter_backward")


class _GatedAdapter(torch.autograd.Function):
    """Forward keeps the hidden units; backward makes the gradients of x and of the bank in one operator."""

    @staticmethod
    def forward(
        x: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        residual: Tensor | None,
        index: Tensor,
        seed: Tensor | None,
        scale: float,
        dropout_p: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        operator = FORWARD.on(backend)
        return operator(x, down, down_bias, up, up_bias, index, residual, seed, scale, dropout_p, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, down, _, up, _, _, index, _, ctx.scale, ctx.dropout_p, ctx.backend = inputs
        hidden = output[1]
        ctx.mark_non_differentiable(hidden)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, hidden, down, up, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 11
        x, hidden, down, up, index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads: tuple[Tensor | None, ...] = (None,) * 5
        if any(needs[:5]):  # else only the residual
            operator, numbers = BACKWARD.on(ctx.backend), (ctx.scale, ctx.dropout_p, needs[0], any(needs[1:5]))
            with _no_autocast(x.device.type):
                grads = operator(ordinary(grad_out), x, hidden, down, up, index, *numbers)
        every = (*grads, grad_out, *(None,) * 5)
        return tuple(grad if need else None for grad, need in zip(every, needs, strict=True))


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast must not change the dtype of the products inside an operator."""
    if _is_autocast(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _is_autocast(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _cast(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """As autocast casts an argument; gradients flow through it."""
    if not isinstance(tensor, Tensor) or not _is_autocast(device_type):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _check_like_x(tensor: object, name: str, x: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {meaning}, got {type(tensor).__name__}")
    checks.check_dense(tensor, name)
    if tensor.dtype is not x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}; convert one of them")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {meaning} = {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def _check_tensors(
    x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, residual: Tensor | None
) -> None:
    for tensor, name, meaning in ((x, "x", "[samples, positions, d]"), (down, "down", "[tasks, d, r]")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor {meaning}, got {type(tensor).__name__}")
        checks.check_dense(tensor, name)
        if tensor.dim() != 3:
            raise ValueError(f"{name} must be {meaning}, got shape {list(tensor.shape)}")
    if x.dtype not in checks.FLOAT_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in checks.FLOAT_DTYPES)
        raise TypeError(f"x must be one of {allowed}, got {x.dtype}")
    samples, positions, d = x.shape
    tasks, r = down.shape[0], down.shape[2]
    if d < 1 or r < 1:
        raise ValueError(f"d and r must be at least 1, got x {list(x.shape)} and down {list(down.shape)}")
    _check_like_x(x, "x", x, (samples, positions, d), "[samples, positions, d]")
    _check_like_x(down, "down", x, (tasks, d, r), "[tasks, d, r]")
    _check_like_x(down_bias, "down_bias", x, (tasks, r), "[tasks, r]")
    _check_like_x(up, "up", x, (tasks, r, d), "[tasks, r, d]")
    _check_like_x(up_bias, "up_bias", x, (tasks, d), "[tasks, d]")
    if residual is not None:
        _check_like_x(residual, "residual", x, (samples, positions, d), "of the shape of x")


def _check_index(index: object, x: Tensor, tasks: int) -> None:
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be an int32 or int64 tensor [samples], got {type(index).__name__}")
    checks.check_dense(index, "index")
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index must be int32 or int64, got {index.dtype}")
    if tuple(index.shape) != (x.shape[0],):
        raise ValueError(f"index must have one entry for each of {x.shape[0]} samples, got {list(index.shape)}")
    if index.device != x.device:
        raise ValueError(f"index must be on the device of x, {x.device}, got {index.device}")
    # A traced program has no values to look at; there the operators check.
    if not torch.compiler.is_compiling():
        _check_index_values(index, tasks)


def _check_index_values(index: Tensor, tasks: int) -> None:
    """IndexError for a task that the bank does not have. On a GPU the look would wait for the device: there the
    operators make such a sample NaN."""
    if index.device.type != "cpu" or index.numel() == 0:
        return
    low, high = (int(bound) for bound in index.aminmax())
    if low < -1 or high >= tasks:
        raise IndexError(
            f"index must be in [-1, {tasks}) for a bank of {tasks} tasks (-1: no adapter), got values from "
            f"{low} to {high}"
        )


def _checked_numbers(scale: Any, dropout_p: Any) -> tuple[float, float]:
    for value, name in ((scale, "scale"), (dropout_p, "dropout_p")):
        if not checks.is_number(value):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    # A float16 of numpy does not compare with the largest number.
    scale, dropout_p = (float(v) if isinstance(v, np.generic) else v for v in (scale, dropout_p))
    # Comparisons only: math.isfinite does not trace where torch.compile makes the number a symbol.
    if not -checks.LARGEST_NUMBER <= scale <= checks.LARGEST_NUMBER:
        raise ValueError(
            f"scale must be finite and at most {checks.LARGEST_NUMBER} in size, got {checks.shown(scale)}"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {checks.shown(dropout_p)}")
    return float(scale), float(dropout_p)


def _dropout_seed(seed: object, x: Tensor, dropout_p: float) -> Tensor | None:
    """int64 [1] on the device of x, or None where nothing is dropped."""
    if isinstance(seed, Tensor):
        checks.check_dense(seed, "seed")
        if seed.dtype is not torch.int64 or seed.numel() != 1 or seed.device != x.device:
            raise ValueError(
                f"seed as a tensor must be one int64 element on the device of x, {x.device}, got {seed.dtype}, "
                f"shape {list(seed.shape)}, on {seed.device}"
            )
    elif seed is not None:
        if not isinstance(seed, Integral) or isinstance(seed, bool):
            raise TypeError(
                f"seed must be an int, a one-element int64 tensor or None, got {type(seed).__name__}"
            )
        seed = int(seed)
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be in [0, 2**64), got {checks.shown(seed)}")
    if dropout_p == 0:
        return None
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    if seed is None:
        return torch.randint(1 << 62, (1,), dtype=torch.int64, device=x.device)
    signed = seed - (1 << 64) if seed >> 63 else seed
    return torch.full((1,), signed, dtype=torch.int64, device=x.device)


def gated_adapter(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    index: Tensor,
    *,
    scale: float = 1.0,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Each sample through the bottleneck adapter of its task: differentiable in all floating-point tensors.

    With t = index[s]: hidden = dropout(relu(x[s] down[t] + down_bias[t])) and
    out[s] = residual[s] + scale (hidden up[t] + up_bias[t]).
    Rows of the bank that no sample uses get a gradient of exactly 0. Results and gradients are the same bits at
    each call, and on every number of threads. Samples of one task should stand together: any order is right,
    but many short runs are slower.

    Args:
        x: [S, L, d], float32, bfloat16 or float16 (float64: the reference only); products are accumulated in
            float32. All other floating-point tensors have its dtype. Under autocast all are cast to its dtype.
        down: [T, d, r]; down_bias: [T, r]; up: [T, r, d]; up_bias: [T, d]: the bank, an adapter for each task.
        index: [S], int32 or int64, the task of each sample, or -1: no adapter, ``out`` is ``residual``, or 0.
        scale: of the adapter's output.
        residual: [S, L, d], or None: 0.
        dropout_p: share of the hidden units that are dropped, in [0, 1); kept ones are multiplied by
            1 / (1 - dropout_p). Pass 0 in inference.
        seed: of dropout, an int or a one-element int64 tensor on the device of x: the same seed drops the same
            units, on every backend. None: drawn by torch.randint, so that torch.manual_seed decides.

    Returns:
        [S, L, d], dtype of ``x``, contiguous.

    Raises:
        TypeError, ValueError: if an argument does not fit.
        IndexError: on the CPU, if an entry of ``index`` is outside [-1, T) (under torch.compile, RuntimeError).
            On a GPU, where looking would wait for the device, that sample's output is NaN.

    Source: arXiv 2403.12030 (EASE), section 4.1; arXiv 2410.05899 (Artsy).
    """
    floats: tuple[Any, ...] = (x, down, down_bias, up, up_bias, residual)
    attempt = None
    if tries_compiled() and seed is None and type(dropout_p) in (int, float) and dropout_p == 0:
        direct = FORWARD.goes_direct(x)
        gradients = torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in floats)
        quick = direct or (are_plain((x,), FORWARD) and are_numbers((scale,)))
        if quick and not (gradients or torch.is_autocast_enabled("cpu")):
            call = FORWARD.direct if direct else FORWARD.compiled
            attempt = call, (x, down, down_bias, up, up_bias, index, residual, None, scale, 0.0, False), ()
    return FORWARD(attempt, _checked, *floats, index, scale, dropout_p, seed)[0]


def _checked(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    residual: Tensor | None,
    index: Tensor,
    scale: float,
    dropout_p: float,
    seed: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    if isinstance(x, Tensor):
        device = x.device.type
        x, down, down_bias, up, up_bias, residual = (  # type: ignore[assignment]
            _cast(tensor, device) for tensor in (x, down, down_bias, up, up_bias, residual)
        )
    _check_tensors(x, down, down_bias, up, up_bias, residual)
    _check_index(index, x, down.shape[0])
    scale, dropout_p = _checked_numbers(scale, dropout_p)
    drawn = _dropout_seed(seed, x, dropout_p)
    backend = FORWARD.choose(x, lambda name: _takes(name, down.shape[2]))
    x, down, down_bias, up, up_bias, index = checks.contiguous([x, down, down_bias, up, up_bias, index])
    if residual is not None:
        residual = ordinary(residual)
    floats = (x, down, down_bias, up, up_bias, residual)
    with _no_autocast(x.device.type):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
            for tensor, name in ((x, "x"), (down, "down"), (up, "up"), (index, "index")):
                checks.check_no_inference(tensor, name, "cannot be kept for the backward pass")
            return _GatedAdapter.apply(*floats, index, drawn, scale, dropout_p, backend)
        operator = FORWARD.on(backend)
        return operator(*floats[:5], index, residual, drawn, scale, dropout_p, False)


def _takes(backend: str, rank: int) -> str | None:
    if backend == "triton" and rank > LARGEST_TRITON_RANK:
        return f"an adapter of rank {rank} does not fit a tile; at most {LARGEST_TRITON_RANK} does"
    return None
