"""The step with a held gate, and that it is torch.optim.SGD where synapses are conventional."""

from __future__ import annotations

import itertools

import pytest
import torch

import flexkern
from flexkern import Field, ops
from flexkern.backends import BackendError
from helpers import judge
from helpers.judge import Rule, make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = [
    Rule(lr=0.1, weight_decay=wd, momentum=m, dampening=d, nesterov=n, maximize=x)
    for wd, m, d, n, x in itertools.product((0.0, 0.05), (0.0, 0.9), (0.0, 0.3), (False, True), (False, True))
    if not (n and (m == 0 or d != 0)) and not (m == 0 and d != 0)
]


def sgd_arguments(rule: Rule) -> dict:
    return {name: value for name, value in rule._asdict().items() if name != "scale"}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("form", ["alpha=None", "flexibility=1", "flexibility tensor", "alpha tensor"])
def test_conventional_synapses_take_the_step_of_torch_sgd(backend: str, form: str, rule: Rule) -> None:
    x = make_inputs((1000,), seed=5)
    buffer = x.buffer if rule.momentum else None
    # torch's own optimizer in float64, from the same float32 numbers and the same momentum buffer
    exact = torch.nn.Parameter(x.weight.double())
    numbers = {n: judge.float32(v) if isinstance(v, float) else v for n, v in sgd_arguments(rule).items()}
    numbers["dampening"] = 1 - judge.float32(1 - rule.dampening)
    optimizer = torch.optim.SGD([exact], **numbers)
    if buffer is not None:
        optimizer.state[exact]["momentum_buffer"] = buffer.double()
    exact.grad = x.grad.double()
    optimizer.step()

    judged = judge.judge_step(x.weight, x.grad, torch.ones(()), 0.0, rule, buffer)
    torch.testing.assert_close(judged.weight, exact.detach(), rtol=1e-14, atol=1e-14)
    ones = torch.ones_like(x.weight)
    if form.startswith("alpha"):
        alpha = None if form == "alpha=None" else ones
        ops.gated_sgd_(x.weight, x.grad, alpha, momentum_buffer=buffer, **sgd_arguments(rule))
    else:
        flexibility = 1 if form == "flexibility=1" else ones
        ops.metaplastic_sgd_(x.weight, x.grad, x.anchor, flexibility, momentum_buffer=buffer, **rule._asdict())
    judge.assert_within(x.weight, exact.detach(), judged.weight_bound)
    if buffer is not None:
        judge.assert_within(buffer, optimizer.state[exact]["momentum_buffer"], judged.buffer_bound)


@pytest.mark.parametrize("shape", [(), (0,), (17,), (33, 65), (9001,)], ids=str)
@pytest.mark.parametrize("rule", [Rule(), Rule(momentum=0.9, weight_decay=0.1, dampening=0.2)], ids=str)
def test_a_held_gate(backend: str, rule: Rule, shape: tuple[int, ...]) -> None:
    x = make_inputs(shape, seed=6)
    alpha = x.flexibility  # any numbers in [0, 1]
    buffer = x.buffer if rule.momentum else None
    judged = judge.judge_step(x.weight, x.grad, alpha.double(), 0.0, rule, buffer)
    ops.gated_sgd_(x.weight, x.grad, alpha, momentum_buffer=buffer, **sgd_arguments(rule))
    judge.assert_within(x.weight, judged.weight, judged.weight_bound)
    if buffer is not None:
        judge.assert_within(buffer, judged.buffer, judged.buffer_bound)


def serves_bfloat16_alpha(backend: str) -> bool:
    return backend in ("cpu", "reference")


@pytest.mark.parametrize("shape", [(), (0,), (17,), (33, 65), (9001,)], ids=str)
@pytest.mark.parametrize("rule", [Rule(), Rule(momentum=0.9, weight_decay=0.1, dampening=0.2)], ids=str)
def test_a_gate_held_in_bfloat16(backend: str, rule: Rule, shape: tuple[int, ...]) -> None:
    x = make_inputs(shape, seed=6)
    alpha = x.flexibility.bfloat16()
    buffer = x.buffer if rule.momentum else None
    if not serves_bfloat16_alpha(backend):
        with pytest.raises(BackendError, match="bfloat16"):
            ops.gated_sgd_(x.weight, x.grad, alpha, momentum_buffer=buffer, **sgd_arguments(rule))
        return
    # bfloat16 has 8 significant bits: rounded to the nearest, alpha is off by 2^-8 of itself at most (none of
    # these is subnormal).
    judged = judge.judge_step(
        x.weight, x.grad, x.flexibility.double(), 2.0**-8 * x.flexibility.double(), rule, buffer
    )
    wide = x.weight.clone()
    ops.gated_sgd_(
        wide,
        x.grad,
        alpha.float(),
        momentum_buffer=None if buffer is None else buffer.clone(),
        **sgd_arguments(rule),
    )
    ops.gated_sgd_(x.weight, x.grad, alpha, momentum_buffer=buffer, **sgd_arguments(rule))
    judge.assert_within(x.weight, judged.weight, judged.weight_bound)
    assert same_bits(x.weight, wide)  # widening is exact, so it is the step with that alpha in float32
    if buffer is not None:
        judge.assert_within(buffer, judged.buffer, judged.buffer_bound)


def test_a_list_may_mix_the_dtypes_of_alpha(backend: str) -> None:
    if not serves_bfloat16_alpha(backend):
        pytest.skip("takes no bfloat16 alpha")
    a, b = make_inputs((100,), seed=1), make_inputs((77,), seed=2)
    alphas = [a.flexibility.bfloat16(), b.flexibility]
    alone = [a.weight.clone(), b.weight.clone()]
    ops.gated_sgd_([a.weight, b.weight], [a.grad, b.grad], alphas, lr=0.1)
    for w, x, alpha in zip(alone, (a, b), alphas, strict=True):
        ops.gated_sgd_(w, x.grad, alpha.float(), lr=0.1)
        assert same_bits(w, x.weight)


def test_float64_takes_no_bfloat16_alpha() -> None:
    w = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"alpha must be torch\.float64"):
        ops.gated_sgd_(w, w.clone(), torch.ones(3, dtype=torch.bfloat16), lr=0.1)
    assert bool((w == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_backends_agree_to_the_bit_once_alpha_is_given(rule: Rule, dtype: torch.dtype) -> None:
    # The step is a fixed sequence of single operations, each rounded once, in the reference and in the kernels.
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    results = []
    for name in ("reference", "cpu"):
        x = make_inputs((2500,), 8, dtype)
        with flexkern.use_backend(name):
            for alpha in (x.flexibility, None):
                ops.gated_sgd_(
                    x.weight, x.grad, alpha, momentum_buffer=x.buffer if rule.momentum else None,
                    master=None if dtype is torch.float32 else x.master, **sgd_arguments(rule),
                )  # fmt: skip
        results.append(x)
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)


def test_the_gate_held_for_one_step_is_the_gate_of_the_step(backend: str) -> None:
    rule = Rule(momentum=0.9, weight_decay=0.1)
    held, fresh = make_inputs((3000,), 9), make_inputs((3000,), 9)
    anchor, flexibility = Field.normal(1), Field.biased_low(2)
    alpha = ops.metaplastic_gate(held.weight, anchor, flexibility, rule.scale)
    ops.gated_sgd_(held.weight, held.grad, alpha, momentum_buffer=held.buffer, **sgd_arguments(rule))
    ops.metaplastic_sgd_(
        fresh.weight, fresh.grad, anchor, flexibility, momentum_buffer=fresh.buffer, **rule._asdict()
    )
    for one, other in zip(held, fresh, strict=True):
        assert same_bits(one, other)


def test_state_that_is_not_needed_is_left_alone(backend: str) -> None:
    # A buffer without momentum and a master of a float32 weight: neither enters the step, neither changes.
    x, y, before = (make_inputs((50,), 10) for _ in range(3))
    ops.gated_sgd_(x.weight, x.grad, None, lr=0.1, momentum_buffer=x.buffer, master=x.master)
    ops.gated_sgd_(y.weight, y.grad, None, lr=0.1)
    assert same_bits(x.weight, y.weight)
    assert same_bits(x.buffer, before.buffer)
    assert same_bits(x.master, before.master)


def test_single_weights_of_a_list_move_freely(backend: str) -> None:
    shapes = ((33, 5), (7,), (3, 40))
    together, apart = ([make_inputs(shape, seed=i) for i, shape in enumerate(shapes)] for _ in range(2))
    alphas = [torch.rand(shapes[0]), None, torch.rand(shapes[2])]
    ops.gated_sgd_([x.weight for x in together], [x.grad for x in together], alphas, lr=0.1)
    for x, alpha in zip(apart, alphas, strict=True):
        ops.gated_sgd_(x.weight, x.grad, alpha, lr=0.1)
    assert all(same_bits(x.weight, y.weight) for x, y in zip(together, apart, strict=True))
