"""The AdamW step in Triton against the float64 judge, over dtypes, shapes, sources and numbers of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import flexkern
from flexkern import Field, ops
from flexkern.backends.tuning import config
from flexkern.ops.layers import LayerGate
from flexkern.ops.linear import STEPS as LINEAR_STEPS
from flexkern.ops.linear import linear_step_by_rule
from flexkern.ops.synapse import STEPS as SYNAPSE_STEPS
from flexkern.ops.synapse import synapse_step_by_rule
from helpers import judge
from helpers.judge import same_bits
from helpers.judge_adamw import Operands, Roundings, judge_adamw, make_operands

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

LR, SCALE = 0.125, 20.0
TILE = config("sgd", "stored", "interpreter")["tile"]
RULES: list[dict[str, Any]] = [
    {},
    {"amsgrad": True, "maximize": True},
    {"beta1": 0.5, "beta2": 0.75, "eps": 0.01, "weight_decay": 0.3},
    {"beta1": 0.0, "beta2": 0.0},
]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def to_device(x: Operands, device: torch.device) -> Operands:
    return Operands(*(t.to(device, copy=True) for t in x))


def check(before: Operands, after: Operands, alpha: Any, alpha_bound: Any, rule: dict[str, Any]) -> None:
    """``after`` is ``before`` stepped with this alpha."""
    on_gpu = after.weight.is_cuda
    roundings = Roundings(corrections=12.0, division=4.0 if on_gpu else 1.0)
    expected = judge_adamw(before, alpha, alpha_bound, LR, rule, roundings)
    low = before.weight.dtype is not torch.float32
    exact = after.master if low else after.weight
    judge.assert_within(exact.cpu(), expected.weight, expected.weight_bound)
    if low:
        assert same_bits(after.weight.cpu(), after.master.cpu().to(after.weight.dtype))
    judge.assert_within(after.exp_avg.cpu(), expected.exp_avg, expected.exp_avg_bound)
    judge.assert_within(after.exp_avg_sq.cpu(), expected.exp_avg_sq, expected.exp_avg_sq_bound)
    if rule.get("amsgrad"):
        judge.assert_within(after.max_exp_avg_sq.cpu(), expected.max_exp_avg_sq, expected.exp_avg_sq_bound)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (TILE + 1,), (33, 65)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_step_that_computes_its_gate(rule: dict, shape: tuple[int, ...], device: torch.device) -> None:
    before = make_operands(shape, seed=1)
    after = to_device(before, device)
    ops.metaplastic_adamw_(
        after.weight, after.grad, after.anchor, after.flexibility, lr=LR, scale=SCALE, **after.states(rule),
        **rule,
    )  # fmt: skip
    alpha, bound = judge.judge_gate(before.weight, before.anchor, before.flexibility, SCALE)
    check(before, after, alpha, 2.0 * bound if after.weight.is_cuda else bound, rule)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_dtypes_and_numbers_of_steps_in_one_call(rule: dict, dtypes: tuple, device: torch.device) -> None:
    # The counts of the first weights are on both sides of where the exponential changes its form: 2^-1 of
    # 0.999^t at t = 693.
    counts = [1.0, 2.0, 600.0, 700.0, 1e6]
    sizes = [TILE + 3, 0, 17, 33, 1]
    before = [make_operands((n,), n, *dtypes, step=t) for n, t in zip(sizes, counts, strict=True)]
    after = [to_device(x, device) for x in before]
    names = after[0].states(rule)
    columns = {
        name: None if value is None else [x.states(rule)[name] for x in after] for name, value in names.items()
    }
    ops.gated_adamw_(
        [x.weight for x in after], [x.grad for x in after], [x.flexibility for x in after], lr=LR, **columns,
        **rule,
    )  # fmt: skip
    for x, y in zip(before, after, strict=True):
        check(x, y, x.flexibility.double(), 0.0, rule)


def test_drawn_sources(device: torch.device) -> None:
    drawn = to_device(make_operands((33, 65), 4), device)
    stored = to_device(make_operands((33, 65), 4), device)
    fields = Field.normal(1), Field.uniform(2)
    tensors = [ops.materialize(f, (33, 65), device=device) for f in fields]
    for x, sources in ((drawn, fields), (stored, tensors)):
        ops.metaplastic_adamw_(x.weight, x.grad, *sources, lr=LR, scale=SCALE, **x.states({}))
    for one, other in zip(drawn, stored, strict=True):
        assert same_bits(one, other)


def test_a_count_that_lies_anywhere_leaves_the_accesses_wide(device: torch.device) -> None:
    counts = torch.arange(4.0, device=device)
    x, y = (to_device(make_operands((TILE,), 5), device) for _ in range(2))
    ops.gated_adamw_(x.weight, x.grad, None, lr=LR, **{**x.states({}), "step": counts[3]})
    ops.gated_adamw_(y.weight, y.grad, None, lr=LR, **y.states({}))
    for one, other in zip(x, y, strict=True):
        assert same_bits(one, other)


def test_what_is_not_finite_is_skipped(device: torch.device) -> None:
    rule = {"amsgrad": True}
    after = to_device(make_operands((100,), 10), device)
    before = to_device(after, device)
    bad = [3, 50, 99]
    after.grad[bad] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    ops.gated_adamw_(after.weight, after.grad, None, lr=LR, **after.states(rule), **rule)
    for name in ("weight", *STATES):
        assert same_bits(getattr(after, name)[bad], getattr(before, name)[bad])
        assert bool(getattr(after, name).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_layers(rule: dict, dtype: torch.dtype, device: torch.device) -> None:
    """As the reference: functional synapses step, those that convert have states of 0."""
    shape = (9, 71)
    silent = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    post = (torch.arange(9) % 2).float()
    # With one sample whose units are powers of 2 the product is exact.
    grad_out, x_in = 2.0 ** torch.arange(-4.0, 5.0), 2.0 ** (torch.arange(71.0) % 5)

    def given(x: Operands) -> tuple:
        states = x.states(rule)
        master = states.pop("master")
        return LR, SCALE, {name: states[name] for name in (*STATES, "step")}, master, "skip", rule, {}

    def run(backend: str, where: torch.device) -> list[torch.Tensor]:
        results: list[torch.Tensor] = []
        with flexkern.use_backend(backend):
            for fused in (False, True):
                x = to_device(make_operands(shape, 13, dtype, torch.float32), where)
                gate = LayerGate(x.anchor, x.flexibility, None)
                words = ops.pack_mask(silent.to(where))
                if fused:
                    counts = linear_step_by_rule(
                        LINEAR_STEPS["linear_adamw_step_"], x.weight, x_in[None].to(where),
                        grad_out[None].to(where), gate, None, None, "hebbian", 0.0, given(x),
                    )  # fmt: skip
                else:
                    x.weight[silent.to(where)] = 0.0
                    x.master[silent.to(where)] = 0.0
                    counts = synapse_step_by_rule(
                        SYNAPSE_STEPS["synapse_adamw_step_"], x.weight, x.grad, gate, words,
                        torch.ones(71, device=where), post.to(where), None, 0.5, given(x),
                    )  # fmt: skip
                exact = x.weight if dtype is torch.float32 else x.master
                results += [t.cpu() for t in (exact, *(getattr(x, n) for n in STATES), words, *counts)]
        return results

    got, expected = run("triton", device), run("reference", torch.device("cpu"))
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        if i % 7 == 0:
            # The weight: each is within its bound of the exact one; 40 roundings of steps of at most 2 or so.
            torch.testing.assert_close(one, other, rtol=0, atol=2.0**-17)
        else:
            assert same_bits(one, other)
