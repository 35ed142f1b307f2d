"""The AdamW step: against float64, torch's own, and between backends (bounds in helpers/judge_adamw.py)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from flexkern.ops.layers import LayerGate
from flexkern.ops.linear import STEPS as LINEAR_STEPS
from flexkern.ops.linear import linear_step_by_rule
from flexkern.ops.synapse import STEPS as SYNAPSE_STEPS
from flexkern.ops.synapse import synapse_step_by_rule
from helpers import judge
from helpers.arguments import LAYOUTS, count_around, lay_out, refuses
from helpers.judge import same_bits
from helpers.judge_adamw import Operands, judge_adamw, make_operands

pytestmark = pytest.mark.usefixtures("one_thread")

LR, SCALE = 0.125, 20.0
RULES: list[dict[str, Any]] = [
    {},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.0},
    {"beta1": 0.5, "beta2": 0.75, "eps": 0.01, "weight_decay": 0.3},
    {"beta1": 0.0, "beta2": 0.0, "amsgrad": True, "maximize": True},
]
LOW = [torch.bfloat16, torch.float16]
DTYPES = [(torch.float32, torch.float32), *((w, g) for w in LOW for g in (w, torch.float32))]
COUNTS = [1.0, 2.0, 10.0, 1000.0, 1e6]


def clone(x: Operands) -> Operands:
    return Operands(*(t.clone() for t in x))


def check(before: Operands, after: Operands, alpha: Tensor, alpha_bound: Tensor | float, rule: dict) -> None:
    """``after`` is ``before`` stepped with this alpha."""
    expected = judge_adamw(before, alpha, alpha_bound, LR, rule)
    low = before.weight.dtype is not torch.float32
    judge.assert_within(after.master if low else after.weight, expected.weight, expected.weight_bound)
    if low:
        assert same_bits(after.weight, after.master.to(after.weight.dtype))
    judge.assert_within(after.exp_avg, expected.exp_avg, expected.exp_avg_bound)
    judge.assert_within(after.exp_avg_sq, expected.exp_avg_sq, expected.exp_avg_sq_bound)
    if rule.get("amsgrad"):
        judge.assert_within(after.max_exp_avg_sq, expected.max_exp_avg_sq, expected.exp_avg_sq_bound)
    else:
        assert same_bits(after.max_exp_avg_sq, before.max_exp_avg_sq)
    for name in ("grad", "anchor", "flexibility", "step"):
        assert same_bits(getattr(after, name), getattr(before, name))


# ------------------------------------------------------------------ against float64


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (33, 65), (9001,)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_step_that_computes_its_gate(backend: str, rule: dict, shape: tuple[int, ...]) -> None:
    before = make_operands(shape, seed=1)
    after = clone(before)
    ops.metaplastic_adamw_(
        after.weight, after.grad, after.anchor, after.flexibility, lr=LR, scale=SCALE, **after.states(rule),
        **rule,
    )  # fmt: skip
    alpha, bound = judge.judge_gate(before.weight, before.anchor, before.flexibility, SCALE)
    check(before, after, alpha, bound, rule)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_held_gate(backend: str, rule: dict, dtypes: tuple[torch.dtype, torch.dtype], count: float) -> None:
    before = make_operands((1037,), 2, *dtypes, step=count)
    after = clone(before)
    ops.gated_adamw_(after.weight, after.grad, after.flexibility, lr=LR, **after.states(rule), **rule)
    check(before, after, before.flexibility.double(), 0.0, rule)


def test_a_gate_held_in_bfloat16_is_that_gate_widened(backend: str) -> None:
    narrow, wide = make_operands((1037,), 3), make_operands((1037,), 3)
    alpha = narrow.flexibility.bfloat16()
    ops.gated_adamw_(narrow.weight, narrow.grad, alpha, lr=LR, **narrow.states({}))
    ops.gated_adamw_(wide.weight, wide.grad, alpha.float(), lr=LR, **wide.states({}))
    for one, other in zip(narrow, wide, strict=True):
        assert same_bits(one, other)


def test_a_drawn_source_is_that_source_stored(backend: str) -> None:
    drawn, stored = make_operands((33, 65), 4), make_operands((33, 65), 4)
    fields = Field.normal(1), Field.uniform(2)
    tensors = [ops.materialize(f, (33, 65)) for f in fields]
    for x, sources in ((drawn, fields), (stored, tensors)):
        ops.metaplastic_adamw_(x.weight, x.grad, *sources, lr=LR, scale=SCALE, **x.states({}))
    for one, other in zip(drawn, stored, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    rule = {"amsgrad": True}
    before = make_operands((13, 21), 5)
    after = Operands(*(t if t.dim() == 0 else lay_out(t, layout) for t in before))
    beside = [count_around(t) for t in after if t.dim()]
    ops.gated_adamw_(after.weight, after.grad, after.flexibility, lr=LR, **after.states(rule), **rule)
    check(before, Operands(*(t.contiguous() for t in after)), before.flexibility.double(), 0.0, rule)
    assert beside == [count_around(t) for t in after if t.dim()]


def test_weights_of_a_list_may_have_stepped_differently_often(backend: str) -> None:
    counts = [1.0, 7.0, 3000.0, 2.0]
    together = [make_operands((n,), n, step=c) for n, c in zip((5, 0, 4097, 33), counts, strict=True)]
    alone = [clone(x) for x in together]
    columns = {name: [x.states({})[name] for x in together] for name in ("exp_avg", "exp_avg_sq", "step")}
    ops.gated_adamw_(
        [x.weight for x in together], [x.grad for x in together], [x.flexibility for x in together], lr=LR,
        **columns,
    )  # fmt: skip
    for x, y in zip(together, alone, strict=True):
        before = clone(y)
        ops.gated_adamw_(y.weight, y.grad, y.flexibility, lr=LR, **y.states({}))
        check(before, y, before.flexibility.double(), 0.0, {})
        for one, other in zip(x, y, strict=True):
            assert same_bits(one, other)


def test_one_count_may_serve_all_weights(backend: str) -> None:
    a, b = make_operands((5,), 1, step=4.0), make_operands((9,), 2, step=4.0)
    together = [clone(a), clone(b)]
    states = {name: [getattr(x, name) for x in together] for name in ("exp_avg", "exp_avg_sq")}
    ops.gated_adamw_(
        [x.weight for x in together], [a.grad, b.grad], None, lr=LR, step=[a.step, a.step], **states
    )
    for x, y in zip(together, (a, b), strict=True):
        ops.gated_adamw_(y.weight, y.grad, None, lr=LR, **y.states({}))
        assert same_bits(x.weight, y.weight)


# ------------------------------------------------------------------ torch's own


@pytest.mark.parametrize(("amsgrad", "maximize"), list(itertools.product((False, True), repeat=2)))
def test_conventional_synapses_step_as_with_torch(backend: str, amsgrad: bool, maximize: bool) -> None:
    # These betas and their distances to 1 are numbers of float32, so both compute the same in exact arithmetic.
    numbers = {
        "beta1": 0.875, "beta2": 1 - 2.0**-10, "eps": 2.0**-20, "weight_decay": 0.125, "amsgrad": amsgrad,
        "maximize": maximize,
    }  # fmt: skip
    after = make_operands((1000,), 6)
    after = after._replace(**{name: torch.zeros(1000) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")})
    after = after._replace(step=torch.zeros(()))
    generator = torch.Generator().manual_seed(7)
    for _ in range(5):
        after.step.add_(1)
        after = after._replace(grad=torch.randn(1000, generator=generator), master=after.weight)
        before = clone(after)
        exact = torch.nn.Parameter(before.weight.double())
        optimizer = torch.optim.AdamW(
            [exact], lr=LR, betas=(0.875, 1 - 2.0**-10),
            **{name: numbers[name] for name in ("eps", "weight_decay", "amsgrad", "maximize")},
        )  # fmt: skip
        states = {name: getattr(before, name).double() for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
        optimizer.state[exact].update({"step": before.step - 1, **states})
        exact.grad = before.grad.double()
        optimizer.step()
        judged = judge_adamw(before, torch.ones(()).double(), 0.0, LR, numbers)
        torch.testing.assert_close(judged.weight, exact.detach(), rtol=1e-12, atol=1e-12)
        ops.gated_adamw_(after.weight, after.grad, None, lr=LR, **after.states(numbers), **numbers)
        judge.assert_within(after.weight, exact.detach(), judged.weight_bound + 1e-12)
        judge.assert_within(after.exp_avg, optimizer.state[exact]["exp_avg"], judged.exp_avg_bound)
        judge.assert_within(after.exp_avg_sq, optimizer.state[exact]["exp_avg_sq"], judged.exp_avg_sq_bound)


def test_float64_is_torch_in_float64() -> None:
    x = make_operands((100,), 8, torch.float64, step=0.0)
    x = x._replace(exp_avg=0 * x.exp_avg, exp_avg_sq=0 * x.exp_avg_sq, step=torch.zeros(()))
    exact = torch.nn.Parameter(x.weight.clone())
    optimizer = torch.optim.AdamW([exact], lr=LR)
    for i in range(4):
        exact.grad = x.grad * (i + 1)
        optimizer.step()
        x.step.add_(1)
        ops.gated_adamw_(x.weight, exact.grad, None, lr=LR, **x.states({}))
    torch.testing.assert_close(x.weight, exact.detach(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_backends_agree(rule: dict, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    # The means to the bit: each operation of theirs rounds once. Weights are as far apart as their roots are:
    # torch.sqrt is not the nearest number for one in twelve.
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    before = make_operands((2500,), 9, *dtypes)
    bound = judge_adamw(before, before.flexibility.double(), 0.0, LR, rule).weight_bound
    results = []
    for name in ("reference", "cpu"):
        x = clone(before)
        with flexkern.use_backend(name):
            ops.gated_adamw_(x.weight, x.grad, x.flexibility, lr=LR, **x.states(rule), **rule)
        results.append(x)
    one, other = results
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert same_bits(getattr(one, name), getattr(other, name))
    exact = [x.weight if dtypes[0] is torch.float32 else x.master for x in results]
    judge.assert_within(exact[0], exact[1].double(), 2 * bound)


# ------------------------------------------------------------------ what is not finite, and what is refused


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_what_is_not_finite(backend: str, nonfinite: str) -> None:
    rule = {"amsgrad": True}
    after, expected = make_operands((100,), 10), make_operands((100,), 10)
    bad = torch.zeros(100, dtype=torch.bool)
    bad[[3, 50, 99]] = True
    before = clone(after)
    after.grad[[3, 50, 99]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    ops.gated_adamw_(after.weight, after.grad, None, lr=LR, nonfinite=nonfinite, **after.states(rule), **rule)
    ops.gated_adamw_(expected.weight, expected.grad, None, lr=LR, **expected.states(rule), **rule)
    for name in ("weight", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        got = getattr(after, name)
        assert same_bits(got[~bad], getattr(expected, name)[~bad])
        if nonfinite == "skip":
            assert same_bits(got[bad], getattr(before, name)[bad])
    if nonfinite == "propagate":
        assert not after.weight[bad].isfinite().any()


def test_raise_changes_nothing(backend: str) -> None:
    x = make_operands((10,), 11)
    x.grad[4] = torch.inf
    before = clone(x)
    with pytest.raises(FloatingPointError, match="grad"):
        ops.gated_adamw_(x.weight, x.grad, None, lr=LR, nonfinite="raise", **x.states({}))
    for one, other in zip(x, before, strict=True):
        assert same_bits(one, other)


def test_a_weight_without_gradient_or_means_and_without_eps_stays(backend: str) -> None:
    # 0 / 0: no direction.
    w, zero = torch.ones(20), torch.zeros(20)
    ops.gated_adamw_(
        w, zero, None, lr=LR, exp_avg=zero.clone(), exp_avg_sq=zero.clone(), step=torch.ones(1), eps=0.0
    )
    assert bool((w == 1).all())


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("step", None, ValueError, "step is needed"),
        ("step", 3.0, TypeError, r"step must be a torch\.Tensor"),
        ("step", torch.ones(2), ValueError, "step must be one float32 element"),
        ("step", torch.ones((), dtype=torch.int64), ValueError, "step must be one float32 element"),
        ("step", [torch.ones(())] * 2, ValueError, "step has 2 entries"),
        ("exp_avg", None, ValueError, "exp_avg is needed"),
        ("exp_avg_sq", torch.zeros(3), ValueError, "exp_avg_sq must have the shape"),
        ("max_exp_avg_sq", None, ValueError, "max_exp_avg_sq is needed"),
        ("beta1", 1.0, ValueError, "beta1 and beta2 must be"),
        ("beta2", 1.5, ValueError, "beta1 and beta2 must be"),
        ("beta1", -0.1, ValueError, "beta1 must be >= 0"),
        ("eps", -1e-8, ValueError, "eps must be >= 0"),
        ("weight_decay", -1.0, ValueError, "weight_decay must be >= 0"),
        ("betas", (0.9, 0.99), TypeError, "did you mean 'beta"),
    ],
    ids=str,
)
def test_refusals_name_the_argument(backend: str, name: str, value: Any, error: type, message: str) -> None:
    x = make_operands((4, 6), 12)
    arguments = {
        "weight": x.weight, "grad": x.grad, "alpha": None, "lr": LR, "amsgrad": True,
        **x.states({"amsgrad": True}), name: value,
    }  # fmt: skip
    refuses(ops.gated_adamw_, arguments, error, message)


def test_the_compiled_operator_looks_at_the_count_itself() -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    w, zero = torch.ones(3), torch.zeros(3)
    for step in (None, [torch.ones(2)], [torch.ones((), dtype=torch.float64)], [torch.ones(())] * 2):
        with pytest.raises(RuntimeError, match=r"flexkern refuses.*step"):
            torch.ops.flexkern.metaplastic_adamw_(
                [w], [zero], [], [], 0.1, 1.0, [zero], None, None, [zero.clone()], [zero.clone()], None, step
            )
    assert bool((w == 1).all())


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_layers_step_as_weights_do(backend: str, rule: dict, dtype: torch.dtype) -> None:
    """A layer's pass: functional synapses step, and those that convert have states of 0."""
    shape = (9, 71)
    expected = make_operands(shape, 13, dtype, torch.float32)
    synapse, linear = clone(expected), clone(expected)
    silent = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    for x in (expected, synapse):
        x.weight[silent] = 0.0
        x.master[silent] = 0.0
    words = ops.pack_mask(silent)
    started = clone(synapse)
    ops.metaplastic_adamw_(
        expected.weight, expected.grad, expected.anchor, expected.flexibility, lr=LR, scale=SCALE,
        **expected.states(rule), **rule,
    )  # fmt: skip
    pre, post = torch.ones(71), torch.ones(9)
    post[::2] = 0.0  # every second row converts

    def given(x: Operands) -> tuple:
        states = x.states(rule)
        master = states.pop("master")
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")
        return LR, SCALE, {name: states[name] for name in names}, master, "skip", rule, {}

    gate = LayerGate(synapse.anchor, synapse.flexibility, None)
    counts = synapse_step_by_rule(
        SYNAPSE_STEPS["synapse_adamw_step_"], synapse.weight, synapse.grad, gate, words, pre, post, None, 0.5,
        given(synapse),
    )  # fmt: skip
    converted = silent & (post > 0)[:, None]
    assert torch.equal(counts.converted.long(), converted.sum(1))
    exact = synapse.weight if dtype is torch.float32 else synapse.master
    of_expected = expected.weight if dtype is torch.float32 else expected.master
    assert same_bits(exact[~silent], of_expected[~silent])
    assert same_bits(exact[converted], synapse.anchor[converted])
    for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if rule else [])):
        state = getattr(synapse, name)
        assert same_bits(state[~silent], getattr(expected, name)[~silent])
        assert bool((state[converted] == 0).all())
        assert same_bits(state[silent & ~converted], getattr(started, name)[silent & ~converted])

    # With a batch of one sample whose units are powers of 2 the product is exact.
    grad_out, x_in = 2.0 ** torch.arange(-4.0, 5.0), 2.0 ** (torch.arange(71.0) % 5)
    stepped = clone(linear)._replace(grad=torch.outer(grad_out, x_in))
    ops.metaplastic_adamw_(
        stepped.weight, stepped.grad, stepped.anchor, stepped.flexibility, lr=LR, scale=SCALE,
        **stepped.states(rule), **rule,
    )  # fmt: skip
    gate = LayerGate(linear.anchor, linear.flexibility, None)
    linear_step_by_rule(
        LINEAR_STEPS["linear_adamw_step_"], linear.weight, x_in[None], grad_out[None], gate, None, None,
        "hebbian", 0.0, given(linear),
    )  # fmt: skip
    for name in ("weight", "master", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert same_bits(getattr(linear, name), getattr(stepped, name)), name
