"""A tile of a weight matrix: T words of the packed mask of silent synapses, and the 32 synapses of each.

A tile is ``(first, offsets, rows, columns, inside)``: the index of an element of the matrix, int64; for each
word, how far after it its first synapse lies, int32 [T, 1], and the row and the column of that synapse, [T];
and which of its 32 synapses exist, uint32 [T]. A row's last word may reach past its end.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.triton_kernels.field import STORED, computed_rows
from flexkern.triton_kernels.memory import from_float32, to_float32, typed

__all__ = [
    "count_bits",
    "existing",
    "groups",
    "lanes",
    "load_more",
    "load_synapses",
    "load_units",
    "pack",
    "source_synapses",
    "store_synapses",
]


@triton.jit
def lanes(words):
    """bool [T, 32]: the bits of uint32 [T]."""
    return ((words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1) != 0


@triton.jit
def pack(mask):
    """The inverse of lanes. Each bit is set once, so the sum is their union and cannot carry."""
    return tl.sum(mask.to(tl.uint32) << tl.arange(0, 32).to(tl.uint32)[None, :], axis=1)


@triton.jit
def groups(words, ALIGNED: tl.constexpr):
    """Which synapses are accessed to get at those of ``words``: with ALIGNED whole groups of four, 16 bytes."""
    if ALIGNED:
        any_of_four = words | (words >> 1)
        any_of_four = (any_of_four | (any_of_four >> 2)) & 0x11111111
        words = any_of_four | (any_of_four << 1)
        words = words | (words << 2)
    return words


@triton.jit
def count_bits(words):
    """int32 [T]: how many bits are set. (Hacker's Delight, section 5-1; the sums stay in their fields.)"""
    count = words - ((words >> 1) & 0x55555555)
    count = (count & 0x33333333) + ((count >> 2) & 0x33333333)
    count = (count + (count >> 4)) & 0x0F0F0F0F
    count += count >> 8
    return ((count + (count >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def existing(column, columns, row_exists):
    """uint32 [T]: the bits of those of the 32 synapses from ``column`` on that a row of ``columns`` has."""
    left = tl.minimum(tl.maximum(columns - column, 0), 32).to(tl.uint32)
    # The shift is under 32 in both steps: by 32 it would be undefined.
    first_half = tl.minimum(left, 16)
    one = tl.full(left.shape, 1, tl.uint32)
    bits = ((one << first_half) - 1) | (((one << (left - first_half)) - 1) << first_half)
    return tl.where(row_exists, bits, 0)


@triton.jit
def _access(address, tile, words, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to a tile's elements, and which are accessed: those of ``words``, which :func:`groups` made."""
    first, offsets = tile[0], tile[1]
    lane = tl.arange(0, 32)
    if ALIGNED:
        lane = lane // 4 * 4  # the first of four answers for all, so that Triton sees that their mask is one
    mask = ((words[:, None] >> lane.to(tl.uint32)[None, :]) & 1) != 0
    return typed(address, DTYPE, ALIGNED) + first + (offsets + tl.arange(0, 32)[None, :]), mask


@triton.jit
def load_synapses(address, tile, words, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """float32 [T, 32]: elements of a matrix of DTYPE at ``address``; those outside ``words`` are not read."""
    pointers, mask = _access(address, tile, words, DTYPE, ALIGNED)
    return to_float32(tl.load(pointers, mask=mask, other=0), DTYPE)


@triton.jit
def load_more(values, address, tile, words, ALIGNED: tl.constexpr):
    """float32 [T, 32]: ``values``, and of ``words`` what is at ``address``, in float32."""
    pointers, mask = _access(address, tile, words, tl.float32, ALIGNED)
    return tl.load(pointers, mask=mask, other=values)


@triton.jit
def store_synapses(address, tile, words, values, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Rounds ``values`` to DTYPE and stores those of ``words``."""
    pointers, mask = _access(address, tile, words, DTYPE, ALIGNED)
    tl.store(pointers, from_float32(values, DTYPE), mask=mask)


@triton.jit
def store_rounded(address, tile, words, values, moved, mixed, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """As store_synapses, but elements that are not ``moved`` [T, 32] keep their bits, whatever these are.

    They have to be read for that: those of ``mixed``, words as from :func:`groups`.
    """
    pointers, mask = _access(address, tile, words, DTYPE, ALIGNED)
    _, old_mask = _access(address, tile, mixed, DTYPE, ALIGNED)
    old = tl.load(pointers, mask=old_mask, other=0)
    tl.store(pointers, tl.where(moved, from_float32(values, DTYPE), old), mask=mask)


@triton.jit
def source_synapses(source, tile, words, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """float32 [T, 32]: the anchors or flexibilities of a tile.

    ``source`` is (address, seed, stream, offset, purpose, p0, p1), as in :func:`field.source_tile`. KIND is a
    constexpr, as code for all kinds would be several times as long. Of a stored source those outside ``words``
    are not read.
    """
    if KIND == STORED:
        values = load_synapses(source[0], tile, words, tl.float32, ALIGNED)
    else:
        values = computed_rows(source, tile[0] + tile[1].to(tl.int64), KIND, ALIGNED, 32)
    return values


@triton.jit
def load_units(address, units, exists):
    """float32: of an array with an element for each unit, those of ``units``; 0 where there is none."""
    return tl.load(typed(address, tl.float32, False) + units, mask=exists, other=0)
