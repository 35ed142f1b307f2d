"""The step of a tile of synapses, and which of its silent ones convert: of both passes over a layer."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.triton_kernels.field import STORED
from flexkern.triton_kernels.matrix import (
    count_bits,
    groups,
    lanes,
    load_more,
    load_synapses,
    load_units,
    pack,
    source_synapses,
    store_rounded,
    store_synapses,
)
from flexkern.triton_kernels.memory import exact_weight
from flexkern.triton_kernels.update import finite, gate, step

__all__ = ["activity", "find_converting", "load_converting", "load_state", "load_theta", "step_tile"]


@triton.jit
def activity(value):
    """What a unit does: the part of ``value`` that is not negative. NaN stays, so that it converts nothing."""
    return tl.where(value < 0, 0.0, value)


@triton.jit
def load_theta(rows, exist, threshold):
    """float32 [T]: the threshold of each row; ``threshold`` is (number, address or 0, step from row to row)."""
    value, address, step = threshold
    loaded = load_units(address, rows * step, tl.where(address != 0, exist, False))
    return tl.where(address != 0, loaded, value)


@triton.jit
def find_converting(c, theta, silent, tile, anchor_address, eta, HEBBIAN: tl.constexpr, ALIGNED: tl.constexpr):
    """uint32 [T]: the silent synapses whose coincidence, in ``c`` [T, 32], reaches the threshold.

    Hebbian insertion makes eta c their anchor, here and now: from then on it is as if that had been their
    initial draw. So a coincidence need not be kept for the step.
    """
    converting = lanes(silent) & (c >= theta[:, None]) & finite(c)
    if HEBBIAN:
        inserted = eta * c
        converting = converting & finite(inserted)
    words = pack(converting)
    if HEBBIAN:
        # Alone, not in groups: few are stored. The barrier, because other threads may read them.
        store_synapses(anchor_address, tile, words, inserted, tl.float32, False)
        tl.debug_barrier()
    return words


@triton.jit
def load_state(
    tile,
    words,
    addresses,
    anchor,
    flexibility,
    WEIGHT_DTYPE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    F_KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """What a step reads of ``words``: exact weight, as written, states, alpha or anchor, flexibility.

    What there is not is the exact weight, and never looked at. ``addresses`` are those of :func:`step_tile`.
    """
    HAS_MASTER: tl.constexpr = WEIGHT_DTYPE != tl.float32
    exact = load_synapses(addresses[1] if HAS_MASTER else addresses[0], tile, words, tl.float32, ALIGNED)
    written, old0, old1, old2, f = exact, exact, exact, exact, exact
    if HAS_MASTER:
        written = load_synapses(addresses[0], tile, words, WEIGHT_DTYPE, ALIGNED)
    if STATES & 1:
        old0 = load_synapses(addresses[3], tile, words, tl.float32, ALIGNED)
    if STATES & 2:
        old1 = load_synapses(addresses[4], tile, words, tl.float32, ALIGNED)
    if STATES & 4:
        old2 = load_synapses(addresses[5], tile, words, tl.float32, ALIGNED)
    if HELD:
        alpha_or_a = load_synapses(addresses[2], tile, words, tl.float32, ALIGNED)
    else:
        alpha_or_a = source_synapses(anchor, tile, words, A_KIND, ALIGNED)
        f = source_synapses(flexibility, tile, words, F_KIND, ALIGNED)
    return exact, written, old0, old1, old2, alpha_or_a, f


@triton.jit
def load_converting(
    state,
    tile,
    more,
    converting,
    addresses,
    anchor,
    WEIGHT_DTYPE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``state`` with what converting synapses want besides: their anchors, and in the groups of ``more``, which
    have no functional synapse, the weights and states of neighbours that are written back as they were."""
    exact, written, old0, old1, old2, alpha_or_a, f = state
    exact_address = addresses[1] if WEIGHT_DTYPE != tl.float32 else addresses[0]
    exact = load_more(exact, exact_address, tile, more, ALIGNED)
    if STATES & 1:
        old0 = load_more(old0, addresses[3], tile, more, ALIGNED)
    if STATES & 2:
        old1 = load_more(old1, addresses[4], tile, more, ALIGNED)
    if STATES & 4:
        old2 = load_more(old2, addresses[5], tile, more, ALIGNED)
    if A_KIND == STORED and not HELD:  # also where it was read before find_converting wrote it
        alpha_or_a = load_more(alpha_or_a, anchor[0], tile, groups(converting, ALIGNED), ALIGNED)
    return exact, written, old0, old1, old2, alpha_or_a, f


@triton.jit
def step_tile(
    tile,
    grad,
    silent,
    converting,
    touched,
    state,
    addresses,
    scale,
    rule,
    anchor,
    prune,
    all_rows,
    WEIGHT_DTYPE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    HELD: tl.constexpr,
    A_KIND: tl.constexpr,
    SILENT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Steps the functional synapses of a tile with the gradient ``grad`` [T, 32], converts and prunes.

    ``silent`` and ``converting`` are words; ``touched``, from :func:`matrix.groups`, are the functional and the
    converting ones with what is accessed with them: silent synapses among these are written back as they were.
    ``state``, from :func:`load_state`, has what is read of them. ``addresses`` are those of weight, master,
    alpha and states, and pointers to the tile's words and to the counts of its rows; the counts of what was
    pruned follow ``all_rows`` later.
    """
    weight_address, master_address, _, at0, at1, at2, words_pointers, counts = addresses
    weight, written, old0, old1, old2, alpha_or_a, f = state
    lr, numbers, corrections, skip_nonfinite = rule
    HAS_MASTER: tl.constexpr = WEIGHT_DTYPE != tl.float32
    if HAS_MASTER:
        followed = exact_weight(written, weight, WEIGHT_DTYPE)
        weight = tl.where(lanes(silent), weight, followed) if SILENT else followed
    if HELD:
        alpha = alpha_or_a
        a = weight
        if SILENT:  # noqa: SIM102 - a constexpr; only what is inserted needs an anchor
            if tl.max(converting, axis=0) != 0:
                a = source_synapses(anchor, tile, groups(converting, ALIGNED), A_KIND, ALIGNED)
    else:
        a = alpha_or_a
        alpha = gate(weight, a, f, scale)
    new_weight, s0, s1, s2 = step(
        weight, grad, alpha, old0, old1, old2, lr, numbers, corrections, skip_nonfinite, RULE, STATES
    )
    if SILENT:
        functional = lanes(tile[4] & ~silent)
        converts = lanes(converting) & finite(a)
        prunes = functional & (tl.abs(weight) < prune) & (tl.abs(new_weight) < prune)
        changes = converts | prunes
        new_weight = tl.where(functional, new_weight, weight)
        new_weight = tl.where(converts, a, tl.where(prunes, 0.0, new_weight))
        if STATES & 1:
            s0 = tl.where(changes, 0.0, tl.where(functional, s0, old0))
        if STATES & 2:
            s1 = tl.where(changes, 0.0, tl.where(functional, s1, old1))
        if STATES & 4:
            s2 = tl.where(changes, 0.0, tl.where(functional, s2, old2))
        changed = pack(changes)
        # Not of ``silent``, which has no bits past the last column: those are nobody's, and stay.
        words = tl.load(words_pointers, mask=changed != 0, other=0)
        tl.store(words_pointers, words ^ changed, mask=changed != 0)
        # Sums of integers do not depend on the order of the programs.
        converted, pruned = count_bits(changed & silent), count_bits(changed & ~silent)
        tl.atomic_add(counts, converted, mask=converted != 0, sem="relaxed")
        tl.atomic_add(counts + all_rows, pruned, mask=pruned != 0, sem="relaxed")
    if HAS_MASTER:
        store_synapses(master_address, tile, touched, new_weight, tl.float32, ALIGNED)
        if SILENT:
            store_rounded(weight_address, tile, touched, new_weight, functional | converts,
                          touched & groups(silent, ALIGNED), WEIGHT_DTYPE, ALIGNED)  # fmt: skip
        else:
            store_synapses(weight_address, tile, touched, new_weight, WEIGHT_DTYPE, ALIGNED)
    else:
        store_synapses(weight_address, tile, touched, new_weight, WEIGHT_DTYPE, ALIGNED)
    if STATES & 1:
        store_synapses(at0, tile, touched, s0, tl.float32, ALIGNED)
    if STATES & 2:
        store_synapses(at1, tile, touched, s1, tl.float32, ALIGNED)
    if STATES & 4:
        store_synapses(at2, tile, touched, s2, tl.float32, ALIGNED)
