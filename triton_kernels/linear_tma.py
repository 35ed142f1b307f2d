"""linear_step_ where the copy engine of sm_90 and later (TMA) moves whatever lies in memory.

Beside :mod:`.linear`, which serves everything: here the product is one of tensor cores, all lies as TMA wants,
no synapse is silent, nothing is drawn, weights are float32 and the rule is SGD without momentum. A
configuration of the tuning table with ``state_stages`` asks for this form.
"""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flexkern.backends.tuning import launch_options
from flexkern.fields import Kind
from flexkern.spec.linear import Linear
from flexkern.triton_kernels.field import STORED, Source
from flexkern.triton_kernels.linear_part import tile_at
from flexkern.triton_kernels.memory import to_float32
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.product import IEEE, IN, INTERPRETED, PRODUCTS, arithmetic, eighth_of, eighths
from flexkern.triton_kernels.rules import SGD, rule_of
from flexkern.triton_kernels.synapse import LAYER_SOURCES
from flexkern.triton_kernels.update import gate, number, step
from flexkern.triton_kernels.variant import Variant

__all__ = ["FORMS", "KEY", "launch", "serves"]

KEY = "state_stages"  # of a configuration that asks for this form
# Columns of a part, one of the eight in which a tile's state comes: 64 bytes of each row.
PART = tl.constexpr(IN.value // 8)

# Why. In linear.py a thread asks for its share of a part of the state, waits, steps it and stores it: 24 KB are
# on their way, then none until the next part. Here parts come to shared memory ahead of their turn,
# STATE_STAGES - 1 of them, where x and grad_out were until the product was made. No register holds what is on
# its way, nor its addresses: two programs stay on a multiprocessor. Counts: benchmarks/PREDICTIONS.md.
# Two things that Triton 3.9 does not do for sm_90. It makes no producer and consumers of this kernel
# (warp_specialize): of 8 warps without a word; of 4 it makes two consumers, which either ask for half of a
# descriptor's box, an error, or both make the whole step. And it fuses no loop over tiles with the two loops in
# it (flatten), so a persistent program would begin each tile as a new program does.


@triton.jit(
    do_not_specialize=[
        "batch", "rows", "columns",
        "lr", "lr_address", "scale", "scale_address", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7",
        "count", "skip_nonfinite", "a_value", "f_value",
    ]
)  # fmt: skip
def linear_tma_kernel(
    x,
    grad_out,
    weight,
    alpha_or_anchor,
    flexibility,
    batch: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
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
    a_value: tl.float32,
    f_value: tl.float32,
    X_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    F_KIND: tl.constexpr,
    OUT: tl.constexpr,
    BATCH: tl.constexpr,
    GROUP: tl.constexpr,
    STATE_STAGES: tl.constexpr,
):
    """Steps a layer, each program one tile [OUT, 128] of it. The first five are descriptors: of boxes
    [BATCH, 128] and [BATCH, OUT], and [OUT, PART] of the state; what there is not is the weight's."""
    row, column = tile_at(tl.program_id(0), rows, columns, GROUP, OUT)
    total = tl.zeros((OUT, IN), tl.float32)
    for at in tl.range(0, batch, BATCH):
        left, right = grad_out.load([at, row]), x.load([at, column])
        if INTERPRETED:  # it multiplies the bits of bfloat16 as integers
            left, right = to_float32(left, X_DTYPE), to_float32(right, X_DTYPE)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)

    numbers = (n0, n1, n2, n3, n4, n5, n6, n7)
    rate, step_scale = number(lr, lr_address), number(scale, scale_address)
    gradients = eighths(total)
    for part in tl.range(0, 8, num_stages=STATE_STAGES, disable_licm=True):
        begin = column + part * PART
        w = weight.load([row, begin])
        if HELD:
            alpha = alpha_or_anchor.load([row, begin])
        else:
            a = tl.full((OUT, PART), a_value, tl.float32)
            f = tl.full((OUT, PART), f_value, tl.float32)
            if A_KIND == STORED:
                a = alpha_or_anchor.load([row, begin])
            if F_KIND == STORED:
                f = flexibility.load([row, begin])
            alpha = gate(w, a, f, step_scale)
        new, _, _, _ = step(w, eighth_of(gradients, part), alpha, w, w, w, rate, numbers, (0.0, 0.0),
                            skip_nonfinite, SGD, 0)  # fmt: skip
        weight.store([row, begin], new)


# --------------------------------------------------------------------------- the host's side


def serves(given: Linear, a: Source, f: Source, precision: str, *, aligned: bool) -> bool:
    """Whether this form makes such a step.

    Args:
        given: what is stepped.
        a, f: the sources of anchor and flexibility.
        precision: of a product in float32.
        aligned: whether rows of both operands, and of all that is stored of the state, begin at multiples of
            16 bytes.
    """
    return (
        aligned
        and given.silent is None
        and given.weight.dtype is torch.float32
        and arithmetic(given.x.dtype, precision) != IEEE
        and rule_of(given.rule) == SGD.value
        and all(state is None for state in given.states)
        and {a[0], f[0]} <= {Kind.STORED, Kind.CONSTANT}
        and 0 < len(given.x) <= 2**30  # places are counted in 32 bits
    )


def _described(tensor: Tensor, box: tuple[int, int]) -> TensorDescriptor:
    if INTERPRETED and tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    rows, columns = tensor.shape  # not its strides: a single row may have any
    return TensorDescriptor(tensor, [rows, columns], [columns, 1], list(box))


def launch(
    given: Linear, a: Source, f: Source, precision: str, rule: Sequence[float | int], cut: Mapping[str, int]
) -> None:
    """Makes the step that :func:`serves` says it does: one launch, which nothing waits for.

    Args:
        given: what is stepped.
        a, f: the sources of anchor and flexibility.
        precision: of a product in float32.
        rule: as :func:`.layer.rule_arguments` gives it.
        cut: the configuration.
    """
    rows, columns = given.weight.shape
    state = cut["out"], PART.value
    weight = _described(given.weight, state)
    held = given.alpha is not None
    first = given.alpha if held else given.anchor if a[0] == Kind.STORED else None
    second = given.flexibility if f[0] == Kind.STORED else None
    programs = triton.cdiv(rows, cut["out"]) * triton.cdiv(columns, IN.value)
    with torch.cuda.device_of(given.weight):
        linear_tma_kernel[(programs,)](
            _described(given.x, (cut["batch"], IN.value)),
            _described(given.grad_out, (cut["batch"], cut["out"])), weight,
            *(weight if tensor is None else _described(tensor, state) for tensor in (first, second)),
            len(given.x), rows, columns, *rule, a[6], f[6], TRITON_DTYPES[given.x.dtype], precision, held, a[0],
            f[0], cut["out"], cut["batch"], cut["group"], cut[KEY], **launch_options(cut),
            enable_fp_fusion=False,
        )  # fmt: skip


# --------------------------------------------------------------------------- ahead of time, and tuning

# What the tuner races. Three parts of the state, 72 KB, are on their way in the 96 KB of three steps of x and
# grad_out; two programs are on a multiprocessor, of 96 registers (tf32: 106).
PROPOSED = {"out": 128, "batch": 64, "group": 8, "num_warps": 8, "num_stages": 3, KEY: 4}
PROPOSED_TF32 = {**PROPOSED, "batch": 32}


def _variant(x: str, sources: str) -> Variant:
    dtype, precision = PRODUCTS[x]
    layer = dict(LAYER_SOURCES[sources])
    if sources == "held":
        layer["A_KIND"] = int(Kind.CONSTANT)
    of_x, of_state = (f"tensordesc<{name}[{{}}, {{}}]>" for name in (TRITON_DTYPES[dtype], tl.float32))
    state = of_state.format("{OUT}", PART.value)
    boxes = {
        "x": of_x.format("{BATCH}", IN.value), "grad_out": of_x.format("{BATCH}", "{OUT}"),
        "weight": state, "alpha_or_anchor": state, "flexibility": state,
    }  # fmt: skip
    constants = {"X_DTYPE": TRITON_DTYPES[dtype], "PRECISION": precision, **layer}
    fixed = PROPOSED_TF32 if x == "tf32" else PROPOSED
    return Variant(f"linear-tma-{x}-{sources}", linear_tma_kernel, constants, fixed=fixed, descriptors=boxes)


# By what :mod:`.linear` calls the same step in its own form.
FORMS = {
    f"{x}-{sources}": _variant(x, sources)
    for x, sources in (("bf16", "stored"), ("bf16", "held"), ("fp16", "stored"), ("tf32", "stored"))
}


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    yield from FORMS.values()
