"""The pass over a layer's synapses inside the product that makes their gradient (docs/design.md, One pass)."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.fields import Kind
from flexkern.spec.linear import Linear
from flexkern.triton_kernels import linear_tma
from flexkern.triton_kernels.layer import (
    NOTHING,
    check_layer,
    check_units,
    is_aligned,
    layer_addresses,
    rule_arguments,
    source_arguments,
    threshold_arguments,
)
from flexkern.triton_kernels.linear_part import converting_of, load_silent, part_of, rate_of, step_part, tile_at
from flexkern.triton_kernels.memory import ALIGNMENT
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.product import (
    HALF,
    IN,
    LARGEST,
    PRODUCTS,
    UNIT,
    arithmetic,
    parts,
    precision_of,
    product,
)
from flexkern.triton_kernels.rules import SGD, VARIANTS, counted, rule_of, state_bits
from flexkern.triton_kernels.synapse import LAYER_SOURCES
from flexkern.triton_kernels.update import number
from flexkern.triton_kernels.variant import Variant

__all__ = ["linear_step_"]

# What the coincidence of silent synapses is made of, a constexpr of the kernel.
NOBODY = tl.constexpr(0)  # no synapse is silent
RATE = tl.constexpr(1)
HEBBIAN = tl.constexpr(2)


@triton.jit(
    do_not_specialize=[
        "weight", "master", "alpha", "state0", "state1", "state2", "silent", "counts", "x", "grad_out", "pre",
        "post", "batch", "row_units", "column_units", "inverse_batch",
        "threshold", "threshold_address", "threshold_step", "eta",
        "prune", "lr", "lr_address", "scale", "scale_address", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7",
        "count", "skip_nonfinite",
        "a_address", "a_seed", "a_stream", "a_offset", "a_purpose", "a_p0", "a_p1",
        "f_address", "f_seed", "f_stream", "f_offset", "f_purpose", "f_p0", "f_p1",
    ]
)  # fmt: skip
def linear_kernel(
    weight: tl.int64,
    master: tl.int64,
    alpha: tl.int64,
    state0: tl.int64,
    state1: tl.int64,
    state2: tl.int64,
    silent: tl.int64,
    counts: tl.int64,
    x: tl.int64,
    grad_out: tl.int64,
    pre: tl.int64,
    post: tl.int64,
    batch: tl.int64,
    row_units: tl.int64,
    column_units: tl.int64,
    inverse_batch: tl.float32,
    threshold: tl.float32,
    threshold_address: tl.int64,
    threshold_step: tl.int64,
    eta: tl.float32,
    prune: tl.float32,
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
    count: tl.int64,
    skip_nonfinite: tl.int32,
    a_address: tl.int64,
    a_seed: tl.int64,
    a_stream: tl.int64,
    a_offset: tl.int64,
    a_purpose: tl.int64,
    a_p0: tl.float32,
    a_p1: tl.float32,
    f_address: tl.int64,
    f_seed: tl.int64,
    f_stream: tl.int64,
    f_offset: tl.int64,
    f_purpose: tl.int64,
    f_p0: tl.float32,
    f_p1: tl.float32,
    WEIGHT_DTYPE: tl.constexpr,
    X_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    F_KIND: tl.constexpr,
    COINCIDENCE: tl.constexpr,
    INSERTS_C: tl.constexpr,
    ALIGNED: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
    OUT: tl.constexpr,
    BATCH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Steps a layer, each program one tile [OUT, 128] of it; see step_tile for the arguments' meaning."""
    SILENT: tl.constexpr = COINCIDENCE != NOBODY
    # As products, so that Triton knows that what a thread reads at once begins at multiples of 16 bytes.
    rows = row_units * (UNIT if ALIGNED_ROWS else 1)
    columns = column_units * (UNIT if ALIGNED else 1)
    row, column = tile_at(tl.program_id(0).to(tl.int64), rows, columns, GROUP, OUT)
    position = (row, column, rows, columns)
    steps = ((batch + BATCH - 1) // BATCH).to(tl.int32)
    # One by one: Triton's loops mix up variables that hold the same value when they begin.
    d0 = tl.zeros((OUT // 2,), tl.uint32)
    d1 = tl.zeros((OUT // 2,), tl.uint32)
    d2 = tl.zeros((OUT // 2,), tl.uint32)
    d3 = tl.zeros((OUT // 2,), tl.uint32)
    d4 = tl.zeros((OUT // 2,), tl.uint32)
    d5 = tl.zeros((OUT // 2,), tl.uint32)
    d6 = tl.zeros((OUT // 2,), tl.uint32)
    d7 = tl.zeros((OUT // 2,), tl.uint32)
    if SILENT:
        theta = (threshold, threshold_address, threshold_step)
        insertion = (a_address, eta)
        if COINCIDENCE == HEBBIAN:
            some = tl.zeros((), tl.int32)
            for part in tl.range(0, 8, num_stages=1):
                words = load_silent(silent, part_of(part, position, OUT), columns)
                some = tl.maximum(some, tl.max((words != 0).to(tl.int32), axis=0))
            # Without silent synapses the product has no steps, and its 0 converts nobody.
            c = product(post, pre, steps * some, batch, row, column, rows, columns, X_DTYPE, PRECISION,
                         ALIGNED_ROWS, ALIGNED, OUT, BATCH)  # fmt: skip
            c0, c1, c2, c3, c4, c5, c6, c7 = parts(c * inverse_batch)
            for part in tl.range(0, 8, num_stages=1, disable_licm=True):
                d = converting_of(c0, part, position, silent, theta, insertion, INSERTS_C, ALIGNED, OUT)
                c0, c1, c2, c3, c4, c5, c6 = c1, c2, c3, c4, c5, c6, c7
                d0, d1, d2, d3, d4, d5, d6, d7 = d1, d2, d3, d4, d5, d6, d7, d
        else:
            for part in tl.range(0, 8, num_stages=1, disable_licm=True):
                c0 = rate_of(pre, post, part, position, silent, ALIGNED, OUT)
                d = converting_of(c0, part, position, silent, theta, insertion, INSERTS_C, ALIGNED, OUT)
                d0, d1, d2, d3, d4, d5, d6, d7 = d1, d2, d3, d4, d5, d6, d7, d

    gradient = product(grad_out, x, steps, batch, row, column, rows, columns, X_DTYPE, PRECISION, ALIGNED_ROWS,
                        ALIGNED, OUT, BATCH)  # fmt: skip
    numbers = (n0, n1, n2, n3, n4, n5, n6, n7)
    rule = (number(lr, lr_address), numbers, counted(count, numbers, RULE), skip_nonfinite)
    anchor = (a_address, a_seed, a_stream, a_offset, a_purpose,
              tl.full((), a_p0, tl.float32), tl.full((), a_p1, tl.float32))  # fmt: skip
    flexibility = (f_address, f_seed, f_stream, f_offset, f_purpose,
                   tl.full((), f_p0, tl.float32), tl.full((), f_p1, tl.float32))  # fmt: skip
    step_scale = number(scale, scale_address)
    state = (weight, master, alpha, state0, state1, state2, silent, counts)
    # A loop in which the parts move up, as registers cannot be indexed: unrolled it would be eight times the
    # code.
    g0, g1, g2, g3, g4, g5, g6, g7 = parts(gradient)
    for part in tl.range(0, 8, num_stages=1, disable_licm=True):
        step_part(g0, d0, part, position, state, step_scale, rule, anchor, flexibility, prune,
              WEIGHT_DTYPE, RULE, STATES, HELD, A_KIND, F_KIND, SILENT, ALIGNED, OUT)  # fmt: skip
        g0, g1, g2, g3, g4, g5, g6 = g1, g2, g3, g4, g5, g6, g7
        d0, d1, d2, d3, d4, d5, d6 = d1, d2, d3, d4, d5, d6, d7


# --------------------------------------------------------------------------- the host's side


def _check_batch(tensors: Sequence[Tensor], names: Sequence[str], units: Sequence[int], weight: Tensor) -> None:
    like = tensors[0]
    if like.dtype not in TRITON_DTYPES:
        raise TypeError(f"x must be one of {[str(d) for d in TRITON_DTYPES]}, got {like.dtype}")
    for tensor, name, count in zip(tensors, names, units, strict=True):
        if tensor.dtype is not like.dtype:
            raise TypeError(f"{name} must be {like.dtype} as x is, got {tensor.dtype}")
        if tensor.dim() != 2 or tuple(tensor.shape) != (len(like), count):
            raise ValueError(f"{name} must be [{len(like)}, {count}], got {tuple(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.device != weight.device:
            raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {tensor.device}")
    if max(units) > LARGEST:
        raise ValueError(f"weight has {tuple(weight.shape)} units; this kernel serves up to {LARGEST} a side")


def _variant_of(
    dtype: torch.dtype, precision: str, silent: bool, rule: int, held: bool, anchor: int, flexibility: int
) -> str:
    """The variant in the tuning table: what is multiplied in, and whether registers are what it is short of."""
    computed = not {anchor, flexibility} <= {Kind.STORED, Kind.CONSTANT}
    name = arithmetic(dtype, precision)
    if silent:
        return f"{name}-silent"
    return f"{name}-procedural" if name == HALF and computed and not held and rule == SGD.value else name


def _is_unit(free: float, source: tuple) -> bool:
    return source[0] == Kind.CONSTANT and source[6] == free


def linear_step_(given: Linear) -> Tensor:
    """The Triton implementation of ``flexkern::linear_step_``: one launch, which nothing waits for.

    For the Hebbian rule the activities of x and post are two small launches more: their tiles then go from
    memory to the tensor cores like those of the gradient's product.

    Returns:
        int32 [2, out]: for each postsynaptic unit, how many synapses were converted and how many pruned.

    Raises:
        TypeError, ValueError: if the tensors do not fit together; nothing has been changed then.
    """
    weight, x, grad_out = given.weight, given.x, given.grad_out
    check_layer(given)
    rows, columns = weight.shape
    how = NOBODY if given.silent is None else HEBBIAN if len(given.activities) == 1 else RATE
    batches = [x, grad_out, *given.activities] if how is HEBBIAN else [x, grad_out]
    _check_batch(
        batches, ("x", "grad_out", "post")[: len(batches)], (columns, rows, rows)[: len(batches)], weight
    )
    pre = post = None
    if how is RATE:
        pre, post = given.activities
        check_units(pre, "pre", weight, columns)
        check_units(post, "post", weight, rows)
    given.check_dtypes()
    theta = threshold_arguments(given)
    rule = rule_arguments(given)
    counts = torch.zeros((2, rows), dtype=torch.int32, device=weight.device)
    if weight.numel() == 0:
        return counts
    if how is HEBBIAN:
        pre, post = x.clamp(min=0), given.activities[0].clamp(min=0)
    addresses = layer_addresses(given)
    a, f = source_arguments(given)
    if given.silent is None and (given.alpha is not None or _is_unit(1.0, f)):
        a = NOTHING  # alpha is there, or 1 whatever the anchor: it is neither read nor drawn
    units_at = [0 if t is None else t.data_ptr() for t in (pre, post)]
    batch_addresses = [x.data_ptr(), grad_out.data_ptr()]
    aligned = columns % UNIT.value == 0 and is_aligned([*addresses, batch_addresses[0], units_at[0]], a, f)
    aligned_rows = rows % UNIT.value == 0 and not any(
        at % ALIGNMENT for at in (batch_addresses[1], units_at[1])
    )
    target = architecture(weight.device)
    precision = precision_of(x.dtype, target)
    held = given.alpha is not None
    variant = _variant_of(x.dtype, precision, given.silent is not None, rule_of(given.rule), held, a[0], f[0])
    cut = config("linear", variant, target, bounded=aligned and aligned_rows)
    if linear_tma.KEY in cut and linear_tma.serves(given, a, f, precision, aligned=aligned and aligned_rows):
        linear_tma.launch(given, a, f, precision, rule, cut)
        return counts
    programs = triton.cdiv(rows, cut["out"]) * triton.cdiv(columns, IN.value)
    with torch.cuda.device_of(weight):
        linear_kernel[(programs,)](
            *addresses, counts.data_ptr(), *batch_addresses, *units_at, len(x),
            rows // UNIT.value if aligned_rows else rows, columns // UNIT.value if aligned else columns,
            1.0 / len(x) if len(x) else math.nan, *theta, float(given.eta), float(given.prune),
            *rule, *a[1:], *f[1:],
            TRITON_DTYPES[weight.dtype], TRITON_DTYPES[x.dtype], precision, rule_of(given.rule),
            state_bits(given.states), held, a[0], f[0], how.value,
            given.hebbian and given.silent is not None, aligned,
            aligned_rows, cut["out"], cut["batch"], cut["group"], **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip
    return counts


# --------------------------------------------------------------------------- ahead of time, and tuning


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    coincidences = {"": NOBODY, "-hebbian": HEBBIAN}
    for x, (suffix, how), sources in itertools.product(PRODUCTS, coincidences.items(), ("stored", "mixed")):
        yield _variant(f"{x}-{sources}{suffix}", x, sources, how)
    yield _variant("bf16-stored-rate", "bf16", "stored", RATE)
    yield _variant("bf16-held", "bf16", "held", NOBODY)
    yield _variant("bf16-stored-bf16", "bf16", "stored", NOBODY, tl.bfloat16)
    for rule, (number_of, sets) in VARIANTS.items():
        if number_of != SGD.value:
            suffix, states = list(sets.items())[-1]  # the most states that it has
            name = f"bf16-stored-{rule}{suffix}"
            yield _variant(name, "bf16", "stored", NOBODY, rule=number_of, states=states)


def _variant(
    name: str,
    x: str,
    sources: str,
    how: tl.constexpr,
    weight: Any = tl.float32,
    *,
    rule: int = SGD.value,
    states: int = 0,
) -> Variant:
    dtype, precision = PRODUCTS[x]
    layer = dict(LAYER_SOURCES[sources])
    if sources == "held":
        layer["A_KIND"] = int(Kind.CONSTANT)  # without silent synapses nobody needs an anchor
    constants = {
        "WEIGHT_DTYPE": weight, "X_DTYPE": TRITON_DTYPES[dtype], "PRECISION": precision, "RULE": rule,
        "STATES": states,
        **layer, "COINCIDENCE": how.value, "INSERTS_C": False, "ALIGNED": True, "ALIGNED_ROWS": True,
    }  # fmt: skip
    kinds = layer["HELD"], layer["A_KIND"], layer["F_KIND"]
    variant = _variant_of(dtype, precision, how is not NOBODY, rule, *kinds)
    forms = {linear_tma.KEY: linear_tma.FORMS[name]} if name in linear_tma.FORMS else {}
    return Variant(f"linear-{name}", linear_kernel, constants, ("linear", variant), forms=forms)


def _tiles(out: int, batch: int, warps: int, stages: int, group: int = 8, **bound: int) -> dict[str, int]:
    return {"out": out, "batch": batch, "group": group, "num_warps": warps, "num_stages": stages, **bound}


CANDIDATES = {
    ("linear", "half"): [
        _tiles(128, 64, 8, 4),  # three steps under way, one program per multiprocessor
        _tiles(128, 32, 8, 5),  # shorter steps, more of them
        _tiles(256, 64, 16, 3),  # a quarter less traffic from L2, one program
        _tiles(128, 64, 8, 3, maxnreg=128),
        _tiles(128, 64, 8, 3, group=4),
        _tiles(128, 64, 8, 3, group=16),
        linear_tma.PROPOSED,  # by TMA, with three parts of the state under way; see linear_tma.py
    ],
    ("linear", "half-procedural"): [
        _tiles(128, 64, 8, 3, maxnreg=128),
        _tiles(128, 64, 8, 4),
    ],
    ("linear", "half-silent"): [
        _tiles(128, 64, 8, 3, maxnreg=128),  # two programs; 8 bytes of stack with the rate rule
        _tiles(128, 64, 8, 4),
        _tiles(128, 32, 8, 4),
        _tiles(128, 64, 8, 3, group=16),
    ],
    ("linear", "tf32"): [
        _tiles(128, 16, 8, 4),  # 128 registers also with procedural fields, so two programs
        _tiles(128, 32, 8, 4),
        _tiles(128, 32, 8, 2),
        _tiles(128, 32, 8, 3, group=16),
        linear_tma.PROPOSED_TF32,
    ],
}
