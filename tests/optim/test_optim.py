"""MetaplasticSGD against an independent float64 simulation of the flexible update, and torch.optim.SGD."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from flexkern import Field, ops
from flexkern.optim import MetaplasticSGD

SHAPES = ((6, 5), (5,), (3, 4, 2))  # the second moves freely
LOW = (torch.bfloat16, torch.float16)


def make_parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter((0.3 * torch.randn(s, generator=generator)).to(dtype)) for s in shapes]


def set_grads(params: list[Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def run(optimizer: MetaplasticSGD, params: list[Parameter], items: int = 3, steps: int = 4) -> None:
    for item in range(items):
        for step in range(steps):
            set_grads(params, 100 * item + step)
            optimizer.step()
        optimizer.consolidate()


def exact(optimizer: MetaplasticSGD, p: Parameter) -> np.ndarray:
    return optimizer.state[p].get("master", p).detach().double().numpy().copy()


def simulated_gate(w: np.ndarray, a: np.ndarray, f: np.ndarray, scale: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.cosh(scale * (1 - f) / f * np.abs(w - a)) ** -2.0


def same_bits(left: list[Parameter], right: list[Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.8, "nesterov": True, "maximize": True, "weight_decay": 0.1},
}


@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_step_follows_the_rule(dtype: torch.dtype, rule: dict[str, Any], gate: str) -> None:
    lr, scale = 0.05, 20.0
    params = make_parameters(dtype)
    optimizer = MetaplasticSGD(params, lr, scale=scale, seed=3, gate=gate, **rule)
    mu, decay = rule.get("momentum", 0.0), rule.get("weight_decay", 0.0)
    f = [ops.flexibility_field(p.shape, seed=3, stream=i).double().numpy() for i, p in enumerate(params)]
    a = [exact(optimizer, p) for p in params]
    buffer: list[np.ndarray | None] = [None] * len(params)
    # One rounding is u, relative. In float64 the simulation rounds as often as what it judges.
    u = 2 * 2.0**-53 if dtype is torch.float64 else 2.0**-24
    for item in range(3):
        for step in range(4):
            before = [exact(optimizer, p) for p in params]
            if gate == "step" or step == 0:
                alpha = [
                    simulated_gate(w, *af, scale) if w.ndim >= 2 else np.ones_like(w)
                    for w, *af in zip(before, a, f, strict=True)
                ]
            set_grads(params, 100 * item + step)
            optimizer.step()
            for i, p in enumerate(params):
                raw = p.grad.double().numpy()
                g = (-raw if rule.get("maximize") else raw) + decay * before[i]
                size = np.abs(raw) + decay * np.abs(before[i])
                if mu:
                    old = buffer[i]
                    new = g.copy() if old is None else mu * old + (1 - rule.get("dampening", 0.0)) * g
                    size += 0 if old is None else mu * np.abs(old)
                    got = optimizer.state[p]["momentum_buffer"].double().numpy().copy()
                    # Rounded: decay, dampening, mu, 1 - dampening, three products and two sums.
                    assert (np.abs(got - new) <= 9 * u * size).all()
                    buffer[i] = got
                    g = g + mu * new if rule.get("nesterov") else new
                    size = (1 + mu) * size
                expected = before[i] - lr * alpha[i] * g
                after = exact(optimizer, p)
                # The sum with w rounds once. The step: 9 roundings of the buffer, 2 of nesterov, lr and two
                # products, 14 in all; alpha is within (5 * 2k + 8) u alpha, and alpha <= 4 e^(-2k) makes that
                # at most (20 max(2k e^(-2k)) + 8) u = 15.4 u.
                tolerance = u * (np.abs(after) + lr * size * (14 + 16))
                assert (np.abs(after - expected) <= tolerance).all()
                if dtype in LOW:
                    assert optimizer.state[p]["master"].dtype is torch.float32
                    assert torch.equal(p, optimizer.state[p]["master"].to(dtype))
        optimizer.consolidate()
    assert 0.1 < alpha[0].mean() < 0.9  # the streams were hard enough to tell gates apart


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("form", ["number", "tensors"])
def test_flexibility_one_is_sgd(form: str, gate: str, rule: dict[str, Any]) -> None:
    ours, theirs = make_parameters(), make_parameters()
    ones: Any = 1 if form == "number" else [torch.ones(p.shape) if p.dim() > 1 else 1.0 for p in ours]
    optimizer = MetaplasticSGD(ours, 0.1, scale=1e5, flexibility=ones, gate=gate, **rule)
    sgd = torch.optim.SGD(theirs, 0.1, **rule)
    steps, mu = 12, rule.get("momentum", 0.0)
    largest = size = 0.0
    for step in range(steps):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        sgd.step()
        if step % 4 == 3:
            optimizer.consolidate()
        largest = max(largest, *(p.abs().max().item() for p in theirs))
        size = max(size, *(p.grad.abs().max().item() for p in theirs))
    # Each step of each optimizer rounds w once and its step 14 times (as above), relative to at most
    # (1 + mu) / (1 - mu) (|g| + decay |w|); what is off in a buffer stays in it for 1 / (1 - mu) steps.
    size += rule.get("weight_decay", 0.0) * largest
    bound = 2 * steps * 2.0**-24 * (largest + 0.1 * 14 * size * (1 + mu) / (1 - mu) ** 2)
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).abs().max().item() <= bound


@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("scale", [5.0, "auto"])
def test_flexibility_zero_never_moves(gate: str, scale: Any) -> None:
    params = make_parameters()
    start = [p.detach().clone() for p in params]
    f = torch.rand(6, 5)
    f[::2] = 0
    optimizer = MetaplasticSGD(
        params, 0.1, scale=scale, flexibility=[f, 0.5, 0.0], gate=gate, **RULES["momentum"]
    )
    run(optimizer, params)
    assert torch.equal(params[0][::2], start[0][::2])
    assert (params[0][1::2] != start[0][1::2]).all()
    assert torch.equal(params[2], start[2])
    assert (params[1] != start[1]).all()


def test_item_gate_holds_alpha_until_consolidate() -> None:
    held, free = make_parameters(), make_parameters()
    optimizer = MetaplasticSGD(held, 0.1, scale=1e6)
    sgd = torch.optim.SGD(free, 0.1)
    for step in range(3):  # the first item starts at the anchor: alpha = 1, whatever the scale
        set_grads(held, step)
        set_grads(free, step)
        optimizer.step()
        sgd.step()
    for x, y in zip(held, free, strict=True):
        # 3 steps of either, each rounding w once and the step (lr, one product) twice.
        assert (x - y).abs().max() <= 2 * 3 * 2.0**-24 * (y.abs().max() + 0.1 * 2 * 4)
    assert (optimizer.state[held[0]]["alpha"] == 1).all()
    optimizer.consolidate()
    item_end = [p.detach().clone() for p in held]
    set_grads(held, 7)
    optimizer.step()
    alpha = optimizer.state[held[0]]["alpha"]
    expected = ops.metaplastic_gate(item_end[0], optimizer.state[held[0]]["anchor"], Field.uniform(0, 0), 1e6)
    assert torch.equal(alpha, expected)
    optimizer.step()
    assert optimizer.state[held[0]]["alpha"] is alpha
    # At s = 1e6 and displacements of about 0.1 only synapses with 1 - f < 1e-4 or so could move: none here.
    assert torch.equal(held[0], item_end[0])
    assert not torch.equal(held[1], item_end[1])


@pytest.mark.parametrize("gate", ["item", "step"])
def test_flexible_vectors(gate: str) -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, 0.1, scale=1e6, gate=gate, flexible_vectors=True)
    run(optimizer, params, items=1)
    after = params[1].detach().clone()
    run(optimizer, params, items=1)
    assert torch.equal(params[1], after)


def run_with(flexibility: Any, seed: int = 0, gate: str = "item", **options: Any) -> list[Parameter]:
    params = make_parameters()
    optimizer = MetaplasticSGD(
        params, 0.05, scale=20.0, flexibility=flexibility, seed=seed, gate=gate, **options
    )
    run(optimizer, params)
    return params


@pytest.mark.parametrize("gate", ["item", "step"])
def test_seeds_and_stored_fields_give_the_same_bits(gate: str) -> None:
    procedural = run_with("uniform", seed=5, gate=gate)
    assert same_bits(procedural, run_with("uniform", seed=5, gate=gate))
    assert not torch.equal(procedural[0], run_with("uniform", seed=6, gate=gate)[0])
    stored = [ops.flexibility_field(s, seed=5, stream=i) if len(s) > 1 else 1.0 for i, s in enumerate(SHAPES)]
    assert same_bits(procedural, run_with(stored, gate=gate))
    assert same_bits(procedural, run_with(Field.uniform(5), gate=gate))
    assert same_bits(procedural, run_with([Field.uniform(5, i) for i in range(3)], gate=gate))


@pytest.mark.parametrize("name", ["biased_high", "biased_low"])
def test_biased_flexibility(name: str) -> None:
    fields = [getattr(Field, name)(5, i) for i in range(3)]
    by_name = run_with(name, seed=5)
    assert same_bits(by_name, run_with(fields))
    stored = [ops.materialize(f, s) if len(s) > 1 else 1.0 for f, s in zip(fields, SHAPES, strict=True)]
    assert same_bits(by_name, run_with(stored))


def test_one_parameter_group_takes_a_tensor_or_a_field_as_it_is() -> None:
    tensor, field = make_parameters(shapes=[(4, 4)]), make_parameters(shapes=[(4, 4)])
    ours = MetaplasticSGD(tensor, 0.05, scale=20.0, flexibility=ops.flexibility_field((4, 4), seed=1, stream=9))
    theirs = MetaplasticSGD(field, 0.05, scale=20.0, flexibility=Field.uniform(1, 9))
    run(ours, tensor)
    run(theirs, field)
    assert same_bits(tensor, field)


def test_groups_have_their_own_settings_and_streams_go_on() -> None:
    shapes = [(3, 3), (4, 4), (5, 5), (2, 2)]
    grouped = make_parameters(shapes=shapes)
    optimizer = MetaplasticSGD(
        [{"params": grouped[:2]}, {"params": grouped[2:3], "gate": "step", "scale": 7.0, "momentum": 0.9}],
        0.05,
        scale=20.0,
        seed=4,
    )
    optimizer.add_param_group({"params": grouped[3], "lr": 0.2, "flexibility": "biased_low", "seed": 8})
    assert optimizer.scales() == [20.0, 7.0, 20.0]
    run(optimizer, grouped)
    alone = make_parameters(shapes=shapes)
    for slices, options in (
        (slice(0, 2), {"flexibility": Field.uniform(4), "lr": 0.05, "scale": 20.0}),
        (
            slice(2, 3),
            {"flexibility": Field.uniform(4, 2), "lr": 0.05, "scale": 7.0, "gate": "step", "momentum": 0.9},
        ),
        (slice(3, 4), {"flexibility": Field.biased_low(8, 3), "lr": 0.2, "scale": 20.0}),
    ):
        single = MetaplasticSGD(alone[slices], **options)
        for item in range(3):
            for step in range(4):
                set_grads(alone, 100 * item + step)
                single.step()
            single.consolidate()
    assert same_bits(grouped, alone)


@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_procedural_anchor(dtype: torch.dtype, gate: str) -> None:
    fields = [Field.normal(2, 10, std=0.3), None, Field.uniform(2, 12, low=-0.5, high=0.5, purpose=1)]
    inits = [ops.materialize(f, s) if f else torch.zeros(s) for f, s in zip(fields, SHAPES, strict=True)]
    procedural = [Parameter(w.to(dtype)) for w in inits]
    optimizer = MetaplasticSGD(procedural, 0.05, scale=20.0, gate=gate, anchor=fields)
    run(optimizer, procedural)
    assert not any(isinstance(optimizer.state[p].get("anchor"), torch.Tensor) for p in procedural)
    if dtype is torch.bfloat16:
        # Its float32 master starts at the anchor itself, so it goes the way of the float32 weight, but for
        # gradients that were rounded to bfloat16: give those to the float32 weights too.
        judge = [Parameter(w.clone()) for w in inits]
        other = MetaplasticSGD(judge, 0.05, scale=20.0, gate=gate)
        for item in range(3):
            for step in range(4):
                set_grads(procedural, 100 * item + step)
                for p, q in zip(judge, procedural, strict=True):
                    p.grad = q.grad.float()
                other.step()
            other.consolidate()
        assert same_bits([optimizer.state[p]["master"] for p in procedural], judge)
    else:
        stored = [Parameter(w.to(dtype)) for w in inits]
        run(MetaplasticSGD(stored, 0.05, scale=20.0, gate=gate), stored)
        assert same_bits(procedural, stored)


def test_wrong_procedural_anchor_is_refused() -> None:
    params = make_parameters()
    start = [p.detach().clone() for p in params]
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, anchor=Field.normal(0))
    set_grads(params, 0)
    with pytest.raises(ValueError, match=r"anchor: the parameter of shape \(6, 5\) .*materialize"):
        optimizer.step()
    assert same_bits(params, start)


def test_parameters_join_when_they_get_a_gradient() -> None:
    params = make_parameters()
    start = [p.detach().clone() for p in params]
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, gate="item")
    set_grads(params, 0)
    params[2].grad = None
    optimizer.step()
    optimizer.consolidate()
    assert torch.equal(params[2], start[2])
    assert not optimizer.state[params[2]]
    params[0].grad = None
    first = params[0].detach().clone()
    set_grads(params[2:], 1)
    optimizer.step()  # the first item of this parameter: all of its synapses move freely
    assert torch.equal(params[0], first)
    assert (optimizer.state[params[2]]["alpha"] == 1).all()
    assert torch.equal(optimizer.state[params[2]]["anchor"], start[2])


class CountCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "flexkern":
            self.calls["sgd" if "sgd" in func.__name__ else "gate" if "gate" in func.__name__ else "field"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gate", ["item", "step"])
def test_parameters_of_a_kind_go_in_one_call(gate: str) -> None:
    params = make_parameters(shapes=[(2, 3)] * 20 + [(3,)] * 20)
    optimizer = MetaplasticSGD(params, 0.05, scale=20.0, gate=gate, momentum=0.9)
    run(optimizer, params, items=1)
    set_grads(params, 1)
    with CountCalls() as first:
        optimizer.step()
    with CountCalls() as second:
        optimizer.step()
    # Flexible ones, and those that move freely. The gates are taken one by one, once an item.
    # A step that is looked at draws the fields of small tensors for those that follow.
    assert first.calls == ({"sgd": 2, "gate": 20} if gate == "item" else {"sgd": 2, "field": 20})
    assert second.calls == {"sgd": 1}  # a step as the one before has all in one


def test_zero_size_and_other_memory_layouts() -> None:
    plain = make_parameters(shapes=[(4, 3, 2, 2), (0, 3), (3, 5)])
    strided = [
        Parameter(plain[0].detach().clone(memory_format=torch.channels_last)),
        Parameter(torch.empty(0, 3)),
        Parameter(plain[2].detach().t().contiguous().t()),
    ]
    for params in (plain, strided):
        run(MetaplasticSGD(params, 0.05, scale="auto", momentum=0.9), params)
    assert not strided[0].is_contiguous()
    assert same_bits(plain, strided)


def test_bfloat16_gradients_in_float32() -> None:
    p = Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    p.grad = torch.full((3, 3), 0.3)
    optimizer = MetaplasticSGD([p], 1e-4, scale=1.0)
    optimizer.step()
    # One rounding of lr, of the product and of the difference; a bfloat16 weight would not have moved.
    assert (optimizer.state[p]["master"].double() - (1 - 1e-4 * 0.3)).abs().max() <= 2.0**-24 * (1 + 3e-5 * 2)
    assert (p == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_alpha_held_in_bfloat16(dtype: torch.dtype) -> None:
    kept = {}
    for alpha_dtype in (torch.float32, torch.bfloat16):
        params = make_parameters(dtype)
        optimizer = MetaplasticSGD(params, lr=0.05, scale=3.0, alpha_dtype=alpha_dtype)
        run(optimizer, params, items=1)
        before = [exact(optimizer, p) for p in params]
        set_grads(params, 7)
        optimizer.step()
        kept[alpha_dtype] = [
            (optimizer.state[p].get("alpha"), exact(optimizer, p) - b, b)
            for p, b in zip(params, before, strict=True)
        ]
    for (wide, step, b), (held, rounded, _) in zip(*kept.values(), strict=True):
        if wide is None:
            assert held is None  # it moves freely
            assert np.array_equal(step, rounded)
            continue
        assert held.dtype is (torch.float64 if dtype is torch.float64 else torch.bfloat16)
        assert torch.equal(held, wide.to(held.dtype))
        # alpha is off by 2^-8 of itself at most; then five roundings of the step and one of each new weight.
        u = 2.0**-53 if dtype is torch.float64 else 2.0**-24
        off = 0.0 if dtype is torch.float64 else 2.0**-8
        new = np.abs(b) + np.abs(step)
        assert (np.abs(rounded - step) <= (off + 10 * u) * 1.01 * np.abs(step) + 2 * u * new).all()


def test_alpha_dtype_survives_a_checkpoint() -> None:
    params = make_parameters()
    optimizer = MetaplasticSGD(params, lr=0.05, scale=3.0, alpha_dtype=torch.bfloat16)
    run(optimizer, params, items=1)
    set_grads(params, 7)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["alpha_dtype"] == "bfloat16"
    copies = [Parameter(p.detach().clone()) for p in params]
    restored = MetaplasticSGD(copies, lr=1.0, scale=1.0)
    restored.load_state_dict(state)
    assert restored.state[copies[0]]["alpha"].dtype is torch.bfloat16
    run(optimizer, params, items=2)
    run(restored, copies, items=2)
    assert same_bits(params, copies)


def test_alpha_dtype_is_checked() -> None:
    with pytest.raises(ValueError, match="alpha_dtype must be one of"):
        MetaplasticSGD(make_parameters(), lr=0.1, scale=1.0, alpha_dtype=torch.float16)
