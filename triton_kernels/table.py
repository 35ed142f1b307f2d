"""One launch for a list of tensors: a table on the device, with a row for each tensor, that every program reads.

The int64 table begins with the number of each tensor's first program, in ascending order; then come the rows.
"""

# ruff: noqa: ANN001, ANN202 - device functions: Triton infers the types of their arguments

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.fields import Kind
from flexkern.triton_kernels.memory import TILE, full_tiles

__all__ = ["Row", "Table", "TableCache", "find_row", "load_source", "stored_source"]

# Columns of a row, in int64. A source is kind, address, seed, stream, offset, purpose, and the float32 bits of p0, p1.
WEIGHT = tl.constexpr(0)
GRAD = tl.constexpr(1)
MASTER = tl.constexpr(2)
MOMENTUM = tl.constexpr(3)
ALPHA = tl.constexpr(4)
NUMEL = tl.constexpr(5)
FIRST = tl.constexpr(6)  # number of the tensor's first program
FULL = tl.constexpr(7)  # how many of its tiles go without a mask
ANCHOR = tl.constexpr(8)
FLEXIBILITY = tl.constexpr(16)
COLUMNS = tl.constexpr(24)
SEARCH = tl.constexpr(128)  # first programs that are compared at once: one a thread


@triton.jit
def find_row(table, tensors, program):
    """The row of the tensor that ``program`` works on: the last one whose first program is not after it."""
    before = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    while start < tensors:  # `range` of a run-time bound fails in the interpreter of triton 3.6 with numpy 2.4
        tensor = start + tl.arange(0, SEARCH)
        first = tl.load(table + tensor, mask=tensor < tensors, other=0x7FFFFFFF)
        before += tl.sum((first <= program).to(tl.int32), axis=0)
        start += SEARCH
    return table + tensors + (before - 1) * COLUMNS


@triton.jit
def load_source(row, COLUMN: tl.constexpr):
    """The eight numbers of the source at ``row + COLUMN``."""
    p0 = tl.load(row + (COLUMN + 6)).to(tl.int32).to(tl.float32, bitcast=True)
    p1 = tl.load(row + (COLUMN + 7)).to(tl.int32).to(tl.float32, bitcast=True)
    return (
        tl.load(row + COLUMN), tl.load(row + (COLUMN + 1)), tl.load(row + (COLUMN + 2)), tl.load(row + (COLUMN + 3)),
        tl.load(row + (COLUMN + 4)), tl.load(row + (COLUMN + 5)), p0, p1,
    )  # fmt: skip


def stored_source(address: int) -> list[int]:
    """The columns of a source that is read from a float32 tensor."""
    return [int(Kind.STORED), address, 0, 0, 0, 0, 0, 0]


def computed_source(ints: Sequence[int], floats: Sequence[float]) -> list[int]:
    """The columns of a source that is not stored, from the numbers of :func:`field.source_row`."""
    kind, *position = ints
    return [kind, 0, *position, *np.asarray(floats, dtype=np.float32).view(np.int32).tolist()]


@dataclass
class Row:
    """A tensor of a step: the addresses of its arrays, 0 for those that it does not have."""

    weight: int
    grad: int
    master: int
    momentum: int
    alpha: int
    numel: int
    anchor: list[int]
    flexibility: list[int]


@dataclass
class Table:
    """A table on the device, and the grid that goes with it."""

    rows: Tensor
    tensors: int
    programs: int
    stream: int = 0  # the CUDA stream it was copied on, and the event after the copy
    ready: torch.cuda.Event | None = None
    captured: bool = False  # a CUDA graph reads it


def _host_table(rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """The table as one array, and the number of programs."""
    firsts, body, programs = [], [], 0
    for row in rows:
        addresses = [row.weight, row.grad, row.master, row.momentum, row.alpha]
        full = full_tiles([*addresses, row.anchor[1], row.flexibility[1]], row.numel)
        firsts.append(programs)
        body += [*addresses, row.numel, programs, full, *row.anchor, *row.flexibility]
        programs += triton.cdiv(row.numel, TILE)
    return np.array(firsts + body, dtype=np.int64), programs


class TableCache:
    """Keeps tables by what they contain, so that steps on the same tensors copy nothing.

    CUDA graphs: a table that is already there when a capture begins, as after a warm-up step on the same tensors, is
    read by the replays where it lies, and is kept from then on. Otherwise the copy is captured too: its source in
    pinned host memory is kept, and every replay copies it again. So captured steps are right either way, for
    as long as the tensors keep their addresses, as a graph needs anyway. The capture must begin with an idle
    device, as ``torch.cuda.graph`` makes sure.

    Args:
        limit: number of tables to keep; the least recently used one goes first.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._tables: dict[Hashable, Table] = {}
        self._captured_sources: list[Tensor] = []
        self._lock = threading.Lock()

    def get(self, key: Hashable, device: torch.device, rows: Callable[[], list[Row]]) -> Table:
        """The table of ``key``, made from ``rows()`` and copied to the (current) device if it is not there."""
        on_gpu = device.type == "cuda"
        capturing = on_gpu and torch.cuda.is_current_stream_capturing()
        with self._lock:
            table = self._tables.pop(key, None)
            if table is None:
                table = self._upload(rows(), device, capturing)
                if capturing:  # it holds nothing before the graph runs, so nobody else may find it
                    return table
            table.captured |= capturing
            self._tables[key] = table  # now the most recently used
            self._evict()
        if on_gpu and not capturing:
            stream = torch.cuda.current_stream(device)
            if stream.cuda_stream != table.stream and table.ready is not None:
                stream.wait_event(table.ready)
                table.rows.record_stream(stream)
        return table

    def _upload(self, rows: list[Row], device: torch.device, capturing: bool) -> Table:
        array, programs = _host_table(rows)
        host = torch.from_numpy(array)
        if device.type != "cuda":
            return Table(host, len(rows), programs)
        host = host.pin_memory()
        table = Table(host.to(device, non_blocking=True), len(rows), programs)
        if capturing:
            self._captured_sources.append(host)
        else:
            stream = torch.cuda.current_stream(device)
            table.stream, table.ready = stream.cuda_stream, stream.record_event()
        return table

    def _evict(self) -> None:
        if len(self._tables) > self._limit:
            oldest = next((key for key, table in self._tables.items() if not table.captured), None)
            if oldest is not None:
                del self._tables[oldest]
