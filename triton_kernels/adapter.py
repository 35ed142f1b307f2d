"""The gated adapter (DESIGN 1.5): each pass, forward or backward to x, is one kernel; the bank's gradients are next door.

A pass is the same chain both ways: [rows, d] times a matrix [d, r] of the row's task, something unit by unit,
times a matrix [r, d]. Backward, up^T comes first and down^T second.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.fields import Purpose
from flexkern.triton_kernels.adapter_bank import INDEX_DTYPES, again, bank_gradients, padded_rank, size_units, sizes_of
from flexkern.triton_kernels.field import UNIFORM, computed_rows
from flexkern.triton_kernels.linear import _precision, _target
from flexkern.triton_kernels.memory import typed
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.operand import as_operand, operand, read, read_wide, rounded
from flexkern.triton_kernels.product import IEEE, UNIT

__all__ = ["LARGEST_RANK", "gated_adapter", "gated_adapter_backward"]

LARGEST_RANK = 512  # a tile's hidden units are in registers, and a whole column of them is in one product
LARGEST_ROWS = 2**30  # rows are counted in 32 bits; their elements in 64
LARGEST_WIDTH = 2**22  # and so are the elements of a tile

_DROPOUT = tl.constexpr(int(Purpose.DROPOUT))
# What a row has in place of a task
_NONE = tl.constexpr(-1)  # no adapter
_OUTSIDE = tl.constexpr(-2)  # an index that the bank does not have
_ABSENT = tl.constexpr(-3)  # the row is past the end
_LAST = tl.constexpr(2**31 - 1)  # after all tasks


class Tile(NamedTuple):
    """How a pass is cut: ``rows`` a program, ``step`` of d at once in both products; the compiler's options."""

    rows: int
    step: int
    num_warps: int
    num_stages: int


def tile_for(target: str, dtype: torch.dtype, precision: str, rank: int) -> Tile:
    """The tile of a pass on ``target``, "cuda", "hip" or "interpreter"; ``rank`` is a power of two."""
    if target == "interpreter":
        return Tile(32, 64, 1, 1)
    if dtype is torch.float32 and precision == IEEE:
        return Tile(64, 32, 8, 2)
    step = 64 if dtype is not torch.float32 else 32
    return Tile(128, step, 8, 3)


# --------------------------------------------------------------------------- the kernels


@triton.jit
def _tasks_of(first, rows, length, tasks, index, INDEX_DTYPE: tl.constexpr, ROWS: tl.constexpr):
    """int32 [ROWS]: the task of each row from ``first`` on, or what stands for it."""
    lane = tl.arange(0, ROWS)
    sample = first // length
    sample = sample + (first - sample * length + lane) // length
    task = tl.load(typed(index, INDEX_DTYPE, False) + sample, mask=lane < rows - first, other=_ABSENT)
    known = (task >= _NONE) & (task < tasks)
    return tl.where(lane < rows - first, tl.where(known, task, _OUTSIDE), _ABSENT).to(tl.int32)


@triton.jit
def _next_task(task, after):
    """The smallest task of a tile that comes after ``after``; _LAST: there is none."""
    return tl.min(tl.where(task > after, task, _LAST), axis=0)


@triton.jit
def _kept(positions, seed, dropout_p, ALIGNED: tl.constexpr, RANK: tl.constexpr):
    """bool [rows, RANK]: which hidden units stay, in rows whose first is at ``positions`` [rows, 1] of all.

    Drawn 16 units at a time, which go to one bit of as many words: all at once would take 70 registers more.
    """
    drawn = tl.load(seed.to(tl.pointer_type(tl.int64)))
    zero = tl.full((), 0, tl.int64)
    field = (zero, drawn, zero, zero, zero + _DROPOUT, 0.0, 1.0)
    bits = tl.zeros((positions.shape[0], 16), tl.int32)
    for part in tl.range(0, RANK // 16, num_stages=1):
        stays = computed_rows(field, positions + part * 16, UNIFORM, ALIGNED, 16) >= dropout_p
        bits |= stays.to(tl.int32) << part
    words = bits[:, None, :] >> tl.arange(0, RANK // 16)[None, :, None]
    return tl.reshape((words & 1) != 0, (positions.shape[0], RANK))


@triton.jit
def _into_rank(
    left,
    matrix,
    mine,
    columns,
    rank,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    RANK: tl.constexpr,
):
    """float32 [ROWS, RANK]: a tile of ``left`` [rows, d] times ``matrix`` [d, r], or [r, d] if TRANSPOSED."""
    lane, k, j = tl.arange(0, ROWS), tl.arange(0, STEP), tl.arange(0, RANK)
    left_pointers = left + (lane[:, None] * columns + k[None, :])
    if TRANSPOSED:
        pointers = matrix + (j[:, None] * columns + k[None, :])
    else:
        pointers = matrix + (k[:, None] * rank + j[None, :])
    total = tl.zeros((ROWS, RANK), tl.float32)
    for first in tl.range(0, columns, STEP):
        inside = k < columns - first
        a = read(left_pointers, mine[:, None] & inside[None, :], DTYPE)
        if TRANSPOSED:
            b = tl.trans(read(pointers, (j < rank)[:, None] & inside[None, :], DTYPE))
            pointers += STEP
        else:
            b = read(pointers, inside[:, None] & (j < rank)[None, :], DTYPE)
            pointers += STEP * rank
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left_pointers += STEP
    return total


@triton.jit
def _from_rank(
    hidden,
    matrix,
    first,
    columns,
    rank,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    STEP: tl.constexpr,
    RANK: tl.constexpr,
):
    """float32 [ROWS, STEP]: ``hidden`` [ROWS, RANK] times columns ``first`` .. of ``matrix`` [r, d], or [d, r]."""
    k, j = tl.arange(0, STEP), tl.arange(0, RANK)
    inside, exists = k < columns - first, j < rank
    if TRANSPOSED:
        pointers = matrix + first * rank + (k[:, None] * rank + j[None, :])
        b = tl.trans(read(pointers, inside[:, None] & exists[None, :], DTYPE))
    else:
        b = read(matrix + first + (j[:, None] * columns + k[None, :]), exists[:, None] & inside[None, :], DTYPE)
    return tl.dot(hidden, b, input_precision=PRECISION)


@triton.jit(
    do_not_specialize=[
        "out", "hidden", "x", "residual", "down", "down_bias", "up", "up_bias", "index", "seed",
        "rows", "length", "tasks", "column_units", "rank_units", "scale", "dropout_p", "kept_factor",
    ]
)  # fmt: skip
def forward_kernel(
    out: tl.int64,
    hidden: tl.int64,
    x: tl.int64,
    residual: tl.int64,
    down: tl.int64,
    down_bias: tl.int64,
    up: tl.int64,
    up_bias: tl.int64,
    index: tl.int64,
    seed: tl.int64,
    rows: tl.int32,
    length: tl.int32,
    tasks: tl.int32,
    column_units: tl.int32,
    rank_units: tl.int32,
    scale: tl.float32,
    dropout_p: tl.float32,
    kept_factor: tl.float32,
    DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEEPS_HIDDEN: tl.constexpr,
    ALIGNED: tl.constexpr,
    ALIGNED_RANK: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows of all samples, ROWS a program. A tile whose samples have several tasks goes through once for each."""
    columns, rank = sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
    first = tl.program_id(0) * ROWS
    begin = first.to(tl.int64) * columns
    left = operand(x, DTYPE, ALIGNED) + begin
    base = operand(residual, DTYPE, ALIGNED) + begin
    result = operand(out, DTYPE, ALIGNED) + begin
    lane, k, j = tl.arange(0, ROWS), tl.arange(0, STEP), tl.arange(0, RANK)
    units = operand(hidden, DTYPE, ALIGNED_RANK) + first.to(tl.int64) * rank
    task = _tasks_of(first, rows, length, tasks, index, INDEX_DTYPE, ROWS)

    unchanged = (task == _NONE) | (task == _OUTSIDE)
    if tl.max(unchanged.to(tl.int32), axis=0) > 0:
        for at in tl.range(0, columns, STEP, num_stages=1):
            places = at + (lane[:, None] * columns + k[None, :])
            copied = unchanged[:, None] & (k < columns - at)[None, :]
            same = tl.zeros((ROWS, STEP), tl.float32)
            if HAS_RESIDUAL:
                same = read_wide(base + places, copied, DTYPE)
            same = tl.where((task == _OUTSIDE)[:, None], float("nan"), same)
            tl.store(result + places, rounded(same, DTYPE), mask=copied)
        if KEEPS_HIDDEN:
            closed = rounded(tl.zeros((ROWS, RANK), tl.float32), DTYPE)
            known = unchanged[:, None] & (j < rank)[None, :]
            tl.store(units + (lane[:, None] * rank + j[None, :]), closed, mask=known)

    t = _next_task(task, -1)
    while t != _LAST:
        columns, rank = sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
        mine = task == t
        bank = t.to(tl.int64) * rank * columns
        z = _into_rank(left, operand(down, DTYPE, ALIGNED_RANK) + bank, mine, columns, rank,
                       DTYPE, PRECISION, False, ROWS, STEP, RANK)  # fmt: skip
        bias = operand(down_bias, DTYPE, ALIGNED_RANK) + t.to(tl.int64) * rank + j
        z += read_wide(bias, j < rank, DTYPE)[None, :]
        z = tl.where(z < 0, 0.0, z)  # not maximum, which would make a NaN 0
        if DROPOUT:
            kept = _kept((first.to(tl.int64) + lane[:, None]) * rank, seed, dropout_p, ALIGNED_RANK, RANK)
            z = tl.where(kept, z * kept_factor, 0.0)
        h = rounded(z, DTYPE)
        if KEEPS_HIDDEN:
            stored = mine[:, None] & (j < rank)[None, :]
            tl.store(units + (lane[:, None] * rank + j[None, :]), h, mask=stored)
        h = as_operand(h, DTYPE)
        up_row = operand(up_bias, DTYPE, ALIGNED) + t.to(tl.int64) * columns + k
        matrix = operand(up, DTYPE, ALIGNED) + bank
        for at in tl.range(0, columns, STEP, num_stages=STAGES):
            offsets = at + (lane[:, None] * columns + k[None, :])
            inside = k < columns - at
            there = mine[:, None] & inside[None, :]
            y = _from_rank(h, matrix, at, columns, rank, DTYPE, PRECISION, False, STEP, RANK)
            y += read_wide(up_row + at, inside, DTYPE)[None, :]
            y *= scale
            if HAS_RESIDUAL:
                y += read_wide(base + offsets, there, DTYPE)
            tl.store(result + offsets, rounded(y, DTYPE), mask=there)
        t = _next_task(task, t)
        column_units, rank_units = again(column_units, t), again(rank_units, t)


@triton.jit(
    do_not_specialize=[
        "grad_x", "grad_hidden", "grad_out", "hidden", "down", "up", "index",
        "rows", "length", "tasks", "column_units", "rank_units", "factor",
    ]
)  # fmt: skip
def backward_kernel(
    grad_x: tl.int64,
    grad_hidden: tl.int64,
    grad_out: tl.int64,
    hidden: tl.int64,
    down: tl.int64,
    up: tl.int64,
    index: tl.int64,
    rows: tl.int32,
    length: tl.int32,
    tasks: tl.int32,
    column_units: tl.int32,
    rank_units: tl.int32,
    factor: tl.float32,
    DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_BANK: tl.constexpr,
    ALIGNED: tl.constexpr,
    ALIGNED_RANK: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """The gradient of the hidden units before ReLU, and that of x; cut as forward_kernel is.

    ``factor`` is scale / (1 - dropout_p). Rows without a task get 0 in ``grad_x``; nobody reads their
    ``grad_hidden``.
    """
    columns, rank = sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
    first = tl.program_id(0) * ROWS
    begin = first.to(tl.int64) * columns
    left = operand(grad_out, DTYPE, ALIGNED) + begin
    result = operand(grad_x, DTYPE, ALIGNED) + begin
    lane, k, j = tl.arange(0, ROWS), tl.arange(0, STEP), tl.arange(0, RANK)
    unit = first.to(tl.int64) * rank
    task = _tasks_of(first, rows, length, tasks, index, INDEX_DTYPE, ROWS)

    if NEEDS_X:
        unchanged = (task == _NONE) | (task == _OUTSIDE)
        if tl.max(unchanged.to(tl.int32), axis=0) > 0:
            for at in tl.range(0, columns, STEP, num_stages=1):
                places = at + (lane[:, None] * columns + k[None, :])
                zero = rounded(tl.zeros((ROWS, STEP), tl.float32), DTYPE)
                tl.store(result + places, zero, mask=unchanged[:, None] & (k < columns - at)[None, :])

    t = _next_task(task, -1)
    while t != _LAST:
        columns, rank = sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
        mine = task == t
        bank = t.to(tl.int64) * rank * columns
        z = _into_rank(left, operand(up, DTYPE, ALIGNED) + bank, mine, columns, rank,
                       DTYPE, PRECISION, True, ROWS, STEP, RANK)  # fmt: skip
        unit_offsets = lane[:, None] * rank + j[None, :]
        stored = mine[:, None] & (j < rank)[None, :]
        open_units = read_wide(operand(hidden, DTYPE, ALIGNED_RANK) + unit + unit_offsets, stored, DTYPE) > 0
        h = rounded(tl.where(open_units, z * factor, 0.0), DTYPE)
        if NEEDS_BANK:
            tl.store(operand(grad_hidden, DTYPE, ALIGNED_RANK) + unit + unit_offsets, h, mask=stored)
        if NEEDS_X:
            h = as_operand(h, DTYPE)
            matrix = operand(down, DTYPE, ALIGNED_RANK) + bank
            for at in tl.range(0, columns, STEP):
                y = _from_rank(h, matrix, at, columns, rank, DTYPE, PRECISION, True, STEP, RANK)
                offsets = at + (lane[:, None] * columns + k[None, :])
                tl.store(result + offsets, rounded(y, DTYPE), mask=mine[:, None] & (k < columns - at)[None, :])
        t = _next_task(task, t)
        column_units, rank_units = again(column_units, t), again(rank_units, t)


# --------------------------------------------------------------------------- the host's side


def _check(tensors: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], index: Tensor, like: Tensor) -> None:
    """Tensors of the shapes, the dtype and the device that they must have, contiguous; ``like`` is the first."""
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
        raise ValueError(f"down has rank {r}; this kernel serves up to {LARGEST_RANK}: use the reference backend")
    if samples * length > LARGEST_ROWS or d > LARGEST_WIDTH:
        raise ValueError(
            f"x has shape {list(x.shape)}; this kernel serves up to {LARGEST_ROWS} rows of {LARGEST_WIDTH}: split it"
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
            "up": (up, (tasks, r, d)), "up_bias": (up_bias, (tasks, d)), "residual": (residual, (samples, length, d)),
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
    rows, rank, precision = samples * length, padded_rank(r), _precision(x.dtype)
    wide = [out, x, up, up_bias] if residual is None else [out, x, up, up_bias, residual]
    columns, rank_units, *aligned = size_units(d, r, wide, [hidden, down, down_bias])
    tile = tile_for(_target(), x.dtype, precision, rank)
    tensors = (out, hidden, x, residual, down, down_bias, up, up_bias, index, seed)
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(rows, tile.rows),)](
            *(0 if t is None else t.data_ptr() for t in tensors), rows, length, tasks, columns, rank_units,
            scale, dropout_p, 1 / (1 - dropout_p), TRITON_DTYPES[x.dtype], INDEX_DTYPES[index.dtype], precision,
            residual is not None, seed is not None, keep_hidden, *aligned, rank, tile.rows, tile.step,
            tile.num_stages,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
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
    """The Triton implementation of ``flexkern::gated_adapter_backward``: one launch for the gradient of x, three
    more for those of the bank; nothing waits for them.

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
    bank = tuple(x.new_zeros(shape) if empty else x.new_empty(shape) for shape in shapes)
    if x.numel() == 0 or not (need_x or need_bank):
        return grad_x, *bank
    rows, rank, precision, target = samples * length, padded_rank(r), _precision(x.dtype), _target()
    grad_hidden = torch.empty_like(hidden) if need_bank else hidden.new_empty(0)
    columns, rank_units, *aligned = size_units(
        d, r, [grad_out, up, *[grad_x] * need_x], [hidden, down, *[grad_hidden] * need_bank]
    )
    tile = tile_for(target, x.dtype, precision, rank)
    tensors = (grad_x, grad_hidden, grad_out, hidden, down, up, index)
    with torch.cuda.device_of(x):
        backward_kernel[(triton.cdiv(rows, tile.rows),)](
            *(t.data_ptr() for t in tensors), rows, length, tasks, columns, rank_units, scale / (1 - dropout_p),
            TRITON_DTYPES[x.dtype], INDEX_DTYPES[index.dtype], precision, need_x, need_bank, *aligned, rank,
            tile.rows, tile.step,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
        if need_bank and not empty:
            bank_gradients(bank, x, grad_hidden, grad_out, hidden, index, scale, target, precision)
    return grad_x, *bank
