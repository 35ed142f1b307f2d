"""The gated adapter on the host: one launch forward, backward one for x and three for the bank.

See docs/design.md, Artsy.
"""

from collections.abc import Mapping

import torch
import triton
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.spec.adapter import LARGEST_TRITON_RANK
from flexkern.triton_kernels.adapter_bank import INDEX_DTYPES, bank_gradients, padded_rank, size_units
from flexkern.triton_kernels.adapter_pass import backward_kernel, forward_kernel, variant_of
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.product import precision_of

__all__ = ["LARGEST_RANK", "gated_adapter", "gated_adapter_backward"]

LARGEST_RANK = LARGEST_TRITON_RANK
LARGEST_ROWS = 2**30  # rows are counted in 32 bits; their elements in 64
LARGEST_WIDTH = 2**22  # and so are the elements of a tile


def _check(tensors: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], index: Tensor, like: Tensor) -> None:
    """Contiguous tensors of the shapes, the dtype and the device that they must have; ``like`` is the first."""
    if like.dtype not in TRITON_DTYPES:
        raise TypeError(f"x must be one of {[str(d) for d in TRITON_DTYPES]}, got {like.dtype}")
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype is not like.dtype:
            raise TypeError(f"{name} must be {like.dtype} as x is, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        _check_place(tensor, name, like)
    if index.dtype not in INDEX_DTYPES or tuple(index.shape) != (like.shape[0],):
        raise ValueError(
            f"index must be int32 or int64 [{like.shape[0]}], got {index.dtype} {list(index.shape)}"
        )
    _check_place(index, "index", like)


def _check_place(tensor: Tensor, name: str, like: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of x, {like.device}, got {tensor.device}")


def _sizes(x: Tensor, down: Tensor) -> tuple[int, int, int, int, int]:
    """S, L, d, T and r.

    Raises:
        ValueError: if there are none, or more than these kernels serve.
    """
    if x.dim() != 3 or down.dim() != 3:
        raise ValueError(f"x must be [S, L, d] and down [T, d, r], got {list(x.shape)} and {list(down.shape)}")
    (samples, length, d), (tasks, _, r) = x.shape, down.shape
    if r > LARGEST_RANK:
        raise ValueError(
            f"down has rank {r}; this kernel serves up to {LARGEST_RANK}: use the reference backend"
        )
    if samples * length > LARGEST_ROWS or d > LARGEST_WIDTH:
        raise ValueError(
            f"x has shape {list(x.shape)}; this kernel serves up to {LARGEST_ROWS} rows of {LARGEST_WIDTH}: "
            "split it"
        )
    return samples, length, d, tasks, r


def gated_adapter(
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
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """The Triton implementation of ``flexkern::gated_adapter``: one launch, which nothing waits for.

    Raises:
        TypeError, ValueError: if the tensors do not fit together.
    """
    samples, length, d, tasks, r = _sizes(x, down)
    _check(
        {
            "x": (x, (samples, length, d)), "down": (down, (tasks, d, r)), "down_bias": (down_bias, (tasks, r)),
            "up": (up, (tasks, r, d)), "up_bias": (up_bias, (tasks, d)),
            "residual": (residual, (samples, length, d)),
        },
        index, x,
    )  # fmt: skip
    if seed is not None and (seed.dtype is not torch.int64 or seed.numel() != 1 or seed.device != x.device):
        raise ValueError(f"seed must be one int64 element on {x.device}, got {seed.dtype} on {seed.device}")
    if (seed is None) != (dropout_p == 0):
        raise ValueError(f"seed must be given for dropout, and only then; dropout_p is {dropout_p}")
    out, hidden = torch.empty_like(x), x.new_empty((samples, length, r) if keep_hidden else 0)
    if out.numel() == 0:
        return out, hidden
    rows, rank, target = samples * length, padded_rank(r), architecture(x.device)
    precision = precision_of(x.dtype, target)
    wide = [out, x, up, up_bias] if residual is None else [out, x, up, up_bias, residual]
    columns, rank_units, *aligned = size_units(d, r, wide, [hidden, down, down_bias])
    variant = variant_of(x.dtype, precision, rank)
    cut = config("adapter forward", variant, target, bounded=all(aligned))
    tensors = (out, hidden, x, residual, down, down_bias, up, up_bias, index, seed)
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(rows, cut["rows"]),)](
            *(0 if t is None else t.data_ptr() for t in tensors), rows, length, tasks, columns, rank_units,
            scale, dropout_p, 1 / (1 - dropout_p), TRITON_DTYPES[x.dtype], INDEX_DTYPES[index.dtype], precision,
            residual is not None, seed is not None, keep_hidden, *aligned, rank, cut["rows"],
            cut["step"], cut["num_stages"], **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip
    return out, hidden


def gated_adapter_backward(
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
    """The Triton implementation of ``flexkern::gated_adapter_backward``: one launch for the gradient of x, and
    three more for those of the bank; nothing waits for them.

    Raises:
        TypeError, ValueError: if the tensors do not fit together.
    """
    samples, length, d, tasks, r = _sizes(x, down)
    _check(
        {
            "x": (x, (samples, length, d)), "grad_out": (grad_out, (samples, length, d)),
            "hidden": (hidden, (samples, length, r)), "down": (down, (tasks, d, r)), "up": (up, (tasks, r, d)),
        },
        index, x,
    )  # fmt: skip
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    shapes = [(tasks, d, r), (tasks, r), (tasks, r, d), (tasks, d)] if need_bank else [(0,)] * 4
    empty = x.numel() == 0 or tasks == 0
    make = x.new_zeros if empty else x.new_empty
    bank = make(shapes[0]), make(shapes[1]), make(shapes[2]), make(shapes[3])
    if x.numel() == 0 or not (need_x or need_bank):
        return grad_x, *bank
    rows, rank, target = samples * length, padded_rank(r), architecture(x.device)
    precision = precision_of(x.dtype, target)
    grad_hidden = torch.empty_like(hidden) if need_bank else hidden.new_empty(0)
    columns, rank_units, *aligned = size_units(
        d, r, [grad_out, up, *[grad_x] * need_x], [hidden, down, *[grad_hidden] * need_bank]
    )
    cut = config("adapter backward", variant_of(x.dtype, precision, rank), target, bounded=all(aligned))
    tensors = (grad_x, grad_hidden, grad_out, hidden, down, up, index)
    with torch.cuda.device_of(x):
        backward_kernel[(triton.cdiv(rows, cut["rows"]),)](
            *(t.data_ptr() for t in tensors), rows, length, tasks, columns, rank_units, scale / (1 - dropout_p),
            TRITON_DTYPES[x.dtype], INDEX_DTYPES[index.dtype], precision, need_x, need_bank, *aligned, rank,
            cut["rows"], cut["step"], **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip
        if need_bank and not empty:
            bank_gradients(bank, x, grad_hidden, grad_out, hidden, index, scale, target, precision)
    return grad_x, *bank
