"""One pass over a layer (docs/design.md, One pass): functional synapses step, silent ones convert."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexkern.backends.tuning import architecture, config, launch_options
from flexkern.fields import Kind
from flexkern.spec.synapse import Synapse
from flexkern.triton_kernels.arguments import check_tensors
from flexkern.triton_kernels.layer import (
    check_layer,
    check_units,
    is_aligned,
    layer_addresses,
    rule_arguments,
    source_arguments,
    threshold_arguments,
)
from flexkern.triton_kernels.matrix import existing, groups, load_synapses, load_units
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.rules import SGD, VARIANTS, counted, rule_of, state_bits
from flexkern.triton_kernels.synapse_tile import (
    activity,
    find_converting,
    load_converting,
    load_state,
    load_theta,
    step_tile,
)
from flexkern.triton_kernels.update import number
from flexkern.triton_kernels.variant import Variant

__all__ = ["LAYER_SOURCES", "synapse_step_"]


@triton.jit(
    do_not_specialize=[
        "weight", "grad", "master", "alpha", "state0", "state1", "state2", "silent", "counts", "coincidence",
        "pre", "post",
        "rows", "units", "threshold", "threshold_address", "threshold_step", "eta", "prune",
        "lr", "lr_address", "scale", "scale_address", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7",
        "count", "skip_nonfinite",
        "a_address", "a_seed", "a_stream", "a_offset", "a_purpose", "a_p0", "a_p1",
        "f_address", "f_seed", "f_stream", "f_offset", "f_purpose", "f_p0", "f_p1",
    ]
)  # fmt: skip
def synapse_kernel(
    weight: tl.int64,
    grad: tl.int64,
    master: tl.int64,
    alpha: tl.int64,
    state0: tl.int64,
    state1: tl.int64,
    state2: tl.int64,
    silent: tl.int64,
    counts: tl.int64,
    coincidence: tl.int64,
    pre: tl.int64,
    post: tl.int64,
    rows: tl.int64,
    units: tl.int64,
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
    GRAD_DTYPE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    F_KIND: tl.constexpr,
    RATE: tl.constexpr,
    HEBBIAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Steps a layer, each program WORDS consecutive words of the mask, of one row or of several.

    With RATE the coincidence is post times pre, else a matrix. HEBBIAN: the inserted weight is eta c.
    """
    # As a product, so that Triton knows that groups of four begin at multiples of 16 bytes.
    columns = units * (4 if ALIGNED else 1)
    words_per_row = (columns + 31) // 32
    start = tl.program_id(0).to(tl.int64) * WORDS
    first_row = start // words_per_row
    first_word = start - first_row * words_per_row
    # From here in 32 bits, whose division is quick: the words of a program span few rows or part of one.
    word = first_word.to(tl.int32) + tl.arange(0, WORDS)
    down = word // words_per_row.to(tl.int32)
    row = first_row + down
    column = (word.to(tl.int64) - down * words_per_row) * 32
    row_exists = row < rows
    inside = existing(column, columns, row_exists)
    first = first_row * columns + first_word * 32
    offsets = (down * columns + column - first_word * 32).to(tl.int32)[:, None]
    tile = (first, offsets, row, column, inside)

    words_pointers = silent.to(tl.pointer_type(tl.uint32)) + start + tl.arange(0, WORDS)
    was_silent = tl.load(words_pointers, mask=row_exists, other=0) & inside
    # What functional synapses need is on its way before the activities that decide on silent ones are awaited.
    functional = inside & ~was_silent
    whole = groups(functional, ALIGNED)
    gradients = load_synapses(grad, tile, whole, GRAD_DTYPE, ALIGNED)
    counts_of = counts.to(tl.pointer_type(tl.int32)) + row
    addresses = (weight, master, alpha, state0, state1, state2, words_pointers, counts_of)
    anchor = (a_address, a_seed, a_stream, a_offset, a_purpose,
              tl.full((), a_p0, tl.float32), tl.full((), a_p1, tl.float32))  # fmt: skip
    flexibility = (f_address, f_seed, f_stream, f_offset, f_purpose,
                   tl.full((), f_p0, tl.float32), tl.full((), f_p1, tl.float32))  # fmt: skip
    state = load_state(
        tile, whole, addresses, anchor, flexibility, WEIGHT_DTYPE, STATES, HELD, A_KIND, F_KIND, ALIGNED
    )

    theta = load_theta(row, row_exists, (threshold, threshold_address, threshold_step))
    silent_groups = groups(was_silent, ALIGNED)
    if RATE:
        pre_tile = (tl.zeros((), tl.int64), column.to(tl.int32)[:, None])
        pre_values = activity(load_synapses(pre, pre_tile, silent_groups, tl.float32, ALIGNED))
        c = activity(load_units(post, row, row_exists))[:, None] * pre_values
    else:
        c = load_synapses(coincidence, tile, silent_groups, tl.float32, ALIGNED)
    converting = find_converting(c, theta, was_silent, tile, a_address, eta, HEBBIAN, ALIGNED)

    touched = groups(functional | converting, ALIGNED)
    state = load_converting(
        state,
        tile,
        touched & ~whole,
        converting,
        addresses,
        anchor,
        WEIGHT_DTYPE,
        STATES,
        HELD,
        A_KIND,
        ALIGNED,
    )
    numbers = (n0, n1, n2, n3, n4, n5, n6, n7)
    rule = (number(lr, lr_address), numbers, counted(count, numbers, RULE), skip_nonfinite)
    step_scale = number(scale, scale_address)
    step_tile(tile, gradients, was_silent, converting, touched, state, addresses, step_scale, rule, anchor,
              prune, rows, WEIGHT_DTYPE, RULE, STATES, HELD, A_KIND, True, ALIGNED)  # fmt: skip


# --------------------------------------------------------------------------- the host's side


def synapse_step_(given: Synapse) -> Tensor:
    """The Triton implementation of ``flexkern::synapse_step_``: one launch, which nothing waits for.

    Returns:
        int32 [2, out]: for each postsynaptic unit, how many synapses were converted and how many pruned.

    Raises:
        TypeError, ValueError: if the tensors do not fit together; nothing has been changed then.
    """
    weight, grad = given.weight, given.grad
    check_layer(given)
    if grad.dtype not in (weight.dtype, torch.float32):
        raise TypeError(f"grad must be {weight.dtype} or torch.float32, got {grad.dtype}")
    check_tensors([grad], "grad", [weight], grad.dtype)
    rate = len(given.activities) == 2
    if rate:
        check_units(given.activities[0], "pre", weight, weight.shape[1])
        check_units(given.activities[1], "post", weight, weight.shape[0])
    else:
        check_tensors(given.activities, "coincidence", [weight], torch.float32)
    given.check_dtypes()
    theta = threshold_arguments(given)
    rule = rule_arguments(given)
    rows, columns = weight.shape
    counts = torch.zeros((2, rows), dtype=torch.int32, device=weight.device)
    if weight.numel() == 0:
        return counts
    addresses = layer_addresses(given)
    a, f = source_arguments(given)
    listed = [t.data_ptr() for t in given.activities]
    units_at = [0, *listed] if rate else [*listed, 0, 0]
    aligned = columns % 4 == 0 and is_aligned([*addresses, grad.data_ptr(), *units_at[:2]], a, f)
    stored = a[0] == f[0] == Kind.STORED
    variant = "held" if given.alpha is not None else "stored" if stored else "mixed"
    cut = config("synapse", variant, architecture(weight.device))
    words = cut["words"]  # of a program: 32 are 1024 synapses, 8 a thread, by the arithmetic of memory.py
    programs = triton.cdiv(rows * triton.cdiv(columns, 32), words)
    with torch.cuda.device_of(weight):
        synapse_kernel[(programs,)](
            addresses[0], grad.data_ptr(), *addresses[1:], counts.data_ptr(), *units_at, rows,
            columns // 4 if aligned else columns, *theta,
            float(given.eta), float(given.prune), *rule, *a[1:], *f[1:],
            TRITON_DTYPES[weight.dtype], TRITON_DTYPES[grad.dtype], rule_of(given.rule),
            state_bits(given.states), given.alpha is not None, a[0], f[0], rate, given.hebbian, aligned, words,
            **launch_options(cut), enable_fp_fusion=False,
        )  # fmt: skip
    return counts


# --------------------------------------------------------------------------- ahead of time, and tuning

# Of the passes over a layer: whether alpha is stored, and the kinds of anchor and flexibility.
LAYER_SOURCES = {
    "stored": {"HELD": False, "A_KIND": int(Kind.STORED), "F_KIND": int(Kind.STORED)},
    "mixed": {"HELD": False, "A_KIND": int(Kind.NORMAL), "F_KIND": int(Kind.UNIFORM)},
    "held": {"HELD": True, "A_KIND": int(Kind.STORED), "F_KIND": int(Kind.CONSTANT)},
}


def ahead_of_time() -> Iterator[Variant]:
    """What launches ask the compiler for: see :mod:`.variant`."""
    for dtype, sources, rate in product((tl.float32, tl.bfloat16), ("stored", "mixed"), (True, False)):
        yield _variant(f"{sources}-{dtype}-{'rate' if rate else 'matrix'}", dtype, sources, rate)
    yield _variant("held-fp32-rate", tl.float32, "held", True)
    # The sets of states of the other rules: with the most that each has, once.
    for rule, (number_of, sets) in VARIANTS.items():
        suffix, states = list(sets.items())[-1]
        name = f"stored-fp32-rate{'' if number_of == SGD.value else f'-{rule}'}{suffix}"
        yield _variant(name, tl.float32, "stored", True, rule=number_of, states=states)
    yield _variant("stored-bf16-matrix-hebbian", tl.bfloat16, "stored", False, hebbian=True)
    yield _variant("mixed-fp32-rate-unaligned", tl.float32, "mixed", True, aligned=False)


def _variant(
    name: str,
    dtype: Any,
    sources: str,
    rate: bool,
    *,
    rule: int = SGD.value,
    states: int = 0,
    hebbian: bool = False,
    aligned: bool = True,
) -> Variant:
    constants = {
        "WEIGHT_DTYPE": dtype, "GRAD_DTYPE": dtype, "RULE": rule, "STATES": states,
        **LAYER_SOURCES[sources],
        "RATE": rate, "HEBBIAN": hebbian, "ALIGNED": aligned,
    }  # fmt: skip
    return Variant(f"synapse-{name}", synapse_kernel, constants, ("synapse", sources))


_WORDS = [{"words": words, "num_warps": warps} for words, warps in ((16, 4), (32, 8), (64, 4), (64, 8))]
CANDIDATES = {("synapse", "stored"): _WORDS, ("synapse", "mixed"): _WORDS}
