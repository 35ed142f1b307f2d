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
    weight = load_float32(exact_address, first, numel, True, tl.float32, FULL, TILE)
    grad = load_float32(grad_address, first, numel, True, GRAD_DTYPE, FULL, TILE)
    buffer = weight
    if HAS_MOMENTUM:
        buffer = load_float32(momentum_address, first, numel, True, tl.float32, FULL, TILE)
    if SOURCES == HELD:
        alpha = load_float32(alpha_address, first, numel, True, tl.float32, FULL, TILE)
    else:
        if SOURCES == STORED:
            a = load_float32(anchor[1], first, numel, True, tl.float32, FULL, TILE)
            f = load_float32(flexibility[1], first, numel, True, tl.float32, FULL, TILE)
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
    w = load_float32(weight, first, numel, True, tl.float32, FULL, TILE)
    if SOURCES == STORED:
        a = load_float32(anchor[1], first, numel, True, tl.float32, FULL, TILE)
        f = load_float32(flexibility[1], first, numel, True, tl.float32, FULL, TILE)
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
        raise ValueError(f"{name} has {len(tensors)} tensors but there are {len(weights)} weights that need one")
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.numel() != weight.numel():
            raise ValueError(f"{name} has {tensor.numel()} elements but weight has {weight.numel()}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.device != weights[0].device:
            raise ValueError(f"{name} must be on the device of weight, {weights[0].device}, got {tensor.device}")


def _check_sources(
    stored: Sequence[Tensor], name: str, weights: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float]
) -> None:
    """``sources`` and ``parameters`` are those of this name only."""
    if sources:
        if (len(sources), len(parameters)) != (SOURCE_INTS * len(weights), SOURCE_FLOATS * len(weights)):
            raise ValueError(f"sources and parameters need a row for the {name} of each weight")
        weights = [w for w, kind in zip(weights, sources[::SOURCE_INTS], strict=True) if kind == Kind.STORED]
    _check(stored, name, weights, torch.float32)


def _columns(
    stored: Sequence[Tensor], count: int, sources: Sequence[int], parameters: Sequence[float]
) -> list[list[int]]:
    """The table's columns of each weight's source."""
    remaining = iter(stored)
    columns = []
    for i in range(count):
        ints = sources[SOURCE_INTS * i : SOURCE_INTS * (i + 1)]
        if not ints or ints[0] == Kind.STORED:
            columns.append(stored_source(next(remaining).data_ptr()))
        else:
            columns.append(computed_source(*source_row(ints, parameters[SOURCE_FLOATS * i : SOURCE_FLOATS * (i + 1)])))
    return columns


def _mode(sources: Sequence[int]) -> int:
    return STORED.value if all(kind == Kind.STORED for kind in sources[::SOURCE_INTS]) else MIXED.value


def _number(value: float, tensor: Tensor | None, name: str, weight: Tensor) -> tuple[float, int]:
    """lr or scale as a number, and the address that the kernel reads it from where it is a tensor on the device."""
    if tensor is None:
        return float(value), 0
    if tensor.numel() != 1 or tensor.dtype is not torch.float32:
        raise ValueError(f"{name} must be one float32 element, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    if tensor.device == weight.device:
        return 0.0, tensor.data_ptr()
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on {weight.device} or the CPU, got {tensor.device}")
    return tensor.item(), 0


def _rows(
    weight: Sequence[Tensor],
    grad: Sequence[Tensor],
    master: Sequence[Tensor],
    momentum_buffer: Sequence[Tensor],
    alpha: Sequence[Tensor],
    anchors: list[list[int]],
    flexibilities: list[list[int]],
) -> list[Row]:
    def address(tensors: Sequence[Tensor], i: int) -> int:
        return tensors[i].data_ptr() if tensors else 0

    constant_one = computed_source([int(Kind.CONSTANT), 0, 0, 0, 0], [1.0, 0.0])
    constant_zero = computed_source([int(Kind.CONSTANT), 0, 0, 0, 0], [0.0, 0.0])
    rows = []
    for i, w in enumerate(weight):
        a, f = anchors[i], flexibilities[i]
        # A weight with f = 1 moves freely: |w - a| is multiplied by 0, so its anchor is neither read nor drawn.
        a = constant_zero if [f[0], f[6]] == [constant_one[0], constant_one[6]] else a
        if w.numel():
            rows.append(
                Row(w.data_ptr(), grad[i].data_ptr(), address(master, i), address(momentum_buffer, i),
                    address(alpha, i), w.numel(), a, f)
            )  # fmt: skip
    return rows


def metaplastic_sgd_(
    weight: Sequence[Tensor],
    grad: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    alpha: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    scale: float,
    scale_tensor: Tensor | None,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    skip_nonfinite: bool,
) -> None:
    """The Triton implementation of ``flexkern::metaplastic_sgd_``: one launch for all weights.

    Weights share dtype and device; bfloat16 and float16 ones have a float32 master. Never waits for the device, and
    can be captured in a CUDA graph (:class:`flexkern.triton_kernels.table.TableCache` says what is promised).

    Raises:
        TypeError, ValueError: if the tensors do not fit together; nothing has been changed then.
    """
    if not weight:
        return
    w_dtype, g_dtype = weight[0].dtype, grad[0].dtype if grad else None
    if w_dtype not in TRITON_DTYPES:
        raise TypeError(f"weight must be one of {[str(d) for d in TRITON_DTYPES]}, got {w_dtype}")
    if g_dtype not in (w_dtype, torch.float32):
        raise TypeError(f"grad must be {w_dtype} or torch.float32, got {g_dtype}")
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    _check(weight, "weight", weight, w_dtype)
    _check(grad, "grad", weight, g_dtype)
    _check(master, "master", [] if w_dtype is torch.float32 else weight, torch.float32)
    _check(momentum_buffer, "momentum_buffer", weight if momentum_buffer else [], torch.float32)
    if alpha:
        _check(alpha, "alpha", weight, torch.float32)
    else:
        _check_sources(anchor, "anchor", weight, sources[:half_ints], parameters[:half_floats])
        _check_sources(flexibility, "flexibility", weight, sources[half_ints:], parameters[half_floats:])
    lr_number, lr_address = _number(lr, lr_tensor, "lr_tensor", weight[0])
    scale_number, scale_address = _number(scale, scale_tensor, "scale_tensor", weight[0])
    numels = [w.numel() for w in weight]
    if not any(numels):
        return

    def rows() -> list[Row]:
        from flexkern.ops._checks import check_memory  # at run time: flexkern.ops imports this package

        check_memory([*weight, *momentum_buffer, *master], [*grad, *anchor, *flexibility, *alpha])
        none = [stored_source(0)] * len(weight)
        anchors = none if alpha else _columns(anchor, len(weight), sources[:half_ints], parameters[:half_floats])
        flexibilities = (
            none if alpha else _columns(flexibility, len(weight), sources[half_ints:], parameters[half_floats:])
        )
        return _rows(weight, grad, master, momentum_buffer, alpha, anchors, flexibilities)

    # All that the table says and that its check has seen: it is checked and copied once for steps on the same tensors.
    lists = (weight, grad, master, momentum_buffer, alpha, anchor, flexibility)
    key = (
        weight[0].device, w_dtype, g_dtype, *map(len, lists), *numels, *sources, *parameters,
        *[t.data_ptr() for tensors in lists for t in tensors],
    )  # fmt: skip
    with torch.cuda.device_of(weight[0]):
        table = _tables.get(key, weight[0].device, rows)
        sgd_kernel[(table.programs,)](
            table.rows, table.tensors, lr_number, lr_address, scale_number, scale_address, float(weight_decay),
            float(momentum), 1.0 - dampening, -1.0 if maximize else 1.0, int(nesterov), int(skip_nonfinite),
            TRITON_DTYPES[w_dtype], TRITON_DTYPES[g_dtype], bool(momentum_buffer),
            HELD.value if alpha else _mode(sources), TILE, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def metaplastic_gate(
    weight: Tensor,
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    scale: float,
    scale_tensor: Tensor | None,
) -> Tensor:
    """The Triton implementation of ``flexkern::metaplastic_gate``: alpha of a float32 weight.

    Raises:
        TypeError, ValueError: if the tensors do not fit together.
    """
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    _check([weight], "weight", [weight], torch.float32)
    _check_sources(anchor, "anchor", [weight], sources[:half_ints], parameters[:half_floats])
    _check_sources(flexibility, "flexibility", [weight], sources[half_ints:], parameters[half_floats:])
    a = _gate_source(anchor, sources[:half_ints], parameters[:half_floats])
    f = _gate_source(flexibility, sources[half_ints:], parameters[half_floats:])
    number, address = _number(scale, scale_tensor, "scale_tensor", weight)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    numel = weight.numel()
    if numel == 0:
        return out
    full = full_tiles([weight.data_ptr(), out.data_ptr(), a[1], f[1]], numel)
    with torch.cuda.device_of(weight):
        gate_kernel[(triton.cdiv(numel, TILE),)](
            weight.data_ptr(), out.data_ptr(), numel, full, number, address, *a, *f, _mode(sources), TILE,
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _gate_source(stored: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float]) -> tuple:
    """kind, address, seed, stream, offset, purpose, p0, p1."""
    if stored:
        return (int(Kind.STORED), stored[0].data_ptr(), 0, 0, 0, 0, 0.0, 0.0)
    (kind, *position), floats = source_row(sources, parameters)
    return (kind, 0, *position, *floats)
