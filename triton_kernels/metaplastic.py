"""The flexible update (arXiv 2407.07133; docs/design.md): the gate alpha, and one step of a list of tensors."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.fields import SOURCE_INTS, Kind
from flexkern.spec.metaplastic import Step
from flexkern.triton_kernels.arguments import check_counts, check_sources, check_tensors, device_number
from flexkern.triton_kernels.field import Source, computed_source, source_tile, stored_tile
from flexkern.triton_kernels.memory import TILES, exact_weight, full_tiles, load_float32, store_float32
from flexkern.triton_kernels.rules import VARIANTS, counted, rule_numbers, rule_of, state_bits
from flexkern.triton_kernels.table import NOTHING, Row, TableCache, load_row, source_columns
from flexkern.triton_kernels.update import gate, number, step
from flexkern.triton_kernels.variant import Variant

__all__ = ["metaplastic_gate", "metaplastic_step_", "tile_alpha"]

# Where alpha comes from, a constexpr of the kernels: only MIXED has the code of procedural fields.
STORED = tl.constexpr(0)  # anchor and flexibility are tensors
MIXED = tl.constexpr(1)  # anchor and flexibility of each tensor are what its row says
HELD = tl.constexpr(2)  # alpha is a tensor

_VARIANTS = {STORED.value: "stored", MIXED.value: "mixed", HELD.value: "held"}  # in the tuning table
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_tables = TableCache()


@triton.jit
def tile_alpha(
    weight, alpha_or_a, f, anchor, flexibility, first, scale, SOURCES: tl.constexpr, TILE: tl.constexpr
):
    """alpha of a tile, from what was read of it, and what is not stored drawn."""
    alpha = alpha_or_a
    if SOURCES != HELD:
        a = alpha_or_a
        if SOURCES == MIXED:
            a = source_tile(anchor, a, first, TILE)
            f = source_tile(flexibility, f, first, TILE)
        alpha = gate(weight, a, f, scale)
    return alpha


@triton.jit
def _load_tile(
    addresses,
    anchor,
    flexibility,
    first,
    numel,
    WEIGHT_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATES: tl.constexpr,
    SOURCES: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """All that a step reads of a tile: exact weight, as written, gradient, states, alpha or anchor,
    flexibility. What there is not is the weight, and never looked at."""
    weight_address, grad_address, master_address, alpha_address, at0, at1, at2 = addresses
    HAS_MASTER: tl.constexpr = WEIGHT_DTYPE != tl.float32
    exact_address = master_address if HAS_MASTER else weight_address
    exact = load_float32(exact_address, first, numel, tl.float32, FULL, TILE)
    written, s0, s1, s2, f = exact, exact, exact, exact, exact
    if HAS_MASTER:
        written = load_float32(weight_address, first, numel, WEIGHT_DTYPE, FULL, TILE)
    grad = load_float32(grad_address, first, numel, GRAD_DTYPE, FULL, TILE)
    if STATES & 1:
        s0 = load_float32(at0, first, numel, tl.float32, FULL, TILE)
    if STATES & 2:
        s1 = load_float32(at1, first, numel, tl.float32, FULL, TILE)
    if STATES & 4:
        s2 = load_float32(at2, first, numel, tl.float32, FULL, TILE)
    if SOURCES == HELD:
        alpha_or_a = tl.full((TILE,), 1.0, tl.float32)
        if alpha_address != 0:  # else this weight moves freely
            alpha_or_a = load_float32(alpha_address, first, numel, tl.float32, FULL, TILE)
    else:
        alpha_or_a = stored_tile(anchor, first, numel, SOURCES == MIXED, FULL, TILE)
        f = stored_tile(flexibility, first, numel, SOURCES == MIXED, FULL, TILE)
    return exact, written, grad, s0, s1, s2, alpha_or_a, f


@triton.jit
def _store_tile(
    addresses,
    first,
    numel,
    weight,
    s0,
    s1,
    s2,
    WEIGHT_DTYPE: tl.constexpr,
    STATES: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    weight_address, _, master_address, _, at0, at1, at2 = addresses
    if WEIGHT_DTYPE != tl.float32:
        store_float32(master_address, first, numel, weight, tl.float32, FULL, TILE)
    store_float32(weight_address, first, numel, weight, WEIGHT_DTYPE, FULL, TILE)
    if STATES & 1:
        store_float32(at0, first, numel, s0, tl.float32, FULL, TILE)
    if STATES & 2:
        store_float32(at1, first, numel, s1, tl.float32, FULL, TILE)
    if STATES & 4:
        store_float32(at2, first, numel, s2, tl.float32, FULL, TILE)


@triton.jit(
    do_not_specialize=[
        "table", "tensors", "lr", "lr_address", "scale", "scale_address",
        "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "skip_nonfinite",
    ]
)  # fmt: skip
def step_kernel(
    table: tl.pointer_type(tl.int64),
    tensors: tl.int32,
    lr: tl.float32,
    lr_address: tl.int64,
    scale: tl.float32,
    scale_address: tl.int64,
    n0: tl.float32,
    n1: tl.float32,
    n2: tl.float32,
    n3: tl.float32,
    n4: tl.float32,
    n5: tl.float32,
    n6: tl.float32,
    n7: tl.float32,
    skip_nonfinite: tl.int32,
    WEIGHT_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    SOURCES: tl.constexpr,
    TILE: tl.constexpr,
):
    """One step of all tensors of ``table``, one tile for each program."""
    tile, numel, full, addresses, anchor, flexibility, count = load_row(table, tensors)
    first = tile * TILE
    step_scale = number(scale, scale_address)
    numbers = (n0, n1, n2, n3, n4, n5, n6, n7)
    lr_now, corrections = number(lr, lr_address), counted(count, numbers, RULE)
    # All loads come before what needs them, so that all are in flight at once. They and the stores are there
    # twice, with and without a mask, and nothing else: code that draws fields is long, and compiled for long.
    if tile < full:
        weight, written, grad, s0, s1, s2, alpha_or_a, f = _load_tile(
            addresses, anchor, flexibility, first, numel, WEIGHT_DTYPE, GRAD_DTYPE, STATES, SOURCES, True, TILE
        )
    else:
        weight, written, grad, s0, s1, s2, alpha_or_a, f = _load_tile(
            addresses, anchor, flexibility, first, numel, WEIGHT_DTYPE, GRAD_DTYPE, STATES, SOURCES, False, TILE
        )
    if WEIGHT_DTYPE != tl.float32:
        weight = exact_weight(written, weight, WEIGHT_DTYPE)
    alpha = tile_alpha(weight, alpha_or_a, f, anchor, flexibility, first, step_scale, SOURCES, TILE)
    weight, s0, s1, s2 = step(
        weight, grad, alpha, s0, s1, s2, lr_now, numbers, corrections, skip_nonfinite, RULE, STATES
    )
    if tile < full:
        _store_tile(addresses, first, numel, weight, s0, s1, s2, WEIGHT_DTYPE, STATES, True, TILE)
    else:
        _store_tile(addresses, first, numel, weight, s0, s1, s2, WEIGHT_DTYPE, STATES, False, TILE)


@triton.jit
def _load_gate_tile(
    weight, anchor, flexibility, first, numel, SOURCES: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr
):
    w = load_float32(weight, first, numel, tl.float32, FULL, TILE)
    a = stored_tile(anchor, first, numel, SOURCES == MIXED, FULL, TILE)
    f = stored_tile(flexibility, first, numel, SOURCES == MIXED, FULL, TILE)
    return w, a, f


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
    """alpha of one tensor, one tile for each program; a_* is the source of its anchor, f_* of its
    flexibility."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    step_scale = number(scale, scale_address)
    anchor = (a_kind, a_address, a_seed, a_stream, a_offset, a_purpose,
              tl.full((), a_p0, tl.float32), tl.full((), a_p1, tl.float32))  # fmt: skip
    flexibility = (f_kind, f_address, f_seed, f_stream, f_offset, f_purpose,
                   tl.full((), f_p0, tl.float32), tl.full((), f_p1, tl.float32))  # fmt: skip
    if tile < full:
        w, a, f = _load_gate_tile(weight, anchor, flexibility, first, numel, SOURCES, True, TILE)
    else:
        w, a, f = _load_gate_tile(weight, anchor, flexibility, first, numel, SOURCES, False, TILE)
    alpha = tile_alpha(w, a, f, anchor, flexibility, first, step_scale, SOURCES, TILE)
    if tile < full:
        store_float32(out, first, numel, alpha, tl.float32, True, TILE)
    else:
        store_float32(out, first, numel, alpha, tl.float32, False, TILE)


# --------------------------------------------------------------------------- the host's side


def _mode(sources: Sequence[int]) -> int:
    stored = all(kind == Kind.STORED for kind in sources[::SOURCE_INTS])
    return STORED.value if stored else MIXED.value


def _check_step(given: Step) -> None:
    weight, grad = given.weight, given.grad
    w_dtype, g_dtype = weight[0].dtype, grad[0].dtype if grad else None
    if w_dtype not in TRITON_DTYPES:
        raise TypeError(f"weight must be one of {[str(d) for d in TRITON_DTYPES]}, got {w_dtype}")
    if g_dtype not in (w_dtype, torch.float32):
        raise TypeError(f"grad must be {w_dtype} or torch.float32, got {g_dtype}")
    check_tensors(weight, "weight", weight, w_dtype)
    check_tensors(grad, "grad", weight, g_dtype)
    check_tensors(given.master, "master", [] if w_dtype is torch.float32 else weight, torch.float32)
    for name, state in zip(type(given.rule).STATES, given.states, strict=True):
        check_tensors(state, name, weight if state else [], torch.float32)
    if type(given.rule).COUNTS_STEPS:
        check_counts(given.step, weight)
    if given.alpha:
        stored = [
            (alpha, w) for alpha, w in zip(given.alpha, weight, strict=True) if alpha.numel() or not w.numel()
        ]
        check_tensors([alpha for alpha, _ in stored], "alpha", [w for _, w in stored], torch.float32)
    else:
        (a_ints, a_floats), (f_ints, f_floats) = _halves(given.sources, given.parameters)
        check_sources(given.anchor, "anchor", weight, a_ints, a_floats)
        check_sources(given.flexibility, "flexibility", weight, f_ints, f_floats)
    given.check_dtypes()
    given.check_memory()


def _halves(
    sources: Sequence[int], parameters: Sequence[float]
) -> tuple[tuple[Sequence[int], Sequence[float]], tuple[Sequence[int], Sequence[float]]]:
    """The rows of the anchors, and those of the flexibilities."""
    i, f = len(sources) // 2, len(parameters) // 2
    return (sources[:i], parameters[:f]), (sources[i:], parameters[f:])


def metaplastic_step_(given: Step) -> None:
    """The Triton implementation of a step by any rule: one launch for all weights.

    Weights share dtype and device; bfloat16 and float16 ones have a float32 master. Never waits for the device,
    and can be captured in a CUDA graph: :class:`.table.TableCache` says what is promised.

    Raises:
        TypeError, ValueError: if the tensors do not fit together; nothing has been changed then.
    """
    weight = given.weight
    if not weight:
        return
    lr_number, lr_address = device_number(given.lr, given.lr_tensor, "lr_tensor", weight[0])
    scale_number, scale_address = device_number(given.scale, given.scale_tensor, "scale_tensor", weight[0])
    arrays = (weight, given.grad, given.master, given.alpha, *given.states)

    def rows() -> list[Row]:
        _check_step(given)
        a = f = [NOTHING] * len(weight)
        if not given.alpha:
            (a_ints, a_floats), (f_ints, f_floats) = _halves(given.sources, given.parameters)
            a = source_columns(given.anchor, weight, a_ints, a_floats)
            f = source_columns(given.flexibility, weight, f_ints, f_floats)
        addresses = [[t.data_ptr() for t in tensors] or [0] * len(weight) for tensors in arrays]
        counts = [t.data_ptr() for t in given.step] or [0] * len(weight)
        columns = zip(map(Tensor.numel, weight), zip(*addresses, strict=True), a, f, counts, strict=True)
        return [Row(n, list(at), a_i, f_i, count) for n, at, a_i, f_i, count in columns if n]

    # All that the checks and the table look at, so both are done once for steps on the same tensors.
    lists = (*arrays, given.anchor, given.flexibility, given.step)
    tensors = [t for of_name in lists for t in of_name]
    dtypes = [frozenset(map(Tensor.dtype.__get__, of_name)) for of_name in lists]  # type: ignore[attr-defined]
    key = (
        weight[0].device, *map(len, lists), *dtypes,
        all(map(Tensor.is_contiguous, tensors)), *map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors),
        *given.sources, *given.parameters,
    )  # fmt: skip
    mode = HELD.value if given.alpha else _mode(given.sources)
    cut = config("sgd", _VARIANTS[mode], architecture(weight[0].device))
    tile = cut["tile"]
    with torch.cuda.device_of(weight[0]):
        table = _tables.get((tile, *key), weight[0].device, rows, tile)
        if table.programs == 0:
            return
        step_kernel[(table.programs,)](
            table.data, table.tensors, lr_number, lr_address, scale_number, scale_address,
            *rule_numbers(given.rule), int(given.skip_nonfinite),
            TRITON_DTYPES[weight[0].dtype], TRITON_DTYPES[given.grad[0].dtype], rule_of(given.rule),
            state_bits(given.states), mode, tile, **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip


def metaplastic_gate(
    weight: Tensor,
    anchor: Tensor | None,
    flexibility: Tensor | None,
    scale: float,
    sources: Sequence[int],
    parameters: Sequence[float],
    scale_tensor: Tensor | None,
) -> Tensor:
    """The Triton implementation of ``flexkern::metaplastic_gate``: alpha of a float32 weight.

    Raises:
        TypeError, ValueError: if the tensors do not fit together.
    """
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    check_tensors([weight], "weight", [weight], torch.float32)
    a_stored, f_stored = ([] if t is None else [t] for t in (anchor, flexibility))
    check_sources(a_stored, "anchor", [weight], sources[:half_ints], parameters[:half_floats])
    check_sources(f_stored, "flexibility", [weight], sources[half_ints:], parameters[half_floats:])
    a = _gate_source(anchor, sources[:half_ints], parameters[:half_floats], weight.device)
    f = _gate_source(flexibility, sources[half_ints:], parameters[half_floats:], weight.device)
    scale_number, scale_address = device_number(scale, scale_tensor, "scale_tensor", weight)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    numel = weight.numel()
    if numel == 0:
        return out
    mode = _mode(sources)
    cut = config("gate", _VARIANTS[mode], architecture(weight.device))
    tile = cut["tile"]
    full = full_tiles([weight.data_ptr(), out.data_ptr(), a[1], f[1]], numel, tile)
    with torch.cuda.device_of(weight):
        gate_kernel[(triton.cdiv(numel, tile),)](
            weight.data_ptr(), out.data_ptr(), numel, full, scale_number, scale_address, *a, *f,
            mode, tile, **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _gate_source(
    stored: Tensor | None, sources: Sequence[int], parameters: Sequence[float], device: torch.device
) -> Source:
    if stored is not None:
        return (int(Kind.STORED), stored.data_ptr(), 0, 0, 0, 0, 0.0, 0.0)
    return computed_source(sources, parameters, device)


# --------------------------------------------------------------------------- ahead of time, and tuning


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    pairs = [(w, g) for w in TRITON_DTYPES.values() for g in dict.fromkeys((w, tl.float32))]
    for rule, (number_of, sets) in VARIANTS.items():
        for (w, g), (has, states), (mode, name) in product(pairs, sets.items(), _VARIANTS.items()):
            constants = {
                "WEIGHT_DTYPE": w, "GRAD_DTYPE": g, "RULE": number_of, "STATES": states, "SOURCES": mode,
            }  # fmt: skip
            yield Variant(f"{rule}-{name}-{w}-{g}{has}", step_kernel, constants, ("sgd", name))
    for mode in (STORED.value, MIXED.value):
        name = _VARIANTS[mode]
        yield Variant(f"gate-{name}", gate_kernel, {"SOURCES": mode}, ("gate", name))


CANDIDATES = dict.fromkeys((("sgd", "stored"), ("sgd", "mixed"), ("sgd", "held"), ("gate", "stored")), TILES)
