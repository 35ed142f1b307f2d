"""Adapters in parallel to a layer, one for each task, chosen by sample (DESIGN 1.5)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexkern.backends import choose
from flexkern.ops import _checks
from flexkern.ops._define import Operator
from flexkern.ops._step import are_numbers, are_plain, tries_compiled
from flexkern.reference import adapter as reference_adapter

__all__ = ["gated_adapter"]

LARGEST_TRITON_RANK = 512


def _forward_fake(x: Tensor, down: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    keep_hidden = rest[-1]
    hidden = (x.shape[0], x.shape[1], down.shape[2]) if keep_hidden else (0,)
    return x.new_empty(x.shape), x.new_empty(hidden)


def _forward_reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, keep_hidden = arguments
    _check_index_values(given[5], len(given[1]))
    out, hidden = reference_adapter.gated_adapter(*given)
    return out, hidden if keep_hidden else hidden.new_empty(0)


def _forward_triton() -> Callable[..., Any]:
    from flexkern.triton_kernels.adapter import gated_adapter

    return gated_adapter


# The second result is `hidden` [S, L, r] after ReLU and dropout, without `keep_hidden` [0]. It is all that
# the backward pass needs: it is above 0 where neither closed a unit. `seed`: int64 [1], or None: no dropout.
FORWARD = Operator(
    "gated_adapter",
    "(Tensor x, Tensor down, Tensor down_bias, Tensor up, Tensor up_bias, Tensor index, Tensor? residual, "
    "Tensor? seed, float scale, float dropout_p, bool keep_hidden) -> (Tensor, Tensor)",
    fake=_forward_fake,
    reference=_forward_reference,
    triton=_forward_triton,
    recorded=True,
)


def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    hidden: Tensor,
    down: Tensor,
    up: Tensor,
    index: Tensor,
    scale: float,
    dropout_p: float,
    need_x: bool,
    need_bank: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tasks, d, r = down.shape
    bank = [(tasks, d, r), (tasks, r), (tasks, r, d), (tasks, d)] if need_bank else [(0,)] * 4
    grads = (x.new_empty(shape) for shape in [x.shape if need_x else (0,), *bank])
    return tuple(grads)  # type: ignore[return-value]


def _backward_reference(*arguments: Any) -> tuple[Tensor, ...]:
    *given, need_x, need_bank = arguments
    grads = reference_adapter.gated_adapter_backward(*given)
    needed = (need_x, *[need_bank] * 4)
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needed, strict=True))


def _backward_triton() -> Callable[..., Any]:
    from flexkern.triton_kernels.adapter import gated_adapter_backward

    return gated_adapter_backward


# The gradients of x and of the four tensors of the bank; [0] for what is not needed.
BACKWARD = Operator(
    "gated_adapter_backward",
    "(Tensor grad_out, Tensor x, Tensor hidden, Tensor down, Tensor up, Tensor index, float scale, "
    "float dropout_p, bool need_x, bool need_bank) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    triton=_backward_triton,
    recorded=True,
)


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
                grads = operator(grad_out.contiguous(), x, hidden, down, up, index, *numbers)
        every = (*grads, grad_out, *(None,) * 5)
        return tuple(grad if need else None for grad, need in zip(every, needs, strict=True))


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast must not turn the products inside an operator to another dtype."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _cast(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """As autocast casts an argument; gradients flow through it."""
    if not isinstance(tensor, Tensor) or not torch.is_autocast_enabled(device_type):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _check_like_x(tensor: object, name: str, x: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {meaning}, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")
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
        if tensor.dim() != 3:
            raise ValueError(f"{name} must be {meaning}, got shape {list(tensor.shape)}")
    if x.dtype not in _checks.FLOAT_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in _checks.FLOAT_DTYPES)
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


def _check_numbers(scale: object, dropout_p: object) -> None:
    for value, name in ((scale, "scale"), (dropout_p, "dropout_p")):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    # Comparisons only: math.isfinite does not trace where torch.compile makes the number a symbol.
    if not -_checks.LARGEST_NUMBER <= scale <= _checks.LARGEST_NUMBER:  # type: ignore[operator]
        raise ValueError(f"scale must be finite and at most {_checks.LARGEST_NUMBER} in size, got {scale}")
    if not 0 <= dropout_p < 1:  # type: ignore[operator]
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")


def _dropout_seed(seed: object, x: Tensor, dropout_p: float) -> Tensor | None:
    """int64 [1] on the device of x, or None where nothing is dropped."""
    if isinstance(seed, Tensor):
        if seed.dtype is not torch.int64 or seed.numel() != 1 or seed.device != x.device:
            raise ValueError(
                f"seed as a tensor must be one int64 element on the device of x, {x.device}, got {seed.dtype}, "
                f"shape {list(seed.shape)}, on {seed.device}"
            )
    elif seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(
                f"seed must be an int, a one-element int64 tensor or None, got {type(seed).__name__}"
            )
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    if dropout_p == 0:
        return None
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    if seed is None:
        return torch.randint(1 << 62, (1,), dtype=torch.int64, device=x.device)
    signed = seed - (1 << 64) if seed >> 63 else seed
    return torch.full((1,), signed, dtype=torch.int64, device=x.device)


def _needs_grad(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
    each call. Samples of one task should stand together: any order is right, but many short runs are slower.

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
    floats: tuple[Tensor | None, ...] = (x, down, down_bias, up, up_bias, residual)
    if tries_compiled() and are_plain((x,)) and are_numbers((scale,)) and dropout_p == 0 and seed is None:
        try:
            if not (torch.is_autocast_enabled("cpu") or _needs_grad(floats)):
                return FORWARD.compiled(*floats[:5], index, residual, None, scale, 0.0, False)[0]
        except (AttributeError, RuntimeError):  # the checks say why
            pass
    if isinstance(x, Tensor):
        device = x.device.type
        x, down, down_bias, up, up_bias, residual = (  # type: ignore[assignment]
            _cast(tensor, device) for tensor in (x, down, down_bias, up, up_bias, residual)
        )
    _check_tensors(x, down, down_bias, up, up_bias, residual)
    _check_index(index, x, down.shape[0])
    _check_numbers(scale, dropout_p)
    scale, dropout_p = float(scale), float(dropout_p)
    drawn = _dropout_seed(seed, x, dropout_p)
    backend = choose("gated_adapter", x.device, lambda name: _serves(name, x.dtype, down.shape[2]))
    x, down, down_bias, up, up_bias, index = _checks.contiguous([x, down, down_bias, up, up_bias, index])
    if residual is not None:
        residual = residual.contiguous()
    floats = (x, down, down_bias, up, up_bias, residual)
    with _no_autocast(x.device.type):
        if _needs_grad(floats):
            return _GatedAdapter.apply(*floats, index, drawn, scale, dropout_p, backend)[0]
        operator = FORWARD.on(backend)
        return operator(*floats[:5], index, residual, drawn, scale, dropout_p, False)[0]


def _serves(backend: str, dtype: torch.dtype, rank: int) -> str | None:
    if backend == "cuda":
        return "gated_adapter has no CUDA C++ kernel; on a GPU it runs on tensor cores through Triton"
    if backend == "triton" and rank > LARGEST_TRITON_RANK:
        return f"an adapter of rank {rank} does not fit a tile; at most {LARGEST_TRITON_RANK} does"
    return _checks.native_dtypes(backend, dtype)
