"""Loads and stores of a tile at a 64-bit address, in the dtype of the tensor; the arithmetic is in float32."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

__all__ = [
    "ALIGNMENT",
    "exact_weight",
    "from_float32",
    "full_tiles",
    "load_float32",
    "store_float32",
    "to_float32",
    "typed",
]

# A program steps TILE elements, 1024 with 128 threads: 8 per thread, so 2 independent 16-byte loads of each
# float32 array (tuning.toml has it by kernel and GPU). By Little's law 4.3 TB/s at about 800 ns of loaded
# latency want 3.4 MB in flight, 26 KB on each of 132 multiprocessors. The stored step has 4 arrays x 8 elements
# x 4 bytes = 128 bytes per thread in flight, so 210 threads are enough; 64 registers allow 1024. What is left
# over hides the table lookups that each program begins with. Larger tiles would leave more of a small tensor to
# the masked tail.
ALIGNMENT = 16  # bytes: the widest access of a thread


def full_tiles(addresses: list[int], numel: int, tile: int) -> int:
    """How many leading tiles of a tensor can go without a mask and in wide accesses, given its addresses."""
    return 0 if any(address % ALIGNMENT for address in addresses) else numel // tile


@triton.jit
def typed(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to an array of DTYPE at ``address``; ALIGNED promises a multiple of ALIGNMENT.

    bfloat16 goes as the upper half of a float32, which is what the hardware does too: Triton's interpreter
    widens subnormal numbers wrongly and does not round to nearest.
    """
    stored: tl.constexpr = tl.uint16 if DTYPE == tl.bfloat16 else DTYPE
    pointer = address.to(tl.int64).to(tl.pointer_type(stored))  # the interpreter takes small numbers as int32
    if ALIGNED:
        # Four elements per access in every dtype, so that a thread has the same elements of all arrays.
        pointer = tl.multiple_of(pointer, 4 * (DTYPE.primitive_bitwidth // 8))
    return pointer


@triton.jit
def _pointers(address, first, DTYPE: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr):
    """Pointers to elements ``first`` .. of the array at ``address``, for FULL a multiple of ALIGNMENT."""
    return typed(address, DTYPE, FULL) + first + tl.arange(0, TILE)  # 32-bit offsets, which save registers


@triton.jit
def to_float32(values, DTYPE: tl.constexpr):
    """Elements as :func:`typed` pointers give them, widened."""
    if DTYPE == tl.bfloat16:
        values = (values.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return values.to(tl.float32)


@triton.jit
def from_float32(values, DTYPE: tl.constexpr):
    """``values`` rounded to the nearest of DTYPE, ties to even, as :func:`typed` pointers take them."""
    if DTYPE == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # The carry would turn a NaN with a full mantissa into 0.
        values = tl.where(values == values, rounded, (bits >> 16) | 0x40).to(tl.uint16)  # noqa: PLR0124
    else:
        values = values.to(DTYPE)
    return values


@triton.jit
def exact_weight(weight, master, DTYPE: tl.constexpr):
    """What a step of low-precision weights begins with, in float32: the master, but that of a weight that is
    not its rounding, because it was written from outside since the last step, takes the weight's value."""
    rounding = to_float32(from_float32(master, DTYPE), DTYPE)
    return tl.where(weight == rounding, master, weight)


@triton.jit
def _count(first, numel, TILE: tl.constexpr):
    """How many elements of the tile are inside the array, as int32."""
    return tl.minimum(numel - first, TILE).to(tl.int32)


@triton.jit
def load_float32(
    address,
    first,
    numel,
    DTYPE: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
    OPTIONAL: tl.constexpr = False,
):
    """float32 [TILE]: elements ``first`` .. of the array at ``address``; ``first`` is a multiple of TILE.

    FULL promises that all are inside; else those from ``numel`` on are not read and are 0. With OPTIONAL,
    ``numel`` may be 0 for an array that is not there, and then nothing is read in either case.
    """
    pointers = _pointers(address, first, DTYPE, FULL, TILE)
    if FULL:
        if OPTIONAL:  # the same for all elements, so the access stays 16 bytes wide
            values = tl.load(pointers, mask=tl.zeros((TILE,), tl.int32) < _count(0, numel, TILE), other=0)
        else:
            values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=tl.arange(0, TILE) < _count(first, numel, TILE), other=0)
    return to_float32(values, DTYPE)


@triton.jit
def store_float32(address, first, numel, values, DTYPE: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr):
    """Rounds ``values`` to the nearest of DTYPE, ties to even, and stores them; the rest as in load_float32."""
    values = from_float32(values, DTYPE)
    pointers = _pointers(address, first, DTYPE, FULL, TILE)
    if FULL:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=tl.arange(0, TILE) < _count(first, numel, TILE))


# For the tuner, of kernels that pass over elements. Half a tile and twice the programs hide latency; a double
# one has less to look up and more in flight per thread.
TILES = [
    {"tile": tile, "num_warps": warps} for tile, warps in ((512, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8))
]
