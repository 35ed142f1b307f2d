"""A part of a tile of linear_step_: half of its rows, one word of each; and what happens to it.

A tile's ``position`` is (row, column, rows, columns): where it begins, and the size of the whole weight.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.triton_kernels.matrix import existing, groups, load_synapses, load_units
from flexkern.triton_kernels.product import IN
from flexkern.triton_kernels.synapse_tile import activity, find_converting, load_state, load_theta, step_tile

__all__ = ["converting_of", "load_silent", "part_of", "rate_of", "step_part", "tile_at"]


@triton.jit
def tile_at(program, rows, columns, GROUP: tl.constexpr, OUT: tl.constexpr):
    """Where the tile [OUT, IN] of a program begins: (row, column), as wide as ``rows``.

    Tiles go in groups of GROUP rows of tiles, so that what is read of x and grad_out stays in the L2 cache.
    """
    tile_rows, tile_columns = (rows + OUT - 1) // OUT, (columns + IN - 1) // IN
    group = program // (GROUP * tile_columns)
    within = program - group * (GROUP * tile_columns)
    height = tl.minimum(tile_rows - group * GROUP, GROUP)
    tile_column = within // height
    return (group * GROUP + within - tile_column * height) * OUT, tile_column * IN


@triton.jit
def part_of(part, position, OUT: tl.constexpr):
    """Part ``part`` of the tile that begins at ``position``, which is (row, column, rows, columns)."""
    row, column, rows, columns = position
    i = tl.arange(0, OUT // 2)
    down = (i // 8) * 16 + i % 8 + (part % 2) * 8
    first_column = column + (part // 2) * 32
    row_of = row + down
    column_of = tl.zeros((OUT // 2,), tl.int64) + first_column
    offsets = (down * columns.to(tl.int32))[:, None]
    return row * columns + first_column, offsets, row_of, column_of, existing(column_of, columns, row_of < rows)


@triton.jit
def _words(silent, tile, columns):
    """Pointers to the words of a tile."""
    return silent.to(tl.int64).to(tl.pointer_type(tl.uint32)) + (
        tile[2] * ((columns + 31) // 32) + tile[3] // 32
    )


@triton.jit
def load_silent(silent, tile, columns):
    return tl.load(_words(silent, tile, columns), mask=tile[4] != 0, other=0) & tile[4]


@triton.jit
def converting_of(
    c,
    part,
    position,
    silent,
    threshold,
    insertion,
    INSERTS_C: tl.constexpr,
    ALIGNED: tl.constexpr,
    OUT: tl.constexpr,
):
    """The synapses of a part that convert, by its coincidence ``c``."""
    tile = part_of(part, position, OUT)
    anchor_address, eta = insertion
    theta = load_theta(tile[2], tile[4] != 0, threshold)
    return find_converting(
        c, theta, load_silent(silent, tile, position[3]), tile, anchor_address, eta, INSERTS_C, ALIGNED
    )


@triton.jit
def rate_of(pre, post, part, position, silent, ALIGNED: tl.constexpr, OUT: tl.constexpr):
    """The coincidences of a part by the rate rule, where synapses are silent."""
    tile = part_of(part, position, OUT)
    was_silent = groups(load_silent(silent, tile, position[3]), ALIGNED)
    pre_tile = (position[1] + (part // 2) * 32, tl.zeros((OUT // 2, 1), tl.int32))
    pre_values = activity(load_synapses(pre, pre_tile, was_silent, tl.float32, ALIGNED))
    return activity(load_units(post, tile[2], tile[4] != 0))[:, None] * pre_values


@triton.jit
def step_part(
    grad,
    converting,
    part,
    position,
    state,
    scale,
    rule,
    anchor,
    flexibility,
    prune,
    WEIGHT_DTYPE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    F_KIND: tl.constexpr,
    SILENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    OUT: tl.constexpr,
):
    """Steps a part. Its silent synapses are read again, so that no register holds them until now."""
    weight, master, alpha, state0, state1, state2, silent, counts = state
    tile = part_of(part, position, OUT)
    was_silent = tl.zeros((OUT // 2,), tl.uint32)
    if SILENT:
        was_silent = load_silent(silent, tile, position[3])
    touched = groups((tile[4] & ~was_silent) | converting, ALIGNED)
    counts_of = counts.to(tl.int64).to(tl.pointer_type(tl.int32)) + tile[2]
    addresses = (weight, master, alpha, state0, state1, state2, _words(silent, tile, position[3]), counts_of)
    loaded = load_state(
        tile, touched, addresses, anchor, flexibility, WEIGHT_DTYPE, STATES, HELD, A_KIND, F_KIND, ALIGNED
    )
    step_tile(tile, grad, was_silent, converting, touched, loaded, addresses, scale, rule, anchor, prune,
              position[2], WEIGHT_DTYPE, RULE, STATES, HELD, A_KIND, SILENT, ALIGNED)  # fmt: skip
