"""The template of an operator in Triton (docs/design.md, How to add)."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.triton_kernels.arguments import check_tensors
from flexkern.triton_kernels.memory import full_tiles, load_float32, store_float32
from flexkern.triton_kernels.variant import Variant

__all__ = ["null"]

TILE = 1024  # elements of a program of 128 threads: two 16-byte accesses each


@triton.jit(do_not_specialize=["x", "out", "numel", "full", "factor"])
def null_kernel(
    x: tl.int64, out: tl.int64, numel: tl.int64, full: tl.int64, factor: tl.float32, TILE: tl.constexpr
):
    """``full`` tiles, aligned ones, go without a mask."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    if tile < full:
        values = load_float32(x, first, numel, tl.float32, True, TILE)
        store_float32(out, first, numel, values * factor, tl.float32, True, TILE)
    else:
        values = load_float32(x, first, numel, tl.float32, False, TILE)
        store_float32(out, first, numel, values * factor, tl.float32, False, TILE)


def null(x: Tensor, factor: float) -> Tensor:
    """The Triton implementation of ``flexkern::null``.

    Raises:
        TypeError: if ``x`` is not float32.
    """
    check_tensors([x], "x", [x], torch.float32)
    out = torch.empty_like(x)
    if x.numel():
        full = full_tiles([x.data_ptr(), out.data_ptr()], x.numel(), TILE)
        with torch.cuda.device_of(x):
            null_kernel[(triton.cdiv(x.numel(), TILE),)](
                x.data_ptr(), out.data_ptr(), x.numel(), full, factor, TILE, num_warps=4, enable_fp_fusion=False
            )
    return out


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    yield Variant("null", null_kernel, {"TILE": TILE}, options={"num_warps": 4})
