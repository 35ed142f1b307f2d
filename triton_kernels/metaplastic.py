"""The flexible update (arXiv 2407.07133; DESIGN 1.1): the gate alpha, and the SGD step, one launch for a list."""

# ruff: noqa: ANN001, ANN202 - device functions: Triton infers the types of their arguments

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind
from flexkern.triton_kernels.field import source_row, source_tile
from flexkern.triton_kernels.memory import NUM_WARPS, TILE, full_tiles, load_float32, store_float32
from flexkern.triton_kernels.table import (
    ALPHA,
    ANCHOR,
    FIRST,
    FLEXIBILITY,
    FULL,
    GRAD,
    MASTER,
    MOMENTUM,
    NUMEL,
    WEIGHT,
    Row,
    TableCache,
    computed_source,
    find_row,
    load_source,
    stored_source,
)
from flexkern.triton_kernels.update import gate, number, sgd

__all__ = ["metaplastic_gate", "metaplastic_sgd_"]

# Where alpha comes from, a constexpr of the kernels: only MIXED has the code of procedural fields.
STORED = tl.constexpr(0)  # anchor and flexibility are tensors
MIXED = tl.constexpr(1)  # anchor and flexibility of each tensor are what its row says
HELD = tl.constexpr(2)  # alpha is a tensor

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_tables = TableCache()


@triton.jit
def _step_tile(
    row,
    first,
    numel,
    scale,
    rule,
    anchor,
    flexibility,
    WEIGHT_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    SOURCES: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Steps one tile of a tensor. All loads come before what needs them, so that all are in flight at once."""
    weight_address, grad_address, master_address, momentum_address, alpha_address = row
    HAS_MASTER: tl.constexpr = WEIGHT_DTYPE != tl.float32
    exact_address = master_address if HAS_MASTER else weight_address
    weight = load_float32(exact_address, first, numel, tl.float32, FULL, TILE)
    grad = load_float32(grad_address, first, numel, GRAD_DTYPE, FULL, TILE)
    buffer = weight
    if HAS_MOMENTUM:
        buffer = load_float32(momentum_address, first, numel, tl.float32, FULL, TILE)
    if SOURCES == HELD:
        alpha = load_float32(alpha_address, first, numel, tl.float32, FULL, TILE)
    else:
        if SOURCES == STORED:
            a = load_float32(anchor[1], first, numel, tl.float32, FULL, TILE)
            f = load_float32(flexibility[1], first, numel, tl.float32, FULL, TILE)
        else:
            a = source_tile(anchor, first, numel, FULL, TILE)
            f = source_tile(flexibility, first, numel, FULL, TILE)
        alpha = gate(weight, a, f, scale)
    weight, buffer = sgd(weight, grad, alpha, buffer, rule, HAS_MOMENTUM)
    if HAS_MASTER:
        store_float32(master_address, first, numel, weight, tl.float32, FULL, TILE)
    store_float32(weight_address, first, numel, weight, WEIGHT_DTYPE, FULL, TILE)
    if HAS_MOMENTUM:
        store_float32(momentum_address, first, numel, buffer, tl.float32, FULL, TILE)


@triton.jit(
    do_not_specialize=[
        "table", "tensors", "lr", "lr_address", "scale", "scale_address", "weight_decay", "momentum", "grad_share",
        "sign", "nesterov", "skip_nonfinite",
    ]
)  # fmt: skip
def sgd_kernel(
    table: tl.pointer_type(tl.int64),
    tensors: tl.int32,
    lr: tl.float32,
    lr_address: tl.int64,
    scale: tl.float32,
    scale_address: tl.int64,
    weight_decay: tl.float32,
    momentum: tl.float32,
    grad_share: tl.float32,
    sign: tl.float32,
    nesterov: tl.int32,
    skip_nonfinite: tl.int32,
    WEIGHT_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    SOURCES: tl.constexpr,
    TILE: tl.constexpr,
):
    """One SGD step of all tensors of ``table``, a tile a program."""
    program = tl.program_id(0)
    row = find_row(table, tensors, program)
    tile = program - tl.load(row + FIRST)  # int64
    first = tile * TILE
    numel = tl.load(row + NUMEL)
    full = tl.load(row + FULL)
    addresses = (
        tl.load(row + WEIGHT), tl.load(row + GRAD), tl.load(row + MASTER), tl.load(row + MOMENTUM),
        tl.load(row + ALPHA),
    )  # fmt: skip
    anchor = load_source(row, ANCHOR)
    flexibility = load_source(row, FLEXIBILITY)
    step_scale = number(scale, scale_address)
    rule = (
        number(lr, lr_address), tl.full((), weight_decay, tl.float32), tl.full((), momentum, tl.float32),
        tl.full((), grad_share, tl.float32), tl.full((), sign, tl.float32), nesterov, skip_nonfinite,
    )  # fmt: skip
    if tile < full:
        _step_tile(addresses, first, numel, step_scale, rule, anchor, flexibility,
                   WEIGHT_DTYPE, GRAD_DTYPE, HAS_MOMENTUM, SOURCES, True, TILE)  # fmt: skip
    else:
        _step_tile(addresses, first, numel, step_scale, rule, anchor, flexibility,
                   WEIGHT_DTYPE, GRAD_DTYPE, HAS_MOMENTUM, SOURCES, False, TILE)  # fmt: skip


@triton.jit
def _gate_tile(
    weight, out, first, numel, scale, anchor, flexibility, SOURCES: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr
):
    w = load_float32(weight, first, numel, tl.float32, FULL, TILE)
    if SOURCES == STORED:
        a = load_float32(anchor[1], first, numel, tl.float32, FULL, TILE)
        f = load_float32(flexibility[1], first, numel, tl.float32, FULL, TILE)
    else:
        a = source_tile(anchor, first, numel, FULL, TILE)
        f = source_tile(flexibility, first, numel, FULL, TILE)
    store_float32(out, first, numel, gate(w, a, f, scale), tl.float32, FULL, TILE)


@triton.jit(
    do_not_specialize=[
        "weight", "out", "numel", "full", "scale", "scale_address",
        "a_kind", "a_address", "a_seed", "a_stream", "a_offset", "a_purpose", "a_p0", "a_p1",
        "f_kind", "f_address", "f_seed", "f_stream", "f_offset", "f_purpose", "f_p0", "f_p1",
    ]
)  # fmt: skip
def gate_kernel(
    weight: tl.int64,
    out: tl.int64,
    numel: tl.int64,
    full: tl.int64,
    scale: tl.float32,
    scale_address: tl.int64,
    a_kind: tl.int64,
    a_address: tl.int64,
    a_seed: tl.int64,
    a_stream: tl.int64,
    a_offset: tl.int64,
    a_purpose: tl.int64,
    a_p0: tl.float32,
    a_p1: tl.float32,
    f_kind: tl.int64,
    f_address: tl.int64,
    f_seed: tl.int64,
    f_stream: tl.int64,
    f_offset: tl.int64,
    f_purpose: tl.int64,
    f_p0: tl.float32,
    f_p1: tl.float32,
    SOURCES: tl.constexpr,
    TILE: tl.constexpr,
):
    """alpha of one tensor, a tile a program; a_* is the source of its anchor and f_* of its flexibility."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    step_scale = number(scale, scale_address)
    anchor = (a_kind, a_address, a_seed, a_stream, a_offset, a_purpose,
              tl.full((), a_p0, tl.float32), tl.full((), a_p1, tl.float32))  # fmt: skip
    flexibility = (f_kind, f_address, f_seed, f_stream, f_offset, f_purpose,
                   tl.full((), f_p0, tl.float32), tl.full((), f_p1, tl.float32))  # fmt: skip
    if tile < full:
        _gate_tile(weight, out, first, numel, step_scale, anchor, flexibility, SOURCES, True, TILE)
    else:
        _gate_tile(weight, out, first, numel, step_scale, anchor, flexibility, SOURCES, False, TILE)


# --------------------------------------------------------------------------- the host's side


def _check(tensors: Sequence[Tensor], name: str, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
    """The kernels address memory by number, so all that they rely on is checked here, as in the compiled operators."""
    if len(tensors) != len(weights):
        raise ValueError(f"{name} has {len(tensors)} tensors but weight has {len(weights)}")
    device = weights[0].device
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.numel() != weight.numel():
            raise ValueError(f"{name} has {tensor.numel()} elements but weight has {weight.numel()}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on the device of weight, {device}, got {tensor.device}")


def _is_stored(sources: Sequence[int]) -> bool:
    return all(kind == Kind.STORED for kind in sources[::SOURCE_INTS])


def _sources(
    stored: Sequence[Tensor], name: str, weights: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float]
) -> list[list[int]]:
    """The columns of each weight's source; ``sources`` and ``parameters`` are those of this name only."""
    count = len(weights)
    if sources and (len(sources) != SOURCE_INTS * count or len(parameters) != SOURCE_FLOATS * count):
        raise ValueError(f"sources and parameters need a row for the {name} of each weight")
    kinds = sources[::SOURCE_INTS] or [int(Kind.STORED)] * count
    _check(stored, name, [w for w, kind in zip(weights, kinds, strict=True) if kind == Kind.STORED], torch.float32)
    remaining = iter(stored)
    columns = []
    for i, kind in enumerate(kinds):
        if kind == Kind.STORED:
            columns.append(stored_source(next(remaining).data_ptr()))
        else:
            ints = sources[SOURCE_INTS * i : SOURCE_INTS * (i + 1)]
            floats = parameters[SOURCE_FLOATS * i : SOURCE_FLOATS * (i + 1)]
            columns.append(computed_source(*source_row(ints, floats)))
    return columns


def _address(tensor: Tensor | None, name: str, weight: Tensor) -> int:
    """Where the kernel reads lr or scale, 0 where it is a number."""
    if tensor is None:
        return 0
    if tensor.numel() != 1 or tensor.dtype is not torch.float32:
        raise ValueError(f"{name} must be one float32 element, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.data_ptr() if tensor.device == weight.device else 0


def _value(value: float, tensor: Tensor | None, weight: Tensor) -> float:
    # A CPU tensor beside weights on a GPU is read here; one on the device is read by the kernel.
    return tensor.item() if tensor is not None and tensor.device != weight.device else float(value)
