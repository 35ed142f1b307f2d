"""The kernels of a pass through adapters, forward or backward to x, and how they are cut.

A pass is the same chain both ways: [rows, d] times a matrix [d, r] of the row's task, something unit by unit,
times a matrix [r, d]. Backward, up^T comes first and down^T second.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from flexkern.fields import Purpose
from flexkern.triton_kernels.field import UNIFORM, computed_rows
from flexkern.triton_kernels.memory import typed
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.operand import as_operand, operand, read, read_wide, rounded
from flexkern.triton_kernels.product import PRODUCTS, UNIT, arithmetic
from flexkern.triton_kernels.variant import Variant

__all__ = ["adapter_sizes", "backward_kernel", "forward_kernel", "variant_of"]


_DROPOUT = tl.constexpr(int(Purpose.DROPOUT))
# What a row has in place of a task
_NONE = tl.constexpr(-1)  # no adapter
_OUTSIDE = tl.constexpr(-2)  # an index that the bank does not have
_ABSENT = tl.constexpr(-3)  # the row is past the end
_LAST = tl.constexpr(2**31 - 1)  # after all tasks


# How a pass is cut: ROWS per program, STEP of d at once in both products. tuning.toml has it by GPU,
# arithmetic and rank. For ViT-B/16 (256 x 197 rows of 768, rank 64, bf16) on Hopper: a pass forward moves 232
# MB (x, residual and out), 54 us at 4.3 TB/s, and computes 9.9 GFLOP, 10 us: memory sets the pace. Each program
# reads the bank of its task from the L2 cache, 197 KB: 78 MB for tiles of 128 rows, and 155 MB, as much as x
# and the residual, for 64. Little's law wants 26 KB in flight on each multiprocessor (see memory.py): a program
# has two steps of 16 KB under way. Two programs are on a multiprocessor, so that one reads while the other
# begins or ends a product, if a thread has at most 128 registers: the compiler takes 174 for the variant with
# dropout, and keeps to 128 without a spill when it is told to, but only for sm_90. float32 without tf32 has no
# tensor cores: 9.9 GFLOP are 150 us at 67 TFLOP/s, so the products set the pace. Higher ranks have fewer rows,
# so that the hidden units stay in registers. gfx942 has 64 KB of shared memory.


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
def _sizes_of(column_units, rank_units, ALIGNED: tl.constexpr, ALIGNED_RANK: tl.constexpr):
    """d and r, as products, so that Triton knows that what a thread reads at once begins at 16 bytes."""
    return column_units * (UNIT if ALIGNED else 1), rank_units * (UNIT if ALIGNED_RANK else 1)


@triton.jit
def _again(units, task):
    """``units``, in a way that the compiler cannot see to be the same for the next task.

    It would else compute all offsets and masks before the loop over tasks, which most tiles go through once,
    and hold them in registers: 224 of them instead of 128.
    """
    return tl.where(task < 0, 0, units)


@triton.jit
def _draw(positions, seed, dropout_p, ALIGNED: tl.constexpr, RANK: tl.constexpr):
    """int32 [rows, 16]: bit b of column j says whether hidden unit 16 b + j stays.

    ``positions`` [rows, 1] are those of each row's first unit. All units at once, and after the product, would
    take 70 registers more.
    """
    drawn = tl.load(seed.to(tl.pointer_type(tl.int64)))
    zero = tl.full((), 0, tl.int64)
    field = (zero, drawn, zero, zero, zero + _DROPOUT, 0.0, 1.0)
    bits = tl.zeros((positions.shape[0], 16), tl.int32)
    for part in tl.range(0, RANK // 16, num_stages=1):
        stays = computed_rows(field, positions + part * 16, UNIFORM, ALIGNED, 16) >= dropout_p
        bits |= stays.to(tl.int32) << part
    return bits


@triton.jit
def _kept(bits, RANK: tl.constexpr):
    """bool [rows, RANK]: which hidden units stay, as _draw says."""
    words = bits[:, None, :] >> tl.arange(0, RANK // 16)[None, :, None]
    return tl.reshape((words & 1) != 0, (bits.shape[0], RANK))


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
    """float32 [ROWS, STEP]: ``hidden`` times columns from ``first`` of ``matrix``, [r, d], or [d, r]."""
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
    """Rows of all samples, ROWS per program. A tile with samples of several tasks runs once per task."""
    columns, rank = _sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
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
        columns, rank = _sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
        mine = task == t
        bank = t.to(tl.int64) * rank * columns
        if DROPOUT:
            drawn = _draw((first.to(tl.int64) + lane[:, None]) * rank, seed, dropout_p, ALIGNED_RANK, RANK)
        z = _into_rank(left, operand(down, DTYPE, ALIGNED_RANK) + bank, mine, columns, rank,
                       DTYPE, PRECISION, False, ROWS, STEP, RANK)  # fmt: skip
        bias = operand(down_bias, DTYPE, ALIGNED_RANK) + t.to(tl.int64) * rank + j
        z += read_wide(bias, j < rank, DTYPE)[None, :]
        z = tl.where(z < 0, 0.0, z)  # not maximum, which would make a NaN 0
        if DROPOUT:
            z = tl.where(_kept(drawn, RANK), z * kept_factor, 0.0)
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
        column_units, rank_units = _again(column_units, t), _again(rank_units, t)


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
    columns, rank = _sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
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
        columns, rank = _sizes_of(column_units, rank_units, ALIGNED, ALIGNED_RANK)
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
        column_units, rank_units = _again(column_units, t), _again(rank_units, t)


# --------------------------------------------------------------------------- ahead of time, and tuning


def variant_of(dtype: torch.dtype, precision: str, rank: int) -> str:
    """The variant of an adapter's kernels in the tuning table; ``rank`` is that of padded_rank."""
    return f"{arithmetic(dtype, precision)}-{max(64, rank)}"


RANKS = (16, 32, 64, 128, 256, 512)  # as padded_rank has them


def adapter_sizes() -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Name, rank, variant in the tuning table and constants: every dtype and rank, aligned and not."""
    for x, rank, aligned in itertools.product(PRODUCTS, RANKS, (True, False)):
        dtype, precision = PRODUCTS[x]
        name = f"{x}{'' if rank == 64 else f'-{rank}'}{'' if aligned else '-unaligned'}"
        sizes = {
            "DTYPE": TRITON_DTYPES[dtype], "PRECISION": precision, "ALIGNED": aligned, "ALIGNED_RANK": aligned,
            "RANK": rank,
        }  # fmt: skip
        yield name, rank, variant_of(dtype, precision, rank), sizes


def ahead_of_time() -> Iterator[Variant]:
    """Training (dropout, a residual) and inference, of every dtype and rank, aligned and not."""
    training = {"HAS_RESIDUAL": True, "DROPOUT": True, "KEEPS_HIDDEN": True}
    inference = {"HAS_RESIDUAL": True, "DROPOUT": False, "KEEPS_HIDDEN": False}
    backward = {"NEEDS_X": True, "NEEDS_BANK": True}
    for name, _, tuned, sizes in adapter_sizes():
        sizes = sizes | {"INDEX_DTYPE": tl.int64}
        forward = ("adapter forward", tuned)
        yield Variant(f"adapter-{name}", forward_kernel, sizes | training, forward)
        yield Variant(f"adapter-inference-{name}", forward_kernel, sizes | inference, forward)
        yield Variant(
            f"adapter-backward-{name}", backward_kernel, sizes | backward, ("adapter backward", tuned)
        )


def _cut(rows: int, step: int, warps: int, stages: int, **bound: int) -> dict[str, int]:
    return {"rows": rows, "step": step, "num_warps": warps, "num_stages": stages, **bound}


CANDIDATES = {
    ("adapter forward", "half-64"): [
        _cut(128, 64, 8, 4, maxnreg=128),  # another step under way
        _cut(64, 64, 4, 3),  # smaller programs, more of them
        _cut(64, 64, 4, 4),
        _cut(128, 32, 8, 5, maxnreg=128),
        _cut(256, 64, 16, 3, maxnreg=128),  # one program of as many threads: half of the bank's bytes from L2
        _cut(128, 64, 8, 3),  # without the bound: one program where dropout takes more registers
    ],
    ("adapter backward", "half-64"): [
        _cut(128, 64, 8, 4, maxnreg=128),
        _cut(64, 64, 4, 3),
        _cut(64, 64, 4, 4),
        _cut(128, 64, 8, 2, maxnreg=128),
    ],
}
