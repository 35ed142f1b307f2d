"""The fused step and the step of the optimizer give the same weights, up to rounding."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern import Field, Purpose, ops
from flexkern.nn import AdaptiveThreshold, MetaplasticLinear, SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.nets import batches, exact_weights, mlp, optimizer_of, rms, silent, train, trained

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
}
U = 2.0**-24


def agree(data: Any, **options: Any) -> None:
    """Both ways come as near to a float64 run as float32 lets them.

    They round the same products and sums, in another order: so the errors of the two, over all weights, are of
    one size. A factor of 2 leaves room for their being random, and one ulp of the weights for their being 0.
    """
    exactly = exact_weights(*trained(data, fused=False, dtype=torch.float64, **options))
    unfused = exact_weights(*trained(data, fused=False, **options))
    fused = exact_weights(*trained(data, fused=True, **options))
    start = torch.cat([p.detach().double().flatten() for p in mlp().parameters()])
    limit = 2 * rms(unfused - exactly) + U * rms(exactly)
    assert rms(fused - exactly) <= limit
    # That says something only if the weights moved much more than that.
    assert rms(exactly - start) > 1000 * limit


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("scale", [20.0, "auto"])
def test_both_ways_agree_over_many_steps(scale: Any, gate: str, rule: dict[str, Any]) -> None:
    agree(batches(60), items=3, lr=0.03, scale=scale, gate=gate, **rule)


@pytest.mark.parametrize("gate", ["item", "step"])
def test_a_window_is_one_large_batch(gate: str) -> None:
    data = batches(50)
    exactly = exact_weights(*trained(data, fused=False, dtype=torch.float64, gate=gate, items=2))
    unfused = exact_weights(*trained(data, fused=False, gate=gate, items=2))
    windows = exact_weights(*trained(data, fused=True, gate=gate, items=2, window=3))
    assert rms(windows - exactly) <= 2 * rms(unfused - exactly) + U * rms(exactly)


def watch(model: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """Keeps input and output gradient of each layer's last backward, by position in the model."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        number = list(model).index(module)
        x = inputs[0].detach().clone()
        output.register_hook(lambda grad: seen.update({number: (x, grad.clone())}))

    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(hook)
    return seen


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("gate", ["item", "step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, "autocast"], ids=str)
def test_every_step_is_that_of_the_product(dtype: Any, gate: str, rule: dict[str, Any]) -> None:
    """Each step against the flexible update in float64, from the layer's own input and output gradient.

    See docs/design.md, The flexible update.
    """
    autocast = dtype == "autocast"
    low = torch.bfloat16 if autocast else dtype
    dtype = torch.float32 if autocast else dtype
    model = mlp(dtype=dtype)
    seen = watch(model)
    lr, scale = 0.1, 20.0
    optimizer = optimizer_of(model, lr, scale=scale, gate=gate, **rule)
    fuse_into_backward(model, optimizer)
    mu, decay, damp = rule.get("momentum", 0.0), rule.get("weight_decay", 0.0), rule.get("dampening", 0.0)
    weights = {i: layer.weight for i, layer in enumerate(model) if isinstance(layer, nn.Linear)}
    # Streams follow the position among the parameters: weight, bias, weight, bias.
    f = {i: ops.flexibility_field(w.shape, seed=0, stream=i).double() for i, w in weights.items()}
    a = {i: w.detach().double().clone() for i, w in weights.items()}
    buffer: dict[int, Tensor] = {}
    alpha: dict[int, Tensor] = {}
    u = 2 * 2.0**-53 if dtype is torch.float64 else U

    def exact(i: int) -> Tensor:
        return optimizer.state[weights[i]].get("master", weights[i]).detach().double().clone()

    for step, (x, y) in enumerate(batches(8)):
        if step == 4:
            optimizer.consolidate()
        before = {i: exact(i) for i in weights}
        if gate == "step" or step in (0, 4):
            alpha = {i: torch.cosh(scale * (1 - f[i]) / f[i] * (before[i] - a[i]).abs()) ** -2 for i in f}
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x.to(dtype)), y)
        loss.backward()
        for i, w in weights.items():
            inputs, grad_out = seen[i]
            inputs = inputs.to(low).double()  # autocast rounds a layer's input, here of the first layer
            grad_out = grad_out.double()
            raw, size = grad_out.T @ inputs, grad_out.abs().T @ inputs.abs()
            g, size = raw + decay * before[i], size + decay * before[i].abs()
            # The product sums BATCH terms, in any order: BATCH roundings each.
            roundings = len(x)
            if mu:
                if i in buffer:
                    new = mu * buffer[i] + (1 - damp) * g
                    size = size + mu * buffer[i].abs()
                else:
                    new = g
                got = optimizer.state[w]["momentum_buffer"].double().clone()
                # Rounded besides: decay, dampening, mu, 1 - dampening, three products and two sums.
                assert ((got - new).abs() <= (roundings + 9) * u * size).all()
                buffer[i] = got
                g = g + mu * new if rule.get("nesterov") else new
                size = (1 + mu) * size
            expected = before[i] - lr * alpha[i] * g
            # 14 roundings of the rule and 16 of alpha: tests/optim/test_optim.py counts them.
            tolerance = u * (exact(i).abs() + lr * size * (roundings + 14 + 16))
            assert ((exact(i) - expected).abs() <= tolerance).all()
            assert torch.equal(w, exact(i).to(w.dtype))
        optimizer.step()
    assert all((exact(i) != a[i]).any() for i in weights)


def test_low_precision_parameters_keep_masters() -> None:
    """Both ways step the same masters; only fused does its gradient not pass through bfloat16."""
    data = batches(50)
    fused, optimizer = trained(data, fused=True, dtype=torch.bfloat16, items=2)
    for layer in fused:
        if isinstance(layer, nn.Linear):
            master = optimizer.state[layer.weight]["master"]
            assert master.dtype is torch.float32
            assert torch.equal(layer.weight, master.to(torch.bfloat16))


def test_what_is_fused() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "a": nn.Linear(3, 3),
            "own": Own(3, 3),
            "conv": nn.Conv1d(3, 3, 1),
            "b": nn.Sequential(MetaplasticLinear(3, 3, bias=False)),
            "other": nn.Linear(3, 3),
        }
    )
    first, weight, calls = model["a"], model["a"].weight, []
    first.register_forward_hook(lambda *_: calls.append(1))
    params = [p for name, p in model.named_parameters() if not name.startswith("other")]
    optimizer = MetaplasticSGD(params, 0.1, scale=1.0)
    assert fuse_into_backward(model, optimizer) == ["a", "b.0"]
    assert model["a"] is first
    assert first.weight is weight
    assert type(first) is MetaplasticLinear
    assert first.fused_step
    assert model["b"][0].fused_step
    assert type(model["other"]) is nn.Linear
    assert type(model["own"]) is Own
    first(torch.ones(2, 3))
    assert calls == [1]
    assert "fused_step=True" in repr(first)
    assert list(first.state_dict()) == ["weight", "bias"]


def test_schedulers_and_groups() -> None:
    models = {}
    for fused in (False, True):
        model = mlp()
        groups = [
            {"params": model[0].parameters(), "gate": "step"},
            {"params": model[2].parameters(), "lr": 0.02, "momentum": 0.5, "flexibility": 0.8},
        ]
        optimizer = MetaplasticSGD(groups, 0.1, scale=20.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [0.2, 0.1], total_steps=60, cycle_momentum=False
        )
        if fused:
            fuse_into_backward(model, optimizer)
        train(model, optimizer, batches(50), items=2, after_step=schedule.step)
        models[fused] = exact_weights(model, optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[0] < 0.05
    # 50 steps at most of size lr <= 0.2 with gradients under 1 that differ by 12 roundings, and momentum 0.5
    # doubles them; what was off comes back through the other layers, not more than that again and again: x 10.
    assert (models[True] - models[False]).abs().max() <= 10 * 50 * 0.2 * 2 * 12 * U


def test_saved_and_loaded_optimizers_go_on_to_the_bit() -> None:
    data = batches(20)
    model, optimizer = trained(data[:10], fused=True, items=1, momentum=0.9)
    kept = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], kept)
    kept.seek(0)
    states = torch.load(kept, weights_only=True)
    other = mlp()
    fresh = optimizer_of(other, momentum=0.9)
    fuse_into_backward(other, fresh)
    other.load_state_dict(states[0])
    fresh.load_state_dict(states[1])
    train(model, optimizer, data[10:])
    train(other, fresh, data[10:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    # The state is that of an unfused run, tensor for tensor.
    _, unfused = trained(data[:10], fused=False, items=1, momentum=0.9)
    assert {k: set(v) for k, v in states[1]["state"].items()} == {
        k: set(v) for k, v in unfused.state_dict()["state"].items()
    }


def test_procedural_anchor_stores_nothing() -> None:
    model = mlp()
    fields: list[Field | None] = []
    for number, layer in enumerate(layer for layer in model if isinstance(layer, nn.Linear)):
        field = Field.normal(3, number, std=0.3, purpose=Purpose.ANCHOR)
        with torch.no_grad():
            layer.weight.copy_(ops.materialize(field, layer.weight.shape))
        fields += [field, None]
    optimizer = optimizer_of(model, anchor=fields, gate="step")
    fuse_into_backward(model, optimizer)
    train(model, optimizer, batches(5))
    state = optimizer.state[model[0].weight]
    assert set(state) == {"items", "flexibility", "anchor"}
    assert not any(isinstance(value, torch.Tensor) for value in state.values())


def test_a_window_is_dropped_with_its_gradients() -> None:
    data = batches(2)
    models = []
    for drop in (True, False):
        model = mlp()
        optimizer = optimizer_of(model)
        fuse_into_backward(model, optimizer, window=2)
        if drop:
            x, y = data[0]
            nn.functional.cross_entropy(model(x), y).backward()
            assert "1 of 2 micro-batches" in repr(model[0].weight.grad)
            model.zero_grad()
        train(model, optimizer, data[1:], window=2)
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


# --------------------------------------------------------------------------- silent synapses


def masks(model: nn.Module) -> list[Tensor]:
    return [ops.unpack_mask(m.silent, m.in_features) for m in model if isinstance(m, SilentLinear)]


@functools.lru_cache
def judged(adaptive: bool, rule: str, insert: str) -> tuple[nn.Sequential, Tensor, float]:
    """A float64 run: its model and weights, and the smallest relative distance that there was between the
    coincidence of a silent synapse and its threshold, that is, the error that it takes to decide otherwise."""
    options = silent_options(adaptive, rule, insert)
    model = mlp(options.pop("make"), torch.float64)
    items = options.pop("items")
    optimizer = optimizer_of(model, **options)
    nearest = []

    def look(*_: object) -> None:
        for layer in model:
            if isinstance(layer, SilentLinear):
                means = layer.recorded()
                c = means["coincidence"] if "coincidence" in means else torch.outer(means["post"], means["pre"])
                distance = (c - layer.threshold.reshape(-1, 1)).abs() / layer.threshold.reshape(-1, 1)
                nearest.append(distance[ops.unpack_mask(layer.silent, layer.in_features)].min().item())

    optimizer.register_step_pre_hook(look)
    train(model, optimizer, batches(60), items=items)
    return model, exact_weights(model, optimizer), min(nearest)


def silent_options(adaptive: bool, rule: str, insert: str) -> dict[str, Any]:
    threshold: Any = 0.1 if rule == "rate" else 0.19
    if adaptive:
        threshold = AdaptiveThreshold(0.005, gain=2.0, start=threshold, low=1e-3)
    make = silent(silent=0.8, threshold=threshold, rule=rule, insert=insert, eta=0.1)
    return {"make": make, "items": 3, "lr": 0.03, "gate": "step" if adaptive else "item", "momentum": 0.5}


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("rule", ["rate", "hebbian"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_both_ways_convert_the_same_synapses(adaptive: bool, rule: str, insert: str) -> None:
    options = silent_options(adaptive, rule, insert)
    right, judge, nearest = judged(adaptive, rule, insert)
    # Weights, activities and thresholds of float32 runs are off by less than 1e-6 of their size; see below.
    assert nearest > 1e-5
    begun, ended = masks(mlp(options["make"])), masks(right)
    # Some converted, some did not, in both layers, and not all at once.
    assert all(0 < after.sum() < before.sum() for before, after in zip(begun, ended, strict=True))
    assert sum(n > 0 for n in right[0].conversions) > 1
    runs = {
        name: trained(batches(60), fused=name != "unfused", window=3 if name == "window" else 1, **options)
        for name in ("unfused", "fused", "window")
    }
    limit = 2 * rms(exact_weights(*runs["unfused"]) - judge) + U * rms(judge)
    for model, optimizer in runs.values():
        assert all(torch.equal(mask, expected) for mask, expected in zip(masks(model), ended, strict=True))
        assert rms(exact_weights(model, optimizer) - judge) <= limit
        for layer, other in zip(model, right, strict=True):
            if isinstance(layer, SilentLinear):
                assert layer.conversions == other.conversions
                assert torch.equal(layer.changes, other.changes)
                assert torch.equal(layer.functional_share(), other.functional_share())
