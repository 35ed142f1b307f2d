"""Numbers at the ends of their ranges, and gradients that are infinite or not a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flexkern import Field, ops
from helpers import judge
from helpers.judge import Rule, make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

INF, NAN = math.inf, math.nan
LARGEST = torch.finfo(torch.float32).max
SMALLEST_NORMAL = 2.0**-126
SMALLEST = 2.0**-149


def gate_of(w: float, a: float, f: float, scale: float, count: int = 21) -> Tensor:
    """alpha of ``count`` equal synapses: more than one vector, and a tail."""
    return ops.metaplastic_gate(
        torch.full((count,), w), torch.full((count,), a), torch.full((count,), f), scale
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1e-30, 1.0, 4e5, 1e30])
@pytest.mark.parametrize(("w", "a"), [(0.1, 0.1), (0.1, 0.2), (-3e30, 3e30), (SMALLEST, 0.0), (0.0, -0.0)])
def test_f_of_0_never_moves_and_f_of_1_always(backend: str, w: float, a: float, scale: float) -> None:
    assert (gate_of(w, a, 0.0, scale) == 0).all()
    assert (gate_of(w, a, 1.0, scale) == 1).all()


def test_f_of_1_moves_also_where_the_displacement_overflows(backend: str) -> None:
    assert (gate_of(LARGEST, -LARGEST, 1.0, 4e5) == 1).all()
    assert (gate_of(LARGEST, -LARGEST, 0.5, 4e5) == 0).all()
    assert (gate_of(LARGEST, -LARGEST, 0.0, 4e5) == 0).all()


@pytest.mark.parametrize("f", [SMALLEST, 1e-40, SMALLEST_NORMAL * (1 - 2.0**-23), 0.0])
@pytest.mark.parametrize("scale", [1e-30, 4e5, 1e38])
def test_an_f_under_the_smallest_normal_number_counts_as_0(backend: str, f: float, scale: float) -> None:
    for w, a in ((0.0, 0.0), (0.1, 0.1), (1.0, 0.0), (SMALLEST, 0.0)):
        assert (gate_of(w, a, f, scale) == 0).all()


def test_f_of_1_moves_whatever_its_anchor_is(backend: str) -> None:
    for anchor in (float("nan"), float("inf"), -LARGEST):
        assert (gate_of(0.5, anchor, 1.0, 4e5) == 1).all()
    assert gate_of(0.5, float("nan"), 0.5, 4e5).isnan().all()


@pytest.mark.parametrize("f", [SMALLEST_NORMAL, 1e-6, 0.3, 1 - 2.0**-24, 1.0])
@pytest.mark.parametrize("scale", [1e-30, 4e5, 1e38])
def test_a_weight_at_its_anchor_moves_freely(backend: str, f: float, scale: float) -> None:
    for w in (0.0, 0.1, -1e30, SMALLEST, LARGEST):
        assert (gate_of(w, w, f, scale) == 1).all()


@pytest.mark.parametrize("f", [SMALLEST, 1e-40, SMALLEST_NORMAL, 1e-20, 0.5])
def test_far_from_its_anchor_it_is_stuck(backend: str, f: float) -> None:
    for displacement in (1e-3, 1.0, 1e20, LARGEST):
        assert (gate_of(displacement, 0.0, f, 4e5) == 0).all()


def test_tiny_displacements(backend: str) -> None:
    for displacement in (SMALLEST, 1e-40, 1e-30, 1e-20):
        assert (gate_of(displacement, 0.0, 0.5, 4e5) == 1).all()
    # at 1 the difference counts: one float32 step of w is 1.2e-7, where k = 0.048
    w, a = torch.full((21,), 1 + 2.0**-23), torch.ones(21)
    alpha, bound = judge.judge_gate(w, a, torch.full((21,), 0.5), 4e5)
    assert alpha[0] < 0.998
    judge.assert_within(ops.metaplastic_gate(w, a, 0.5, 4e5), alpha, bound)


def test_nan_and_infinite_weights_do_not_pass_for_numbers(backend: str) -> None:
    assert gate_of(NAN, 0.0, 0.5, 1.0).isnan().all()
    assert (gate_of(INF, 0.0, 0.5, 1.0) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lr_of_0_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    x, before = make_inputs((1000,), 1, dtype), make_inputs((1000,), 1, dtype)
    master = None if dtype is torch.float32 else x.master
    ops.metaplastic_sgd_(
        x.weight, x.grad, x.anchor, x.flexibility, lr=0, scale=20.0, master=master, weight_decay=0.1
    )
    for got, expected in zip(x, before, strict=True):
        assert same_bits(got, expected)


def test_f_of_0_in_a_step(backend: str) -> None:
    x, before = make_inputs((1000,), 2), make_inputs((1000,), 2)
    x.flexibility[::2] = 0
    rule = Rule(momentum=0.9, weight_decay=0.1)
    ops.metaplastic_sgd_(x.weight, x.grad, x.anchor, x.flexibility, momentum_buffer=x.buffer, **rule._asdict())
    assert same_bits(x.weight[::2], before.weight[::2])
    # alpha scales the step, not what enters the buffer
    judged = judge.judge_step(before.weight, before.grad, torch.zeros(1000), 0.0, rule, before.buffer)
    judge.assert_within(x.buffer, judged.buffer, judged.buffer_bound)


def test_subnormal_weights_stay_or_become_0(backend: str) -> None:
    # A kernel flushes results under 2^-126; nothing else moves.
    weight = torch.tensor([SMALLEST, 1e-40, -1e-38, SMALLEST_NORMAL, -SMALLEST_NORMAL, 0.0, -0.0, 1.0] * 5)
    for f, lr in ((0.0, 0.1), (1.0, 0.0)):
        after = weight.clone()
        ops.metaplastic_sgd_(after, torch.ones(40), torch.zeros(40), torch.full((40,), f), lr=lr, scale=4e5)
        normal = (weight.abs() >= SMALLEST_NORMAL) | (weight == 0)
        assert same_bits(after[normal], weight[normal])
        assert ((after == weight) | (after == 0)).all()


# --------------------------------------------------------------------------- nonfinite

POISON = {"nan": NAN, "inf": INF, "-inf": -INF}
PLACES = [0, 7, 16, 998, 1023, 1024]  # in the first vector, the second, the last whole one, and the tail


def poisoned(poison: float, dtype: torch.dtype, grad_dtype: torch.dtype | None = None) -> judge.Inputs:
    x = make_inputs((1029,), 3, dtype, grad_dtype)
    x.grad[PLACES] = poison
    return x


def run(x: judge.Inputs, nonfinite: str, *, gate: str = "formula", momentum: float = 0.9) -> None:
    common = {
        "lr": 0.1,
        "momentum": momentum,
        "weight_decay": 0.01,
        "momentum_buffer": x.buffer if momentum else None,
        "master": None if x.weight.dtype is torch.float32 else x.master,
        "nonfinite": nonfinite,
    }
    if gate == "formula":
        ops.metaplastic_sgd_(x.weight, x.grad, x.anchor, x.flexibility, scale=20.0, **common)
    else:
        ops.gated_sgd_(x.weight, x.grad, x.flexibility if gate == "stored" else None, **common)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gate", ["formula", "stored", "free"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_skip_changes_the_finite_ones_only(
    backend: str, poison: float, dtype: torch.dtype, gate: str, momentum: float
) -> None:
    x, before = poisoned(poison, dtype), poisoned(poison, dtype)
    clean = make_inputs((1029,), 3, dtype)
    run(x, "skip", gate=gate, momentum=momentum)
    run(clean, "skip", gate=gate, momentum=momentum)
    hit = torch.zeros(1029, dtype=torch.bool)
    hit[PLACES] = True
    for name in ("weight", "buffer", "master"):
        got = getattr(x, name)
        assert same_bits(got[hit], getattr(before, name)[hit]), name
        assert same_bits(got[~hit], getattr(clean, name)[~hit]), name
    assert not same_bits(x.weight, before.weight)


@pytest.mark.parametrize("gate", ["formula", "stored", "free"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_propagate_writes_what_comes_out(backend: str, dtype: torch.dtype, gate: str) -> None:
    x, clean = poisoned(NAN, dtype), make_inputs((1029,), 3, dtype)
    run(x, "propagate", gate=gate)
    run(clean, "propagate", gate=gate)
    hit = torch.zeros(1029, dtype=torch.bool)
    hit[PLACES] = True
    names = ("weight", "buffer") if dtype is torch.float32 else ("weight", "buffer", "master")
    for name in names:
        assert getattr(x, name)[hit].isnan().all(), name
        assert same_bits(getattr(x, name)[~hit], getattr(clean, name)[~hit]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", [0, 500, 1028])
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_raise_changes_nothing_in_any_tensor(
    backend: str, poison: float, place: int, dtype: torch.dtype
) -> None:
    # only the last gradient of the list is bad
    lists = [make_inputs((1029,), seed, dtype) for seed in (4, 5, 6)]
    lists[2].grad[place] = poison
    before = [judge.Inputs(*(t.clone() for t in x)) for x in lists]
    versions = [t._version for x in lists for t in x]
    weight, grad, anchor, flexibility, buffer, master = (list(c) for c in zip(*lists, strict=True))
    low = {"momentum_buffer": buffer, "momentum": 0.9, "master": None if dtype is torch.float32 else master}
    message = r"grad\[2\] of shape \(1029,\) has infinite or NaN elements.*nothing was changed"
    with pytest.raises(FloatingPointError, match=message):
        ops.metaplastic_sgd_(weight, grad, anchor, flexibility, lr=0.1, scale=20.0, nonfinite="raise", **low)
    with pytest.raises(FloatingPointError, match=message):
        ops.gated_sgd_(weight, grad, None, lr=0.1, nonfinite="raise", **low)
    for x, y in zip(lists, before, strict=True):
        for got, expected in zip(x, y, strict=True):
            assert same_bits(got, expected)
    assert [t._version for x in lists for t in x] == versions


def test_modes_agree_on_finite_gradients(backend: str) -> None:
    results = []
    for mode in ("skip", "raise", "propagate"):
        x = make_inputs((1029,), 3)
        run(x, mode)
        results.append(x)
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert same_bits(got, expected)


def test_a_step_that_overflows_is_skipped(backend: str) -> None:
    # finite gradients, a new weight that float32 cannot hold
    weight = torch.full((21,), LARGEST)
    ops.gated_sgd_(weight, torch.full((21,), -LARGEST), None, lr=1.0)
    assert (weight == LARGEST).all()
    ops.gated_sgd_(weight, torch.full((21,), -LARGEST), None, lr=1.0, nonfinite="propagate")
    assert (weight == INF).all()


def test_a_frozen_synapse_survives_an_infinite_gradient(backend: str) -> None:
    # alpha = 0 times an infinite gradient is not a number; neither w nor its momentum takes it
    weight, buffer = torch.ones(21), torch.ones(21)
    grad = torch.full((21,), INF)
    ops.metaplastic_sgd_(
        weight, grad, Field.normal(0), 0.0, lr=0.1, scale=4e5, momentum=0.9, momentum_buffer=buffer
    )  # fmt: skip
    assert (weight == 1).all()
    assert (buffer == 1).all()
