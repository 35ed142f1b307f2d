"""The gate and the step on every backend, dtype, shape and layout against float64; the published values."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import ops, reference
from helpers import judge
from helpers.judge import Rule, make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

# 16 lanes, chunks of 1024 elements, threads in units of 4096: one below, at and above; and several of each.
SHAPES = [(), (0,), (0, 5), (1,), (3,), (15,), (16,), (17,), (1023,), (1025,), (33, 65), (3, 1, 5), (70000,)]
RULES = {
    "plain": Rule(),
    "decay": Rule(weight_decay=0.3),
    "maximize": Rule(weight_decay=0.3, maximize=True),
    "momentum": Rule(momentum=0.9),
    "dampening": Rule(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": Rule(momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True),
}
LOW = (torch.bfloat16, torch.float16)


def step(inputs: judge.Inputs, rule: Rule, **change: object) -> None:
    """metaplastic_sgd_ on all operands of ``inputs``."""
    arguments = {
        "anchor": inputs.anchor,
        "flexibility": inputs.flexibility,
        "momentum_buffer": inputs.buffer if rule.momentum else None,
        "master": inputs.master if inputs.weight.dtype in LOW else None,
        **rule._asdict(),
        **change,
    }
    ops.metaplastic_sgd_(inputs.weight, inputs.grad, **arguments)


def clone(inputs: judge.Inputs) -> judge.Inputs:
    return judge.Inputs(*(t.clone() for t in inputs))


def check_step(before: judge.Inputs, after: judge.Inputs, rule: Rule, flexibility: float | None = None) -> None:
    """``after`` is one step away from ``before``, and what is only read has not changed."""
    f = before.flexibility if flexibility is None else torch.full_like(before.flexibility, flexibility)
    alpha, alpha_bound = judge.judge_gate(before.master, before.anchor, f, rule.scale)
    judged = judge.judge_step(
        before.master, before.grad, alpha, alpha_bound, rule, before.buffer if rule.momentum else None
    )
    if before.weight.dtype in LOW:
        judge.assert_within(after.master, judged.weight, judged.weight_bound)
        assert same_bits(after.weight, after.master.to(after.weight.dtype))  # rounded from it, once
    else:
        judge.assert_within(after.weight, judged.weight, judged.weight_bound)
        assert same_bits(after.master, before.master)
    if judged.buffer is None:
        assert same_bits(after.buffer, before.buffer)
    else:
        judge.assert_within(after.buffer, judged.buffer, judged.buffer_bound)
    for name in ("grad", "anchor", "flexibility"):
        assert same_bits(getattr(after, name), getattr(before, name)), name


# --------------------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate(backend: str, shape: tuple[int, ...]) -> None:
    x = make_inputs(shape, seed=len(shape) + 1)
    alpha = ops.metaplastic_gate(x.master, x.anchor, x.flexibility, 20.0)
    assert alpha.dtype is torch.float32
    assert alpha.is_contiguous()
    judge.assert_within(alpha, *judge.judge_gate(x.master, x.anchor, x.flexibility, 20.0))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [4e5, 100359.0, 1e-3, 7e4 / 3])
def test_gate_at_the_scales_of_real_training(backend: str, scale: float, seed: int) -> None:
    # 2k runs over [0, 100]: alpha from 1 to 1e-43, where float32 has lost it.
    generator = torch.Generator().manual_seed(seed)
    w = 0.02 * torch.randn(20000, generator=generator)
    f = torch.rand(20000, generator=generator).clamp(2.0**-23, 1 - 2.0**-23)
    k = 50 * torch.rand(20000, generator=generator) * torch.rand(20000, generator=generator)
    a = w + k * f / (scale * (1 - f))
    judge.assert_within(ops.metaplastic_gate(w, a, f, scale), *judge.judge_gate(w, a, f, scale))


def test_the_gates_constants_have_no_bias(backend: str) -> None:
    # With s and f powers of two k has one rounding, that of a product, whose errors cancel over many synapses.
    # What is left in the mean is the constant 2 log2(e): 0.22 U off in float32, its neighbours over 1 U.
    generator = torch.Generator().manual_seed(9)
    w = 1 + torch.rand(20000, generator=generator)
    a = w - (5 + 20 * torch.rand(20000, generator=generator)) * 2.0**-18
    alpha = ops.metaplastic_gate(w, a, 0.5, 2.0**18).double()
    exact, _ = judge.judge_gate(w, a, torch.full_like(w, 0.5), 2.0**18)
    two_k = 2 * 2.0**18 * (w.double() - a.double())
    assert abs(float(((alpha / exact - 1) / two_k).mean())) < 0.5 * judge.U


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_step(backend: str, rule: Rule, shape: tuple[int, ...]) -> None:
    before = make_inputs(shape, seed=sum(shape))
    after = clone(before)
    step(after, rule)
    check_step(before, after, rule)


@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (33, 65), (9001,)], ids=str)
@pytest.mark.parametrize("rule", [RULES["plain"], RULES["nesterov"]], ids=["plain", "nesterov"])
@pytest.mark.parametrize("grad", ["own", "float32"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_step_of_low_precision_weights(
    backend: str, dtype: torch.dtype, grad: str, rule: Rule, shape: tuple[int, ...]
) -> None:
    before = make_inputs(shape, seed=7, dtype=dtype, grad_dtype=torch.float32 if grad == "float32" else dtype)
    after = clone(before)
    step(after, rule)
    check_step(before, after, rule)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_gradients_and_roundings_of_every_magnitude(backend: str, dtype: torch.dtype) -> None:
    # Each of the 2^16 gradients, and weights that sweep all numbers of the format and the halfway points
    # between them, but not those that are subnormal in float32 as well: a kernel may flush them.
    pattern = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    every = pattern.view(dtype).float()
    numbers = torch.where(every.isfinite(), every, 0.0)
    next_number = (pattern + 1).view(dtype).float()
    halfway = torch.where(next_number.isfinite() & every.isfinite(), numbers / 2 + next_number / 2, 1.0)
    free, zero = torch.ones(1 << 16), torch.zeros(1 << 16, dtype=dtype)
    for start in (numbers, halfway, torch.nextafter(halfway, free), torch.nextafter(halfway, -free)):
        start = torch.where(start.abs() < 2.0**-126, 0.0 * start, start)
        weight, master = start.to(dtype), start.clone()  # that agree, and so stay
        ops.gated_sgd_(weight, zero, free, lr=0.5, master=master)
        assert same_bits(master, start)
        assert same_bits(weight, start.to(dtype))
        weight, master = torch.zeros_like(zero), torch.zeros_like(start)  # that step there from 0: 0 - (-start)
        ops.gated_sgd_(weight, -start, free, lr=1.0, master=master)
        assert same_bits(master, start + 0.0)
        assert same_bits(weight, (start + 0.0).to(dtype))
    weight, master = torch.zeros_like(zero), torch.zeros(1 << 16)
    ops.gated_sgd_(weight, numbers.to(dtype), free, lr=0.5, master=master)
    judge.assert_within(master, -0.5 * numbers.double(), torch.full_like(master, 2.0**-126))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_step_in_float64(rule: Rule) -> None:
    before = make_inputs((33, 65), seed=3, dtype=torch.float64)
    after = clone(before)
    step(after, rule)
    alpha = ops.metaplastic_gate(before.weight, before.anchor, before.flexibility, rule.scale)
    assert alpha.dtype is torch.float64
    # tanh is taken of k <= 5 only, where 1 - tanh^2 keeps 12 digits and more: another form, another rounding.
    k = rule.scale * (1 - before.flexibility) / before.flexibility * (before.weight - before.anchor).abs()
    small = k < 5
    torch.testing.assert_close(alpha[small], (1 - torch.tanh(k[small]) ** 2), rtol=1e-11, atol=0)
    g = (-before.grad if rule.maximize else before.grad) + rule.weight_decay * before.weight
    if rule.momentum:
        m = rule.momentum * before.buffer + (1 - rule.dampening) * g
        torch.testing.assert_close(after.buffer, m, rtol=1e-15, atol=1e-15)
        g = g + rule.momentum * m if rule.nesterov else m
    torch.testing.assert_close(after.weight, before.weight - rule.lr * alpha * g, rtol=1e-15, atol=1e-15)


# --------------------------------------------------------------------------- layouts


LAYOUTS = ["transposed", "sliced", "unaligned"]
AROUND = 7.5  # what stands in memory beside the elements of a view


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """A view with the values of a matrix in another layout."""
    rows, columns = tensor.shape
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "sliced":
        view = torch.full((rows, 2 * columns), AROUND, dtype=tensor.dtype)[:, ::2]
    else:  # contiguous, but not on a vector's boundary
        view = torch.full((tensor.numel() + 40,), AROUND, dtype=tensor.dtype)[1 : 1 + tensor.numel()]
        view = view.view(rows, columns)
    return view.copy_(tensor)


def count_around(view: Tensor) -> int:
    """How many elements of the view's storage still hold AROUND."""
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    return int((whole == AROUND).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_layouts(backend: str, dtype: torch.dtype, layout: str) -> None:
    rule = RULES["dampening"]
    before = make_inputs((33, 37), seed=11, dtype=dtype)
    after = judge.Inputs(*(lay_out(t, layout) for t in before))
    around = [count_around(t) for t in after]
    assert around == [{"transposed": 0, "sliced": 33 * 37, "unaligned": 40}[layout]] * 6
    step(after, rule)
    check_step(before, after, rule)
    assert [count_around(t) for t in after] == around  # nothing is written beside the elements
    dense = clone(before)
    step(dense, rule)
    for got, expected in zip(after, dense, strict=True):
        assert same_bits(got, expected)  # the layout does not enter the result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gate_layouts(backend: str, layout: str) -> None:
    x = make_inputs((33, 37), seed=12)
    expected = ops.metaplastic_gate(x.weight, x.anchor, x.flexibility, 20.0)
    y = judge.Inputs(*(lay_out(t, layout) for t in x))
    assert same_bits(ops.metaplastic_gate(y.weight, y.anchor, y.flexibility, 20.0), expected)


def test_expanded_inputs_are_read(backend: str) -> None:
    before = make_inputs((5, 33), seed=13)
    row = clone(before)
    expanded = [t[:1].expand(5, 33) for t in (before.grad, before.anchor, before.flexibility)]
    before = before._replace(grad=expanded[0], anchor=expanded[1], flexibility=expanded[2])
    after = row._replace(grad=expanded[0], anchor=expanded[1], flexibility=expanded[2])
    step(after, RULES["plain"])
    check_step(before, after, RULES["plain"])


# --------------------------------------------------------------------------- lists


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_list_is_its_tensors_one_by_one(backend: str, dtype: torch.dtype) -> None:
    rule = RULES["nesterov"]
    shapes = [(33, 65), (0,), (3,), (0, 4), (9001,), (), (16,), (0,)]
    together = [make_inputs(shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    alone = [clone(x) for x in together]
    for x in alone:
        step(x, rule)
    weight, grad, anchor, flexibility, buffer, master = (list(column) for column in zip(*together, strict=True))
    ops.metaplastic_sgd_(
        weight, tuple(grad), anchor, flexibility, momentum_buffer=buffer,
        master=master if dtype in LOW else None, **rule._asdict(),
    )  # fmt: skip
    for x, y in zip(together, alone, strict=True):
        for got, expected in zip(x, y, strict=True):
            assert same_bits(got, expected)


def test_a_list_of_nothing(backend: str) -> None:
    """It computes nothing, and goes with nothing only."""
    with torch.profiler.profile() as profiler:
        assert ops.metaplastic_sgd_([], [], [], [], lr=0.1, scale=1.0) is None
        assert ops.gated_sgd_([], [], None, lr=0.1) is None
    assert not [event.name for event in profiler.events() if "::" in event.name]
    grad = torch.ones(2)
    for call in (
        lambda: ops.metaplastic_sgd_([], [grad], [], [], lr=0.1, scale=1.0),
        lambda: ops.gated_sgd_([], [grad], None, lr=0.1),
    ):
        with pytest.raises(ValueError, match="grad has 1 entries but weight has 0"):
            call()
    with pytest.raises(ValueError, match="anchor has 0 entries but weight has 1"):
        ops.metaplastic_sgd_([torch.ones(2)], [grad], [], [], lr=0.1, scale=1.0)


def test_empty_tensors_stay_as_they_are_beside_one_that_steps(backend: str) -> None:
    x, alone = make_inputs((5,), 1), make_inputs((5,), 1)
    empty = [torch.empty(0), torch.empty(0, 3)]
    weights = [empty[0], x.weight, empty[1]]
    ops.metaplastic_sgd_(
        weights, [torch.empty(0), x.grad, torch.empty(0, 3)], [torch.empty(0), x.anchor, torch.empty(0, 3)],
        [0.5, x.flexibility, 0.5], lr=0.1, scale=20.0,
    )  # fmt: skip
    ops.metaplastic_sgd_(alone.weight, alone.grad, alone.anchor, alone.flexibility, lr=0.1, scale=20.0)
    assert [tuple(w.shape) for w in weights] == [(0,), (5,), (0, 3)]
    assert same_bits(x.weight, alone.weight)
    assert not same_bits(x.weight, make_inputs((5,), 1).weight)
    # and with nothing but empty ones
    ops.metaplastic_sgd_(
        empty, [t.clone() for t in empty], [t.clone() for t in empty], [0.5, 0.5], lr=0.1, scale=1.0
    )
    assert [tuple(t.shape) for t in empty] == [(0,), (0, 3)]


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lr_and_scale_as_tensors_give_the_same_bits(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    # Neither number is exact in float32.
    rule = Rule(lr=0.1, scale=21.7, momentum=0.9)
    numbers, tensors = (make_inputs((1000,), seed=17, dtype=dtype) for _ in range(2))
    step(numbers, rule)
    step(tensors, rule, lr=torch.full(shape, 0.1), scale=torch.full(shape, 21.7))
    for got, expected in zip(tensors, numbers, strict=True):
        assert same_bits(got, expected)
    x = numbers
    assert same_bits(
        ops.metaplastic_gate(x.master, x.anchor, x.flexibility, torch.full(shape, 21.7)),
        ops.metaplastic_gate(x.master, x.anchor, x.flexibility, 21.7),
    )


def test_threads_do_not_change_a_bit() -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    shapes = [(50000,), (3,), (33, 1000), (100001,)]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)  # one_thread restores it
        inputs = [make_inputs(shape, seed=i) for i, shape in enumerate(shapes)]
        with flexkern.use_backend("cpu"):
            alpha = [ops.metaplastic_gate(x.weight, x.anchor, x.flexibility, 20.0) for x in inputs]
            weight, grad, anchor, flexibility, buffer, _ = (list(c) for c in zip(*inputs, strict=True))
            anchor[1] = flexkern.Field.normal(3)
            flexibility[3] = flexkern.Field.uniform(5, offset=3)
            rule = RULES["nesterov"]._asdict()
            ops.metaplastic_sgd_(weight, grad, anchor, flexibility, momentum_buffer=buffer, **rule)
            field = ops.materialize(flexkern.Field.normal(1, offset=1), (100001,))
            mask = ops.unpack_mask(ops.pack_mask(field.view(1, -1).expand(7, -1) > 0.3), 100001)
        results.append([*alpha, *weight, *buffer, field, mask.int()])
    for one, two in zip(*results, strict=True):
        assert same_bits(one, two)


# --------------------------------------------------------------------------- published values


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    with open(Path(__file__).parents[1] / "data" / "alpha_release.csv") as file:
        rows = list(csv.DictReader(file))
    return {name: torch.tensor([float(r[name]) for r in rows], dtype=torch.float64) for name in rows[0]}


def test_published_values_in_float64(published: dict[str, Tensor]) -> None:
    p = published
    alpha = ops.metaplastic_gate(p["w"], p["w_init"], p["flexibility"], 4e5)
    # The release's 1 - tanh(k)^2 rounds twice near 1 (2 x 2^-53), tanh is an ulp off (2 x 2^-53 once squared),
    # and k has four roundings, which move alpha by 2 k tanh(k) sech(k)^2 < 1 of them: in all under 8 x 2^-53.
    torch.testing.assert_close(alpha, p["alpha"], rtol=0, atol=8 * 2.0**-53)
    weight = p["w"].clone()
    ops.metaplastic_sgd_(weight, p["grad"], p["w_init"], p["flexibility"], lr=1e-4, scale=4e5)
    # lr alpha g is at most 1e-4 |g|: what alpha is off vanishes beside the rounding of w.
    torch.testing.assert_close(
        weight, p["w_new"], rtol=2.0**-52, atol=1e-4 * 2.0**-50 * float(p["grad"].abs().max())
    )


def test_published_values_in_float32(backend: str, published: dict[str, Tensor]) -> None:
    # Rounding w and w_init to float32 moves |w - a|, so the judge gets the rounded ones; that it is right on
    # the file itself is the test above.
    w, a, f, g = (published[n].float() for n in ("w", "w_init", "flexibility", "grad"))
    rule = Rule(lr=1e-4, scale=4e5)
    alpha, bound = judge.judge_gate(w, a, f, 4e5)
    judge.assert_within(ops.metaplastic_gate(w, a, f, 4e5), alpha, bound)
    weight = w.clone()
    ops.metaplastic_sgd_(weight, g, a, f, lr=1e-4, scale=4e5)
    judged = judge.judge_step(w, g, alpha, bound, rule)
    judge.assert_within(weight, judged.weight, judged.weight_bound)
    # Where f is 0 or w has not left its anchor, float32 changes nothing about alpha.
    fixed = (
        (published["flexibility"] == 0)
        | (published["flexibility"] == 1)
        | (published["w"] == published["w_init"])
    )
    assert int(fixed.sum()) > 10
    assert torch.equal(ops.metaplastic_gate(w, a, f, 4e5)[fixed].double(), published["alpha"][fixed])
    assert reference.gate(torch.zeros(()), torch.zeros(()), torch.zeros(()), 4e5) == 0
