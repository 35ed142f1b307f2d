"""The scaled displacement (docs/design.md): the step of any optimizer, scaled by the gate at its beginning."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.fields import SOURCE_INTS, Kind
from flexkern.spec.displacement import ScaleDisplacement
from flexkern.triton_kernels.arguments import check_sources, check_tensors, device_number
from flexkern.triton_kernels.field import stored_tile
from flexkern.triton_kernels.memory import from_float32, load_float32, store_float32, to_float32
from flexkern.triton_kernels.metaplastic import HELD, MIXED, STORED, TRITON_DTYPES, tile_alpha
from flexkern.triton_kernels.table import NOTHING, Row, TableCache, load_row, source_columns
from flexkern.triton_kernels.update import finite, number
from flexkern.triton_kernels.variant import Variant

__all__ = ["scale_displacement_"]

_VARIANTS = {STORED.value: "stored", MIXED.value: "mixed", HELD.value: "held"}  # in the tuning table
_tables = TableCache()


@triton.jit
def _rounded(values, DTYPE: tl.constexpr):
    """``values`` rounded to DTYPE, in float32."""
    return to_float32(from_float32(values, DTYPE), DTYPE)


@triton.jit
def _load_tile(
    addresses,
    anchor,
    flexibility,
    first,
    numel,
    WEIGHT_DTYPE: tl.constexpr,
    SOURCES: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """weight, w0, the master (w0 where there is none), alpha or anchor, and flexibility (w0: there is none)."""
    weight_address, before_address, master_address, alpha_address, _, _, _ = addresses
    weight = load_float32(weight_address, first, numel, WEIGHT_DTYPE, FULL, TILE)
    before = load_float32(before_address, first, numel, WEIGHT_DTYPE, FULL, TILE)
    master, f = before, before
    if WEIGHT_DTYPE != tl.float32:
        master = load_float32(master_address, first, numel, tl.float32, FULL, TILE)
    if SOURCES == HELD:
        alpha_or_a = load_float32(alpha_address, first, numel, tl.float32, FULL, TILE)
    else:
        alpha_or_a = stored_tile(anchor, first, numel, SOURCES == MIXED, FULL, TILE)
        f = stored_tile(flexibility, first, numel, SOURCES == MIXED, FULL, TILE)
    return weight, before, master, alpha_or_a, f


@triton.jit
def _store_tile(
    addresses, first, numel, weight, master, WEIGHT_DTYPE: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr
):
    weight_address, _, master_address, _, _, _, _ = addresses
    if WEIGHT_DTYPE != tl.float32:
        store_float32(master_address, first, numel, master, tl.float32, FULL, TILE)
    store_float32(weight_address, first, numel, weight, WEIGHT_DTYPE, FULL, TILE)


@triton.jit(do_not_specialize=["table", "tensors", "scale", "scale_address", "skip_nonfinite"])
def displacement_kernel(
    table: tl.pointer_type(tl.int64),
    tensors: tl.int32,
    scale: tl.float32,
    scale_address: tl.int64,
    skip_nonfinite: tl.int32,
    WEIGHT_DTYPE: tl.constexpr,
    SOURCES: tl.constexpr,
    TILE: tl.constexpr,
):
    """All tensors of ``table``, one tile for each program; `before` stands in the place of the gradient."""
    tile, numel, full, addresses, anchor, flexibility, _ = load_row(table, tensors)
    first = tile * TILE
    gate_scale = number(scale, scale_address)
    # Loads and stores are there twice, with and without a mask, and nothing else: see metaplastic.step_kernel.
    if tile < full:
        weight, before, exact, alpha_or_a, f = _load_tile(
            addresses, anchor, flexibility, first, numel, WEIGHT_DTYPE, SOURCES, True, TILE
        )
    else:
        weight, before, exact, alpha_or_a, f = _load_tile(
            addresses, anchor, flexibility, first, numel, WEIGHT_DTYPE, SOURCES, False, TILE
        )
    if WEIGHT_DTYPE != tl.float32:
        # The master, unless its rounding is not w0, to the bit: then somebody wrote the weight.
        rounding = _rounded(exact, WEIGHT_DTYPE).to(tl.int32, bitcast=True)
        exact = tl.where(rounding == before.to(tl.int32, bitcast=True), exact, before)
    alpha = tile_alpha(exact, alpha_or_a, f, anchor, flexibility, first, gate_scale, SOURCES, TILE)
    # Selected where alpha is 0 or 1: w0 + (w - w0) is not always w, and a w that is not finite makes NaN of
    # 0 (w - w0).
    new = tl.where(alpha == 1, weight, exact + alpha * (weight - before))
    new = tl.where(alpha == 0, exact, new)
    moved = (skip_nonfinite == 0) | finite(_rounded(new, WEIGHT_DTYPE))
    new_weight, new_master = tl.where(moved, new, before), tl.where(moved, new, exact)
    if tile < full:
        _store_tile(addresses, first, numel, new_weight, new_master, WEIGHT_DTYPE, True, TILE)
    else:
        _store_tile(addresses, first, numel, new_weight, new_master, WEIGHT_DTYPE, False, TILE)


# --------------------------------------------------------------------------- the host's side


def _rows(given: ScaleDisplacement) -> list[Row]:
    """The table's rows, after the checks of all that the kernel addresses.

    Raises:
        TypeError, ValueError: if the tensors do not fit together.
    """
    weight = given.weight
    dtype = weight[0].dtype
    if dtype not in TRITON_DTYPES:
        raise TypeError(f"weight must be one of {[str(d) for d in TRITON_DTYPES]}, got {dtype}")
    check_tensors(weight, "weight", weight, dtype)
    check_tensors(given.before, "before", weight, dtype)
    check_tensors(given.master, "master", [] if dtype is torch.float32 else weight, torch.float32)
    a = f = [NOTHING] * len(weight)
    if given.alpha:
        check_tensors(given.alpha, "alpha", weight, torch.float32)
    else:
        i, j = len(given.sources) // 2, len(given.parameters) // 2
        halves = (given.sources[:i], given.parameters[:j]), (given.sources[i:], given.parameters[j:])
        check_sources(given.anchor, "anchor", weight, *halves[0])
        check_sources(given.flexibility, "flexibility", weight, *halves[1])
        a = source_columns(given.anchor, weight, *halves[0])
        f = source_columns(given.flexibility, weight, *halves[1])
    given.check_dtypes()
    given.check_memory()
    arrays = (weight, given.before, given.master, given.alpha)
    addresses = [[t.data_ptr() for t in tensors] or [0] * len(weight) for tensors in arrays]
    columns = zip(map(Tensor.numel, weight), zip(*addresses, strict=True), a, f, strict=True)
    return [Row(n, list(at), a_i, f_i) for n, at, a_i, f_i in columns if n]


def scale_displacement_(given: ScaleDisplacement) -> None:
    """The Triton implementation of ``flexkern::scale_displacement_``: one launch for all weights.

    Never waits for the device, and can be captured in a CUDA graph: see :class:`.table.TableCache`.

    Raises:
        TypeError, ValueError: if the tensors do not fit together; nothing has been changed then.
    """
    weight = given.weight
    if not weight:
        return
    scale, address = device_number(given.scale, given.scale_tensor, "scale_tensor", weight[0])
    # All that the checks and the table look at, so both are done once for calls on the same tensors.
    lists = (weight, given.before, given.master, given.alpha, given.anchor, given.flexibility)
    tensors = [t for of_name in lists for t in of_name]
    key = (
        weight[0].device, *map(len, lists),
        *((t.dtype, t.is_contiguous(), t.data_ptr(), t.numel()) for t in tensors),
        *given.sources, *given.parameters,
    )  # fmt: skip
    stored = all(kind == Kind.STORED for kind in given.sources[::SOURCE_INTS])
    mode = HELD.value if given.alpha else STORED.value if stored else MIXED.value
    cut = config("displacement", _VARIANTS[mode], architecture(weight[0].device))
    tile = cut["tile"]
    with torch.cuda.device_of(weight[0]):
        table = _tables.get((tile, *key), weight[0].device, lambda: _rows(given), tile)
        if table.programs == 0:
            return
        displacement_kernel[(table.programs,)](
            table.data, table.tensors, scale, address, int(given.skip_nonfinite),
            TRITON_DTYPES[weight[0].dtype], mode, tile, **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip


# --------------------------------------------------------------------------- ahead of time, and tuning


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    for dtype, (mode, name) in product(TRITON_DTYPES.values(), _VARIANTS.items()):
        constants = {"WEIGHT_DTYPE": dtype, "SOURCES": mode}
        yield Variant(f"displacement-{name}-{dtype}", displacement_kernel, constants, ("displacement", name))
