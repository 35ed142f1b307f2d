"""Procedural fields (docs/design.md): the operations of flexkern/reference/field.py, each rounded once.

The kernels are compiled with enable_fp_fusion=False, so no product and sum becomes a fused multiply-add.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import threading
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind
from flexkern.spec.constants import NORMAL_CENTRE, NORMAL_TAIL, SQRT_HALF_BITS
from flexkern.spec.normal_table import FIRST, ROWS, SHIFT
from flexkern.triton_kernels.memory import TILES, full_tiles, load_float32, store_float32, typed
from flexkern.triton_kernels.philox import random_words, random_words_of_rows
from flexkern.triton_kernels.variant import Variant

__all__ = ["computed_rows", "computed_source", "fill_field_", "source_tile", "stored_tile"]

Source = tuple[
    int, int, int, int, int, int, float, float
]  # kind, address, seed, stream, offset, purpose, p0, p1

STORED = tl.constexpr(int(Kind.STORED))
CONSTANT = tl.constexpr(int(Kind.CONSTANT))
UNIFORM = tl.constexpr(int(Kind.UNIFORM))
NORMAL = tl.constexpr(int(Kind.NORMAL))
BIASED_HIGH = tl.constexpr(int(Kind.BIASED_HIGH))
NORMAL_TABLE = tl.constexpr(int(Kind.NORMAL_TABLE))

_LOG_2 = tl.constexpr(0.69314718246459961)  # the float32 nearest to it
_SQRT_HALF_BITS = tl.constexpr(SQRT_HALF_BITS)
CENTRE, TAIL = tl.constexpr(NORMAL_CENTRE), tl.constexpr(NORMAL_TAIL)
_FIRST, _SHIFT = tl.constexpr(FIRST), tl.constexpr(SHIFT)


@triton.jit
def _log_unit(y):
    """Natural logarithm of y in (0, 1]: log m = 2 atanh((m - 1) / (m + 1)) with m in [sqrt(.5), sqrt(2))."""
    bits = y.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    s = tl.div_rn(m - 1.0, m + 1.0)
    t = s * s
    series = (((t * (2 / 9) + 2 / 7) * t + 2 / 5) * t + 2 / 3) * t + 2.0
    return exponent.to(tl.float32) * _LOG_2 + s * series


@triton.jit
def _horner(t, COEFFICIENTS: tl.constexpr):
    """A polynomial of degree 8, its lowest power first."""
    p = COEFFICIENTS[8] * t + COEFFICIENTS[7]
    for i in tl.static_range(7):
        p = p * t + COEFFICIENTS[6 - i]
    return p


@triton.jit
def _normal_quantile(u):
    """Inverse CDF of the standard normal; flexkern/spec/constants.py says where the coefficients are from."""
    x = 2.0 * u - 1.0
    w = -_log_unit((1.0 - x) * (1.0 + x))
    centre = _horner(w - 2.5, CENTRE)
    tail = _horner(tl.sqrt_rn(w) - 3.0, TAIL)
    return x * tl.where(w < 5.0, centre, tail)


@triton.jit
def _normal_by_table(word, table):
    """The standard normal value of a word; flexkern/spec/normal_table.py says of which table."""
    v = ((word | 1) & 0x7FFFFFFF).to(tl.int32).to(tl.float32)
    row = (v.to(tl.int32, bitcast=True) >> _SHIFT) - _FIRST
    # A row in one access, and nothing moves between threads; with four accesses it is 5 instructions more.
    at = tl.expand_dims(4 * row, -1) + tl.arange(0, 4)
    rows = tl.reshape(tl.load(typed(table, tl.float32, True) + at), row.shape + (2, 2))  # noqa: RUF005
    even, odd = tl.split(rows)
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    x = ((c3 * v + c2) * v + c1) * v + c0
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _value(word, kind, table, p0, p1):
    """The float32 value that a random word stands for; ``kind`` is a scalar or a constexpr."""
    # ((word >> 9) + 0.5) 2^-23 without a conversion: the 23 bits become the fraction of a number in [1, 2). Its
    # difference from 1 - 2^-24 is an odd multiple of 2^-24 under 1, so it is exact.
    u = ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.99999994039535522
    if kind == UNIFORM:
        value = u * p1 + p0
    elif kind == NORMAL:
        value = _normal_quantile(u) * p1 + p0
    elif kind == NORMAL_TABLE:
        value = _normal_by_table(word, table) * p1 + p0
    else:
        # CDF x^2/2 + x/2 = u has the root (sqrt(1 + 8u) - 1) / 2, written without its cancellation.
        value = tl.div_rn(4.0 * u, tl.sqrt_rn(8.0 * u + 1.0) + 1.0)
        value = tl.where(kind == BIASED_HIGH, value, 1.0 - value)
    return value


@triton.jit
def _computed_tile(source, first, TILE: tl.constexpr):
    """float32 [TILE]: a tile of a constant or of a random field; 0 for a stored source.

    A thread has the four values of a Philox block as neighbours, which is how it holds the four elements of an
    access to memory, so nothing moves between threads. They are joined after the branches: Triton 3.6 would
    take a joined tile through shared memory at the end of each branch.
    """
    kind, table, seed, stream, offset, purpose, p0, p1 = source
    if kind > CONSTANT:
        w0, w1, w2, w3 = random_words(offset + first, seed, stream, purpose, TILE)
        v0 = _value(w0, kind, table, p0, p1)
        v1 = _value(w1, kind, table, p0, p1)
        v2 = _value(w2, kind, table, p0, p1)
        v3 = _value(w3, kind, table, p0, p1)
    else:
        v0 = tl.zeros((TILE // 4,), tl.float32) + tl.where(kind == CONSTANT, p0, 0.0)
        v1, v2, v3 = v0, v0, v0
    return tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), (TILE,))


@triton.jit
def computed_rows(source, first, KIND: tl.constexpr, ALIGNED: tl.constexpr, WIDTH: tl.constexpr):
    """float32 [rows, WIDTH]: a constant or a random field, in rows from the elements ``first`` [rows, 1] on.

    ``source`` is that of source_tile without its kind. ALIGNED promises that the positions in the field are
    multiples of 4.
    """
    table, seed, stream, offset, purpose, p0, p1 = source
    if KIND == CONSTANT:
        values = tl.zeros((first.shape[0], WIDTH), tl.float32) + p0
    else:
        w0, w1, w2, w3 = random_words_of_rows(offset + first, seed, stream, purpose, ALIGNED, WIDTH)
        even = tl.join(_value(w0, KIND, table, p0, p1), _value(w2, KIND, table, p0, p1))
        odd = tl.join(_value(w1, KIND, table, p0, p1), _value(w3, KIND, table, p0, p1))
        values = tl.reshape(tl.join(even, odd), (first.shape[0], WIDTH))
    return values


@triton.jit
def stored_tile(source, first, numel, MIXED: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr):
    """float32 [TILE]: a tile of an anchor or a flexibility that is a tensor.

    ``source`` is that of :func:`computed_source`, or (STORED, address of the tensor, ...). MIXED: it may be
    another one, and then nothing is read.
    """
    if MIXED:
        numel = tl.where(source[0] == STORED, numel, 0)
    return load_float32(source[1], first, numel, tl.float32, FULL, TILE, OPTIONAL=MIXED)


@triton.jit
def source_tile(source, stored, first, TILE: tl.constexpr):
    """float32 [TILE]: a tile of an anchor or a flexibility, wherever it comes from; ``stored`` is that of
    :func:`stored_tile`, which was read before, so that it is under way while random words are computed."""
    return tl.where(source[0] == STORED, stored, _computed_tile(source, first, TILE))


# --------------------------------------------------------------------------- the host's side

_tables: dict[torch.device, Tensor] = {}
_captured: list[tuple[Tensor, Tensor]] = []
_lock = threading.Lock()


def _table_address(device: torch.device) -> int:
    """Where the table of normal fields is on a device: copied at the first call, and kept."""
    with _lock:
        if device in _tables:
            return _tables[device].data_ptr()
        host = torch.tensor(ROWS, dtype=torch.float32, device="cpu")
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _tables[device] = host.to(device)
            return _tables[device].data_ptr()
        # A copy that is captured arrives when the graph runs, each time anew: it serves that graph alone.
        host = host.pin_memory()
        _captured.append((host, host.to(device, non_blocking=True)))
        return _captured[-1][1].data_ptr()


def computed_source(source: Sequence[int], parameters: Sequence[float], device: torch.device) -> Source:
    """A source that is not stored, as the kernels take it.

    The address is that of the table that its kind reads, 0 for none. The kernels round p0 and p1 to float32:
    the value of a constant, low and width of a uniform field, mean and std of a normal one.

    Raises:
        ValueError: if it is not one.
    """
    if len(source) != SOURCE_INTS or len(parameters) != SOURCE_FLOATS:
        raise ValueError(
            f"a source is {SOURCE_INTS} integers and {SOURCE_FLOATS} numbers, "
            f"got {list(source)} and {list(parameters)}"
        )
    kind, seed, stream, offset, purpose = source
    if not Kind.CONSTANT <= kind <= max(Kind):
        raise ValueError(
            f"kind {kind} is not one of a source without a tensor ({Kind.CONSTANT} .. {max(Kind)})"
        )
    p0, p1 = map(float, parameters)
    address = _table_address(device) if kind == Kind.NORMAL_TABLE else 0
    return kind, address, seed, stream, offset, purpose, p0, p1 - p0 if kind == Kind.UNIFORM else p1


@triton.jit(do_not_specialize=["out", "numel", "full", "kind", "table", "seed", "stream", "offset", "purpose"])
def fill_kernel(
    out: tl.int64,
    numel: tl.int64,
    full: tl.int64,
    kind: tl.int64,
    table: tl.int64,
    seed: tl.int64,
    stream: tl.int64,
    offset: tl.int64,
    purpose: tl.int64,
    p0: tl.float32,
    p1: tl.float32,
    TILE: tl.constexpr,
):
    """Fills the float32 array at ``out`` with a random or constant source; ``full`` tiles go without a mask."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    source = (
        kind,
        table,
        seed,
        stream,
        offset,
        purpose,
        tl.full((), p0, tl.float32),
        tl.full((), p1, tl.float32),
    )
    values = _computed_tile(source, first, TILE)
    if tile < full:
        store_float32(out, first, numel, values, tl.float32, True, TILE)
    else:
        store_float32(out, first, numel, values, tl.float32, False, TILE)


def fill_field_(out: Tensor, source: Sequence[int], parameters: Sequence[float]) -> None:
    """The Triton implementation of ``flexkern::fill_field_``: ``out``, float32, gets the values of the source.

    Raises:
        TypeError, ValueError: if ``out`` is not float32 and contiguous, or the source is stored.
    """
    if out.dtype is not torch.float32:
        raise TypeError(f"out must be torch.float32, got {out.dtype}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()} for shape {tuple(out.shape)}")
    given = computed_source(source, parameters, out.device)
    numel, address = out.numel(), out.data_ptr()
    if numel == 0:
        return
    cut = config("fill", "any", architecture(out.device))
    tile = cut["tile"]
    with torch.cuda.device_of(out):
        fill_kernel[(triton.cdiv(numel, tile),)](
            address, numel, full_tiles([address], numel, tile), *given, tile,
            **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip


# --------------------------------------------------------------------------- ahead of time, and tuning


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    yield Variant("fill", fill_kernel, {}, ("fill", "any"))


CANDIDATES = {("fill", "any"): TILES}
