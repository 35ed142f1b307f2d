"""The gradients of a bank of adapters: sums over the rows of each task, in two stages, whatever the order.

1. The samples are put in the order of their tasks (a counting sort on the device), and their rows cut into
   parts of one size. What a task has of a part is a piece; each piece's rows are summed. So work follows the
   rows and not the number of tasks, and one task alone fills a GPU too.
2. The sums of a task's pieces are added, in the order of the parts.

Which rows meet in a sum depends on ``index`` and the shapes only: the same bits at each run.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import config, launch_options
from flexkern.triton_kernels.adapter_pass import adapter_sizes, variant_of
from flexkern.triton_kernels.memory import ALIGNMENT, from_float32, typed
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.operand import operand, read
from flexkern.triton_kernels.product import UNIT
from flexkern.triton_kernels.variant import Variant

__all__ = ["INDEX_DTYPES", "bank_gradients", "padded_rank", "size_units"]

INDEX_DTYPES = {torch.int32: tl.int32, torch.int64: tl.int64}
# The parts of the first stage give the table's number of programs, a few for each multiprocessor; another
# number gives other sums. A part has at least MIN_STEPS steps, so that its sums weigh little.
MIN_STEPS = 4
ORDER_BLOCK = 1024
# The second stage: elements per program, and parts that it reads at once.
SUM_BLOCK = 512
SUM_PARTS = 8
SECTION = tl.constexpr(64)  # float32 that the sections of a slot begin at multiples of


# How the first stage is cut: ROWS per step, COLUMNS of d per program. tuning.toml has it by GPU, arithmetic and
# rank. A program reads its columns of x or grad_out once, and all of the hidden units (or their gradient) from
# the L2 cache: at rank 64 half as many bytes as 128 columns. For sm_90 it has 128 registers or less, so two
# programs are on a multiprocessor, and two steps of 24 KB under way: of five stages, as the rows' numbers are
# read two stages before the rows.


# --------------------------------------------------------------------------- the order of the samples


@triton.jit(do_not_specialize=["order", "bounds", "index", "samples", "tasks"])
def order_kernel(
    order: tl.int64,
    bounds: tl.int64,
    index: tl.int64,
    samples: tl.int32,
    tasks: tl.int32,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A stable counting sort, one program per task: each task's samples in ``order``, from bounds[task] on.

    Samples of no task have no place.
    """
    task = tl.program_id(0)
    values = typed(index, INDEX_DTYPE, False)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((), tl.int32)
    for first in tl.range(0, samples, BLOCK):
        of = tl.load(values + first + lane, mask=lane < samples - first, other=-1)
        before += tl.sum(((of >= 0) & (of < task)).to(tl.int32), axis=0)
    place = before
    for first in tl.range(0, samples, BLOCK):
        mine = tl.load(values + first + lane, mask=lane < samples - first, other=-1) == task
        at = place + tl.cumsum(mine.to(tl.int32), axis=0) - 1
        tl.store(typed(order, tl.int32, False) + at, first + lane, mask=mine)
        place += tl.sum(mine.to(tl.int32), axis=0)
    tl.store(typed(bounds, tl.int32, False) + task, before)
    if task == tasks - 1:
        tl.store(typed(bounds, tl.int32, False) + tasks, place)


# --------------------------------------------------------------------------- the first stage


@triton.jit
def _row_numbers(position, count, length, order, ROWS: tl.constexpr):
    """int64 [ROWS]: the rows in memory of ``position`` .. in the order of tasks; 0 from ``count`` on."""
    lane = tl.arange(0, ROWS)
    place = position // length
    within = position - place * length + lane
    further = within // length
    sample = tl.load(typed(order, tl.int32, False) + place + further, mask=lane < count, other=0)
    return tl.where(lane < count, sample.to(tl.int64) * length + (within - further * length), 0)


@triton.jit
def _sum_rows(
    narrow,
    wide,
    position,
    end,
    length,
    order,
    column,
    columns,
    rank,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    OF_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """float32 [RANK, COLUMNS]: narrow^T wide over the rows from ``position`` to ``end``.

    And the sums of the rows of ``wide`` [COLUMNS] if OF_WIDE, else those of ``narrow`` [RANK].
    """
    lane, j, n = tl.arange(0, ROWS), tl.arange(0, RANK), tl.arange(0, COLUMNS)
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    sums = tl.zeros((ROWS // 4, COLUMNS if OF_WIDE else RANK), tl.float32)
    for at in tl.range(position, end, ROWS):
        row = _row_numbers(at, end - at, length, order, ROWS)[:, None]
        present = (lane < end - at)[:, None]
        left = read(narrow + (row * rank + j[None, :]), present & (j < rank)[None, :], DTYPE)
        right = read(wide + (row * columns + (column + n)[None, :]), present & (n < columns - column)[None, :],
                     DTYPE)  # fmt: skip
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        summed = (right if OF_WIDE else left).to(tl.float32)
        sums += tl.sum(tl.reshape(summed, (4, ROWS // 4, summed.shape[1])), axis=0)
    return total, tl.sum(sums, axis=0)


@triton.jit(
    do_not_specialize=[
        "partial", "order", "bounds", "x", "grad_hidden", "grad_out", "hidden", "length", "tasks",
        "part_rows", "slot_of_task", "column_units", "rank_units", "down_bias_section", "up_section",
        "up_bias_section", "stride_sections",
        "scale",
    ]
)  # fmt: skip
def part_kernel(
    partial: tl.int64,
    order: tl.int64,
    bounds: tl.int64,
    x: tl.int64,
    grad_hidden: tl.int64,
    grad_out: tl.int64,
    hidden: tl.int64,
    length: tl.int32,
    tasks: tl.int32,
    part_rows: tl.int32,
    slot_of_task: tl.int32,
    column_units: tl.int32,
    rank_units: tl.int32,
    down_bias_section: tl.int64,
    up_section: tl.int64,
    up_bias_section: tl.int64,
    stride_sections: tl.int64,
    scale: tl.float32,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    ALIGNED_RANK: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of a piece, for a block of columns of d, of down or of up. A piece is a task's rows in a part.

    They go to the piece's slot: float32 gradients of down [d, r], of down_bias, of up [r, d], of up_bias.
    """
    # As products, so that Triton knows that what a thread reads at once begins at multiples of 16 bytes.
    columns = column_units * (UNIT if ALIGNED else 1)
    rank = rank_units * (UNIT if ALIGNED_RANK else 1)
    blocks = (columns + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    slot = program // (2 * blocks)
    block = program % (2 * blocks)
    column = block // 2 * COLUMNS
    position, end = _piece(slot, bounds, length, tasks, part_rows, slot_of_task)
    # Not a loop over the pieces of a part: the compiler would take all that does not change out of it and hold
    # it in registers, 180 of them instead of 120.
    if position < end:
        j, n = tl.arange(0, RANK), tl.arange(0, COLUMNS)
        inside, exists = n < columns - column, j < rank
        sums = operand(partial, tl.float32, True) + slot.to(tl.int64) * (stride_sections * SECTION)
        if block % 2 == 0:
            down_matrix, down_sums = _sum_rows(
                operand(grad_hidden, DTYPE, ALIGNED_RANK), operand(x, DTYPE, ALIGNED), position, end, length,
                order, column, columns, rank, DTYPE, PRECISION, False, ROWS, COLUMNS, RANK,
            )  # fmt: skip
            down_offsets = (column + n)[:, None] * rank + j[None, :]
            tl.store(sums + down_offsets, tl.trans(down_matrix), mask=inside[:, None] & exists[None, :])
            if column == 0:
                tl.store(sums + down_bias_section * SECTION + j, down_sums, mask=exists)
        else:
            up_matrix, up_sums = _sum_rows(
                operand(hidden, DTYPE, ALIGNED_RANK), operand(grad_out, DTYPE, ALIGNED), position, end, length,
                order, column, columns, rank, DTYPE, PRECISION, True, ROWS, COLUMNS, RANK,
            )  # fmt: skip
            up_offsets = j[:, None] * columns + (column + n)[None, :]
            there = exists[:, None] & inside[None, :]
            tl.store(sums + up_section * SECTION + up_offsets, up_matrix * scale, mask=there)
            tl.store(sums + up_bias_section * SECTION + column + n, up_sums * scale, mask=inside)


@triton.jit
def _key(task, starts, slot_of_task):
    """What a task adds to the number of a part: its own, or its first sample's where there are fewer samples.

    Both rise from task to task that has samples, so each piece has a slot of its own, part + key.
    """
    return tl.where(slot_of_task != 0, task, tl.load(starts + task))


@triton.jit
def _piece(slot, bounds, length, tasks, part_rows, slot_of_task):
    """The rows of the piece of a slot, from where to where in the order of tasks; none: an empty slot."""
    starts = typed(bounds, tl.int32, False)
    # The task of a slot is the last one whose first slot is not after it.
    begun = tl.zeros((), tl.int32)
    for first in tl.range(0, tasks, 128):
        task = first + tl.arange(0, 128)
        there = task < tasks
        start = tl.load(starts + task, mask=there, other=0)
        key = tl.where(slot_of_task != 0, task, start)
        begun += tl.sum((there & (start * length // part_rows + key <= slot)).to(tl.int32), axis=0)
    its_task = tl.maximum(begun - 1, 0)
    part = slot - _key(its_task, starts, slot_of_task)
    position = tl.maximum(tl.load(starts + its_task) * length, part * part_rows)
    end = tl.minimum(tl.load(starts + its_task + 1) * length, (part + 1) * part_rows)
    return position, tl.where(begun > 0, end, position)


# --------------------------------------------------------------------------- the second stage


@triton.jit(
    do_not_specialize=[
        "down", "down_bias", "up", "up_bias", "partial", "bounds", "length", "part_rows", "slot_of_task",
        "d", "r", "down_bias_section", "up_section", "up_bias_section", "stride_sections",
    ]
)  # fmt: skip
def total_kernel(
    down: tl.int64,
    down_bias: tl.int64,
    up: tl.int64,
    up_bias: tl.int64,
    partial: tl.int64,
    bounds: tl.int64,
    length: tl.int32,
    part_rows: tl.int32,
    slot_of_task: tl.int32,
    d: tl.int32,
    r: tl.int32,
    down_bias_section: tl.int64,
    up_section: tl.int64,
    up_bias_section: tl.int64,
    stride_sections: tl.int64,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The sum over a task's parts of BLOCK elements of a slot; 0 for a task without samples."""
    stride = stride_sections * SECTION
    blocks = ((stride + BLOCK - 1) // BLOCK).to(tl.int32)
    program = tl.program_id(0)
    task = program // blocks
    first = (program - task * blocks).to(tl.int64) * BLOCK
    starts = typed(bounds, tl.int32, False)
    begin, end = tl.load(starts + task) * length, tl.load(starts + task + 1) * length
    part = begin // part_rows
    parts = tl.where(end > begin, (end - 1) // part_rows + 1, part)
    element = first + tl.arange(0, BLOCK)
    inside = element < stride
    total = tl.zeros((BLOCK,), tl.float32)
    lane = tl.arange(0, PARTS)
    base = operand(partial, tl.float32, True)
    base += _key(task, starts, slot_of_task).to(tl.int64) * stride
    for of in tl.range(part, parts, PARTS):
        slots = (of + lane).to(tl.int64)[:, None] * stride
        there = (lane < parts - of)[:, None] & inside[None, :]
        total += tl.sum(tl.load(base + slots + element[None, :], mask=there, other=0.0), axis=0)
    values = from_float32(total, DTYPE)
    t = task.to(tl.int64)
    matrix, r64, d64 = d.to(tl.int64) * r, r.to(tl.int64), d.to(tl.int64)
    _store_section(down, t, element, values, 0, matrix, DTYPE)
    _store_section(down_bias, t, element, values, down_bias_section * SECTION, r64, DTYPE)
    _store_section(up, t, element, values, up_section * SECTION, matrix, DTYPE)
    _store_section(up_bias, t, element, values, up_bias_section * SECTION, d64, DTYPE)


@triton.jit
def _store_section(address, task, element, values, begin, count, DTYPE: tl.constexpr):
    """Stores those of a block's elements that are in a section of the slot."""
    at = element - begin
    tl.store(typed(address, DTYPE, False) + task * count + at, values, mask=(at >= 0) & (at < count))


# --------------------------------------------------------------------------- the host's side


def bank_gradients(
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    x: Tensor,
    grad_hidden: Tensor,
    grad_out: Tensor,
    hidden: Tensor,
    index: Tensor,
    scale: float,
    target: str,
    precision: str,
) -> None:
    """Writes the gradients of down [T, d, r], down_bias, up and up_bias to ``grads``; waits for nothing.

    ``x`` and ``grad_out`` are [S, L, d], ``grad_hidden`` (before ReLU) and ``hidden`` [S, L, r]; there are rows
    and tasks. All are contiguous and fit together. ``target`` is that of :func:`tuning.architecture`.
    """
    samples, length, d = x.shape
    tasks, _, r = grads[0].shape
    rows, rank = samples * length, padded_rank(r)
    units = size_units(d, r, [x, grad_out], [grad_hidden, hidden])
    cut = config("adapter bank", variant_of(x.dtype, precision, rank), target, bounded=all(units[2:]))
    blocks = 2 * triton.cdiv(d, cut["columns"])
    parts = max(1, min(cut["programs"] // blocks, rows // (cut["rows"] * MIN_STEPS)))
    part_rows = triton.cdiv(triton.cdiv(rows, parts), cut["rows"]) * cut["rows"]
    parts = triton.cdiv(rows, part_rows)
    sections = [triton.cdiv(count, SECTION.value) for count in (d * r, r, d * r, d)]
    down_bias_at, up_at, up_bias_at, stride = (sum(sections[: i + 1]) for i in range(4))
    by_task = tasks <= samples
    order, bounds = (torch.empty(n, dtype=torch.int32, device=x.device) for n in (samples, tasks + 1))
    count = parts + min(tasks, samples) - 1
    partial = torch.empty(count * stride * SECTION.value, dtype=torch.float32, device=x.device)
    lists = [order.data_ptr(), bounds.data_ptr()]
    inputs = [t.data_ptr() for t in (x, grad_hidden, grad_out, hidden)]
    slots = (down_bias_at, up_at, up_bias_at, stride)
    order_kernel[(tasks,)](
        *lists,
        index.data_ptr(),
        samples,
        tasks,
        INDEX_DTYPES[index.dtype],
        ORDER_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    part_kernel[(count * blocks,)](
        partial.data_ptr(), *lists, *inputs, length, tasks, part_rows, int(by_task), *units[:2], *slots, scale,
        TRITON_DTYPES[x.dtype], precision, *units[2:], rank, cut["rows"], cut["columns"],
        **launch_options(cut), enable_fp_fusion=False,
    )  # fmt: skip
    total_kernel[(tasks * triton.cdiv(stride * SECTION.value, SUM_BLOCK),)](
        *(t.data_ptr() for t in grads), partial.data_ptr(), bounds.data_ptr(), length, part_rows, int(by_task),
        d, r, *slots, TRITON_DTYPES[x.dtype], SUM_BLOCK, SUM_PARTS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def padded_rank(r: int) -> int:
    """The rank as the kernels compute with it: a power of two that the tensor cores take."""
    return max(16, triton.next_power_of_2(r))


def size_units(d: int, r: int, wide: Sequence[Tensor], narrow: Sequence[Tensor]) -> tuple[int, int, bool, bool]:
    """d and r in units of 8 where all rows of ``wide`` or ``narrow`` begin at 16 bytes; and whether they do."""

    def in_units(size: int, tensors: Sequence[Tensor]) -> tuple[int, bool]:
        aligned = size % UNIT.value == 0 and not any(t.data_ptr() % ALIGNMENT for t in tensors)
        return size // UNIT.value if aligned else size, aligned

    (columns, aligned), (rank, aligned_rank) = in_units(d, wide), in_units(r, narrow)
    return columns, rank, aligned, aligned_rank


# --------------------------------------------------------------------------- ahead of time, and tuning


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    for name, _, tuned, sizes in adapter_sizes():
        yield Variant(f"adapter-parts-{name}", part_kernel, sizes, ("adapter bank", tuned))
    four_warps = {"num_warps": 4}
    order = {"INDEX_DTYPE": tl.int64, "BLOCK": ORDER_BLOCK}
    yield Variant("adapter-order", order_kernel, order, options=four_warps)
    for dtype in TRITON_DTYPES.values():
        total = {"DTYPE": dtype, "BLOCK": SUM_BLOCK, "PARTS": SUM_PARTS}
        yield Variant(f"adapter-total-{dtype}", total_kernel, total, options=four_warps)


def _cut(rows: int, columns: int, programs: int, warps: int, stages: int, **bound: int) -> dict[str, int]:
    sizes = {"rows": rows, "columns": columns, "programs": programs}
    return {**sizes, "num_warps": warps, "num_stages": stages, **bound}


CANDIDATES = {
    ("adapter bank", "half-64"): [
        _cut(64, 128, 384, 8, 5, maxnreg=128),
        _cut(64, 128, 768, 8, 5, maxnreg=128),
        _cut(64, 128, 512, 8, 5),
        _cut(64, 256, 512, 8, 4),
        _cut(32, 128, 512, 8, 6),
        _cut(64, 64, 768, 4, 5),
    ],
}
