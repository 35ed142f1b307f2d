"""One launch for a list of tensors: a table on the device, with a row for each, that every program reads.

The int64 table begins with the number of each tensor's first program, in ascending order; then come the rows.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind
from flexkern.triton_kernels.field import computed_source
from flexkern.triton_kernels.memory import full_tiles
from flexkern.triton_kernels.rules import MOST_STATES

__all__ = ["Row", "Table", "TableCache", "load_row", "source_columns"]

# A row: addresses of weight, gradient, master, alpha and the states (0: none), number of elements, number of
# the tensor's first program, how many of its tiles go without a mask, two sources, and the address of the
# number of its step (0: the rule does not count). A source: kind, address, seed, stream, offset, purpose, and
# the float32 bits of p0 and p1.
ADDRESSES = 4 + MOST_STATES
NUMEL = tl.constexpr(ADDRESSES)
FIRST = tl.constexpr(ADDRESSES + 1)
FULL = tl.constexpr(ADDRESSES + 2)
ANCHOR = tl.constexpr(ADDRESSES + 3)
FLEXIBILITY = tl.constexpr(ADDRESSES + 11)
COUNT = tl.constexpr(ADDRESSES + 19)
COLUMNS = tl.constexpr(ADDRESSES + 20)
SPARES = 4  # that are kept of each size: as many lists of one length can be new in one capture
SEARCH = tl.constexpr(128)  # first programs that are compared at once: one a thread


@triton.jit
def _find_row(table, tensors, program):
    """The row of the tensor that ``program`` works on: the last one whose first program is not after it."""
    before = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    # Not `range`, which fails for a run-time bound in the interpreter of Triton 3.6 with a recent NumPy.
    while start < tensors:
        tensor = start + tl.arange(0, SEARCH)
        first = tl.load(table + tensor, mask=tensor < tensors, other=0x7FFFFFFF)
        before += tl.sum((first <= program).to(tl.int32), axis=0)
        start += SEARCH
    return table + tensors + (before - 1) * COLUMNS


@triton.jit
def _load_source(column):
    p0 = tl.load(column + 6).to(tl.int32).to(tl.float32, bitcast=True)
    p1 = tl.load(column + 7).to(tl.int32).to(tl.float32, bitcast=True)
    return (
        tl.load(column), tl.load(column + 1), tl.load(column + 2), tl.load(column + 3), tl.load(column + 4),
        tl.load(column + 5), p0, p1,
    )  # fmt: skip


@triton.jit
def load_row(table, tensors):
    """What this program works on: (tile, numel, full, addresses, anchor, flexibility, count).

    The number of its tile, the tensor's number of elements and of tiles that go without a mask, the addresses
    of weight, gradient, master, alpha and the states, two sources as in :func:`field.source_tile`, and the
    address of the number of the step.
    """
    program = tl.program_id(0)
    row = _find_row(table, tensors, program)
    tile = program - tl.load(row + FIRST)  # int64
    addresses = (
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5),
        tl.load(row + 6),
    )  # fmt: skip
    anchor = _load_source(row + ANCHOR)
    flexibility = _load_source(row + FLEXIBILITY)
    return tile, tl.load(row + NUMEL), tl.load(row + FULL), addresses, anchor, flexibility, tl.load(row + COUNT)


# --------------------------------------------------------------------------- the host's side


def _column(ints: Sequence[int], floats: Sequence[float], device: torch.device) -> list[int]:
    *integers, p0, p1 = computed_source(ints, floats, device)
    return [*integers, *np.array([p0, p1], dtype=np.float32).view(np.int32).tolist()]


NOTHING = [int(Kind.STORED), 0, 0, 0, 0, 0, 0, 0]
_ZERO, _ONE = (_column([int(Kind.CONSTANT), 0, 0, 0, 0], [v, 0.0], torch.device("cpu")) for v in (0.0, 1.0))


def source_columns(
    stored: Sequence[Tensor], weights: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float]
) -> list[list[int]]:
    """The columns of the anchors (or flexibilities) of the weights; empty ``sources``: all are stored."""
    remaining = iter(stored)
    columns = []
    for i, weight in enumerate(weights):
        ints = sources[SOURCE_INTS * i : SOURCE_INTS * (i + 1)]
        if not ints or ints[0] == Kind.STORED:
            columns.append([int(Kind.STORED), next(remaining).data_ptr(), 0, 0, 0, 0, 0, 0])
        else:
            floats = parameters[SOURCE_FLOATS * i : SOURCE_FLOATS * (i + 1)]
            columns.append(_column(ints, floats, weight.device))
    return columns


@dataclass
class Row:
    """A tensor of a step: its number of elements, the addresses of a row (states may be left out), the columns
    of its sources, and the address of the number of its step."""

    numel: int
    addresses: list[int]
    anchor: list[int]
    flexibility: list[int]
    count: int = 0

    def __post_init__(self) -> None:
        if [self.flexibility[0], *self.flexibility[6:]] == [_ONE[0], *_ONE[6:]]:
            # f = 1 multiplies |w - a| by 0: the weight moves freely, and its anchor is neither read nor drawn.
            self.anchor = _ZERO


def _host_table(rows: Sequence[Row], tile: int) -> tuple[np.ndarray, int]:
    """The table as one array, and the number of programs, each of which steps ``tile`` elements."""
    firsts: list[int] = []
    body: list[int] = []
    programs = 0
    for row in rows:
        full = full_tiles([*row.addresses, row.anchor[1], row.flexibility[1]], row.numel, tile)
        firsts.append(programs)
        body += [
            *row.addresses,
            *[0] * (ADDRESSES - len(row.addresses)),
            row.numel,
            programs,
            full,
            *row.anchor,
            *row.flexibility,
            row.count,
        ]
        programs += triton.cdiv(row.numel, tile)
    return np.array(firsts + body, dtype=np.int64), programs


@dataclass
class Table:
    """A table on the device, and the grid that goes with it."""

    data: Tensor
    tensors: int
    programs: int
    stream: int = 0  # the CUDA stream it was copied on, and the event after the copy
    ready: torch.cuda.Event | None = None
    captured: bool = False  # a CUDA graph reads it


class TableCache:
    """Keeps tables by what they contain, so that steps on the same tensors copy nothing.

    CUDA graphs: a table that is already there when a capture begins, as after a warm-up step on the same
    tensors, is read by the replays where it lies, and is kept from then on. Otherwise the copy is captured too:
    its source in pinned host memory is kept, and every replay copies it again. That memory comes from spares
    that steps outside of captures leave, because it should not be allocated in one: torch's allocator may then
    look at events, which ends the capture. So captured steps are right either way, as long as the tensors keep
    their addresses, as a graph needs anyway. The capture must begin with an idle device, which
    ``torch.cuda.graph`` makes sure of.

    Args:
        limit: number of tables to keep; the least recently used one goes first.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._tables: dict[Hashable, Table] = {}
        self._captured_sources: list[Tensor] = []
        self._spares: dict[int, list[Tensor]] = {}  # pinned memory, by its number of elements
        self._lock = threading.Lock()

    def get(self, key: Hashable, device: torch.device, rows: Callable[[], list[Row]], tile: int) -> Table:
        """The table of ``key``, made from ``rows()`` and copied to the (current) device if it is not there.

        ``tile``, the number of elements of a program, is part of the key.
        """
        on_gpu = device.type == "cuda"
        capturing = on_gpu and torch.cuda.is_current_stream_capturing()
        with self._lock:
            table = self._tables.pop(key, None)
            if table is None:
                table = self._upload(rows(), tile, device, capturing)
                if capturing:  # it holds nothing before the graph runs, so no other step may find it
                    return table
            table.captured |= capturing
            self._tables[key] = table  # now the most recently used
            self._evict()
        if on_gpu and not capturing:
            self._keep_spare(table.data.numel())
            stream = torch.cuda.current_stream(device)
            if stream.cuda_stream != table.stream and table.ready is not None:
                stream.wait_event(table.ready)
                table.data.record_stream(stream)
        return table

    def _keep_spare(self, count: int) -> None:
        """A later capture of a step like this one will find pinned memory."""
        spares = self._spares.setdefault(count, [])
        if count and len(spares) < SPARES:
            spares.append(torch.empty(count, dtype=torch.int64, pin_memory=True))

    def _pinned(self, host: Tensor, capturing: bool) -> Tensor:
        spares = self._spares.get(host.numel()) if capturing else None
        return spares.pop().copy_(host) if spares else host.pin_memory()

    def _upload(self, rows: list[Row], tile: int, device: torch.device, capturing: bool) -> Table:
        array, programs = _host_table(rows, tile)
        host = torch.from_numpy(array)
        if device.type != "cuda" or not rows:
            return Table(host, len(rows), programs)
        host = self._pinned(host, capturing)
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
