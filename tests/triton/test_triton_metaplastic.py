"""The flexible update in Triton against the float64 judge, over dtypes, shapes, sources and rules."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

import flexkern
from flexkern import Field, Purpose, ops, reference
from flexkern.backends.tuning import config
from helpers import judge
from helpers.judge import Inputs, Rule, make_inputs, same_bits

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

TILE = config("sgd", "stored", "interpreter")["tile"]
SHAPES = [(), (0,), (1,), (TILE - 1,), (TILE + 1,), (33, 65)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
RULES = {
    "plain": Rule(),
    "decay": Rule(weight_decay=0.1, maximize=True),
    "momentum": Rule(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": Rule(momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True),
}


@pytest.fixture(scope="session")
def alpha_factor(device: torch.device) -> float:
    """How far alpha may be off, in bounds of judge.py, which counts the CPU's roundings.

    The interpreter's NumPy: k has 5 roundings (1 - f, two products, w - a, a correct division) and 2 more for
    its product with -2 log2(e) and for that constant: 7, of the judge's 9. alpha has exp2 at most 2.6 ulp off
    (5.2), 1 + e counted twice (2), the square (1), a correct division (1): 9.2 of the judge's 11. So one bound.
    A GPU: its quick division is 2 ulp off, 4 roundings instead of 1: 10 for k; exp2 2 ulp off (4), 2, 1 and 4
    make 11 for alpha. So less than two bounds.
    """
    return 1.0 if device.type == "cpu" else 2.0


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    # A copy even on the CPU: the inputs stay what the judge saw.
    return Inputs(*(t.to(device, copy=True) for t in inputs))


def state(x: Inputs, rule: Rule) -> dict[str, Tensor | None]:
    low = x.weight.dtype is not torch.float32
    return {"momentum_buffer": x.buffer if rule.momentum else None, "master": x.master if low else None}


def check_step(before: Inputs, after: Inputs, rule: Rule, alpha: Tensor, alpha_bound: Tensor | float) -> None:
    """``after`` is ``before`` stepped with this alpha."""
    buffer = before.buffer if rule.momentum else None
    expected = judge.judge_step(before.master, before.grad, alpha, alpha_bound, rule, buffer)
    low = before.weight.dtype is not torch.float32
    exact = after.master if low else after.weight
    judge.assert_within(exact.cpu(), expected.weight, expected.weight_bound)
    if low:  # rounded from the master in the same pass, to nearest even
        assert same_bits(after.weight.cpu(), after.master.cpu().to(after.weight.dtype))
    if rule.momentum:
        judge.assert_within(after.buffer.cpu(), expected.buffer, expected.buffer_bound)
    else:
        assert same_bits(after.buffer.cpu(), before.buffer)
    for name in ("grad", "anchor", "flexibility"):
        assert same_bits(getattr(after, name).cpu(), getattr(before, name))


# --------------------------------------------------------------------------- the gate


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate(shape: tuple[int, ...], device: torch.device, alpha_factor: float) -> None:
    x = make_inputs(shape, 1)
    expected, bound = judge.judge_gate(x.master, x.anchor, x.flexibility, 20.0)
    on_device = to_device(x, device)
    alpha = ops.metaplastic_gate(on_device.master, on_device.anchor, on_device.flexibility, 20.0)
    assert alpha.dtype is torch.float32
    judge.assert_within(alpha.cpu(), expected, alpha_factor * bound)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 4e5, 1e30])
def test_gate_at_the_ends_of_flexibility(scale: float, device: torch.device) -> None:
    w = torch.tensor([0.1, 0.1, -3e30, 2.0**-149, 0.0], device=device)
    a = torch.tensor([0.1, 0.2, 3e30, 0.0, -0.0], device=device)
    for f in (0.0, 1.0):  # alpha is f, exactly
        assert (ops.metaplastic_gate(w, a, torch.full_like(w, f), scale) == f).all()
        assert (ops.metaplastic_gate(w, a, f, scale) == f).all()
    # at its anchor a weight moves freely, unless f = 0, as which what is under 2**-126 counts
    f = torch.tensor([2.0**-149, 1e-40, 2.0**-126, 0.3, 1.0], device=device)
    assert ops.metaplastic_gate(w, w, f, scale).tolist() == [0, 0, 1, 1, 1]


def test_gate_of_numbers_that_are_none(device: torch.device) -> None:
    w = torch.tensor([float("nan"), float("inf"), -float("inf")], device=device)
    alpha = ops.metaplastic_gate(w, torch.zeros_like(w), 0.5, 1.0)
    assert alpha[0].isnan()
    assert (alpha[1:] == 0).all()


# --------------------------------------------------------------------------- the step


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("dtype", "grad_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (TILE + 1,), (33, 65)], ids=str)
def test_step(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    rule: Rule,
    device: torch.device,
    alpha_factor: float,
) -> None:
    before = make_inputs(shape, 2, dtype, grad_dtype)
    after = to_device(before, device)
    ops.metaplastic_sgd_(
        after.weight, after.grad, after.anchor, after.flexibility, **rule._asdict(), **state(after, rule)
    )
    alpha, bound = judge.judge_gate(before.master, before.anchor, before.flexibility, rule.scale)
    check_step(before, after, rule, alpha, alpha_factor * bound)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("dtype", "grad_dtype"), DTYPES, ids=str)
def test_a_held_gate_gives_the_bits_of_the_reference(
    dtype: torch.dtype, grad_dtype: torch.dtype, rule: Rule, device: torch.device
) -> None:
    """Once alpha is given, the step is a sequence of single operations, each rounded once."""
    before = make_inputs((TILE + 1,), 3, dtype, grad_dtype)
    after, expected = to_device(before, device), to_device(before, torch.device("cpu"))
    numbers = {name: value for name, value in rule._asdict().items() if name != "scale"}
    alpha = before.flexibility
    ops.gated_sgd_(after.weight, after.grad, alpha.to(device), **numbers, **state(after, rule))
    check_step(before, after, rule, alpha.double(), 0.0)
    with flexkern.use_backend("reference"):
        ops.gated_sgd_(expected.weight, expected.grad, alpha, **numbers, **state(expected, rule))
    for one, other in zip(after, expected, strict=True):
        assert same_bits(one.cpu(), other)


def test_weights_of_every_magnitude_round_to_nearest_even(device: torch.device) -> None:
    # A step from 0 to these, which are rounded: subnormal numbers, ties, and what overflows the weight's dtype
    exact = torch.tensor(
        [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 1 + 2.0**-11, 65519.0, 65520.0, 1e-40, 2.0**-133,
         2.0**-134, 3 * 2.0**-134, 2.0**-25, 2.0**-24, 1.5 * 2.0**-24, 6e-5, 3.4e38, 0.0],
        device=device,
    )  # fmt: skip
    exact = torch.cat([exact, -exact])
    for dtype in (torch.bfloat16, torch.float16):
        weight, master = torch.zeros_like(exact, dtype=dtype), torch.zeros_like(exact)
        ops.gated_sgd_(weight, -exact, None, lr=1.0, master=master)
        assert same_bits(master, exact + 0.0)
        assert same_bits(weight.cpu(), (exact + 0.0).cpu().to(dtype))
        weight, master = exact.cpu().to(dtype).to(device), exact.clone()  # these agree, and so stay
        ops.gated_sgd_(weight, torch.zeros_like(weight), None, lr=0.0, master=master)
        assert same_bits(master, exact)
        assert same_bits(weight.cpu(), exact.cpu().to(dtype))


# Subnormal numbers among them, which a conversion in software may lose
SMALL = [2.0**-133, 3 * 2.0**-133, -(2.0**-127), 2.0**-126, 6e-8, -6e-8, 2.0**-24, 0.0, -0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_every_magnitude(dtype: torch.dtype, device: torch.device) -> None:
    grad = torch.tensor(SMALL, dtype=dtype, device=device)
    master = torch.zeros(len(SMALL), device=device)
    ops.gated_sgd_(torch.zeros_like(grad), grad, None, lr=1.0, master=master)
    assert torch.equal(master, -grad.float())


# --------------------------------------------------------------------------- sources

ANCHORS = {
    "stored": None,
    "uniform": Field.uniform(3, 1, low=-0.3, high=0.7, purpose=Purpose.ANCHOR, offset=2**33 + 3),
    "normal": Field.normal(2**64 - 1, 5, std=0.5),
    "normal_table": Field.normal_table(2**64 - 1, 5, std=0.5, offset=3),
}
FLEXIBILITIES = {
    "stored": None,
    "number": 0.3,
    "stable": 0.0,
    "free": 1.0,
    "uniform": Field.uniform(7, 2, offset=1),
    "biased_high": Field.biased_high(8, 3),
    "biased_low": Field.biased_low(8, 3, offset=2**40 + 2),
}


def tensor_of(source: Field | float | None, stored: Tensor) -> Tensor:
    """The tensor that a source stands for, from the reference."""
    if source is None:
        return stored
    if isinstance(source, Field):
        return reference.materialize(source, stored.shape)
    return torch.full_like(stored, source)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("flexibility", FLEXIBILITIES)
def test_every_mix_of_sources(anchor: str, flexibility: str, device: torch.device, alpha_factor: float) -> None:
    """Against the judge, and to the bit what the stored tensors of these values give."""
    a, f = ANCHORS[anchor], FLEXIBILITIES[flexibility]
    before = make_inputs((TILE + 3,), 4)
    before = before._replace(anchor=tensor_of(a, before.anchor), flexibility=tensor_of(f, before.flexibility))
    stored, mixed = to_device(before, device), to_device(before, device)
    rule = Rule(weight_decay=0.1)
    a_source = stored.anchor if a is None else a
    f_source = stored.flexibility if f is None else f
    ops.metaplastic_sgd_(mixed.weight, mixed.grad, a_source, f_source, **rule._asdict())
    ops.metaplastic_sgd_(stored.weight, stored.grad, stored.anchor, stored.flexibility, **rule._asdict())
    assert same_bits(mixed.weight, stored.weight)
    alpha, bound = judge.judge_gate(before.master, before.anchor, before.flexibility, rule.scale)
    check_step(before, mixed, rule, alpha, alpha_factor * bound)
    gate = ops.metaplastic_gate(stored.master, a_source, f_source, rule.scale)
    judge.assert_within(gate.cpu(), alpha, alpha_factor * bound)
    assert same_bits(gate, ops.metaplastic_gate(stored.master, stored.anchor, stored.flexibility, rule.scale))


@pytest.mark.parametrize(("dtype", "grad_dtype"), [DTYPES[0], DTYPES[2]], ids=str)
@pytest.mark.parametrize("rule", [RULES["plain"], RULES["nesterov"]], ids=["plain", "nesterov"])
def test_a_list_of_all_kinds(
    dtype: torch.dtype, grad_dtype: torch.dtype, rule: Rule, device: torch.device, alpha_factor: float
) -> None:
    """Every mix of sources and many shapes in one call: each tensor is stepped as if it were alone."""
    shapes = itertools.cycle([(5,), (0,), (TILE,), (33, 3), (2 * TILE + 1,), (), (1,)])
    mixes = list(itertools.product(ANCHORS.values(), FLEXIBILITIES.values()))
    before, anchors, flexibilities = [], [], []
    for i, ((a, f), shape) in enumerate(zip(mixes, shapes, strict=False)):
        x = make_inputs(shape, 100 + i, dtype, grad_dtype)
        before.append(x._replace(anchor=tensor_of(a, x.anchor), flexibility=tensor_of(f, x.flexibility)))
    after = [to_device(x, device) for x in before]
    for x, (a, f) in zip(after, mixes, strict=True):
        anchors.append(x.anchor if a is None else a)
        flexibilities.append(x.flexibility if f is None else f)
    states = [state(x, rule) for x in after]
    ops.metaplastic_sgd_(
        [x.weight for x in after], [x.grad for x in after], anchors, flexibilities, **rule._asdict(),
        momentum_buffer=[s["momentum_buffer"] for s in states] if rule.momentum else None,
        master=[s["master"] for s in states] if dtype is not torch.float32 else None,
    )  # fmt: skip
    for x, y in zip(before, after, strict=True):
        alpha, bound = judge.judge_gate(x.master, x.anchor, x.flexibility, rule.scale)
        check_step(x, y, rule, alpha, alpha_factor * bound)


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("where", ["device", "cpu"])
def test_lr_and_scale_as_tensors(where: str, device: torch.device) -> None:
    x = make_inputs((TILE + 1,), 5)
    numbers, tensors = to_device(x, device), to_device(x, device)
    place = device if where == "device" else torch.device("cpu")
    lr, scale = torch.tensor(0.125, device=place), torch.tensor([20.0], device=place)
    ops.metaplastic_sgd_(numbers.weight, numbers.grad, x.anchor.to(device), 0.3, lr=0.125, scale=20.0)
    ops.metaplastic_sgd_(tensors.weight, tensors.grad, x.anchor.to(device), 0.3, lr=lr, scale=scale)
    assert same_bits(numbers.weight, tensors.weight)
    assert not same_bits(numbers.weight.cpu(), x.weight)
    gates = [ops.metaplastic_gate(numbers.weight, Field.normal(1), 0.3, s) for s in (20.0, scale)]
    assert same_bits(*gates)


@pytest.mark.parametrize("lr", [0.0, 1.0, 1, 1e-40, 1e30])
def test_numbers_that_compilers_like_to_fold(lr: float, device: torch.device) -> None:
    x = make_inputs((50,), 6)
    after = to_device(x, device)
    ops.gated_sgd_(after.weight, after.grad, None, lr=lr, weight_decay=lr and 1.0)
    rule = Rule(lr=float(lr), weight_decay=float(lr and 1.0))
    check_step(x, after, rule, torch.ones(()), 0.0)


# --------------------------------------------------------------------------- gradients that are no numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_gradients_that_are_not_finite(
    nonfinite: str, dtype: torch.dtype, device: torch.device, alpha_factor: float
) -> None:
    rule = Rule(momentum=0.9, weight_decay=0.1)
    before = make_inputs((200,), 7, dtype)
    grad = before.grad.clone()
    bad = torch.zeros(200, dtype=torch.bool)
    for i, value in ((0, "nan"), (31, "inf"), (32, "-inf"), (199, "nan")):
        grad[i], bad[i] = float(value), True
    before = before._replace(grad=grad)
    after = to_device(before, device)
    ops.metaplastic_sgd_(
        after.weight, after.grad, after.anchor, 0.3, **rule._asdict(), **state(after, rule), nonfinite=nonfinite
    )
    exact = (after.weight if dtype is torch.float32 else after.master).cpu()
    if nonfinite == "skip":
        assert same_bits(exact[bad], before.master[bad])
        assert same_bits(after.buffer.cpu()[bad], before.buffer[bad])
    else:
        assert not exact[bad].isfinite().any()
        assert not after.weight.cpu()[bad].isfinite().any()
        assert not after.buffer.cpu()[bad].isfinite().any()
    good = Inputs(*(t[~bad] for t in before))._replace(flexibility=torch.full((196,), 0.3))
    stepped = Inputs(*(t.cpu()[~bad] for t in after))._replace(flexibility=good.flexibility)
    alpha, bound = judge.judge_gate(good.master, good.anchor, good.flexibility, rule.scale)
    check_step(good, stepped, rule, alpha, alpha_factor * bound)


def test_a_step_that_overflows_is_skipped(device: torch.device) -> None:
    weight = torch.tensor([3e38, -3e38, 1.0], device=device)
    grad = torch.tensor([-3e38, 3e38, 1.0], device=device)
    ops.gated_sgd_(weight, grad, None, lr=1.0)
    assert weight.tolist() == [torch.tensor(3e38).item(), torch.tensor(-3e38).item(), 0.0]
