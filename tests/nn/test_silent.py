"""SilentLinear: what is silent stays exactly 0, and what is driven becomes functional."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern import Field, Purpose, ops, synapses
from flexkern.nn import AdaptiveThreshold, MetaplasticLinear, SilentLinear
from flexkern.optim import fuse_into_backward
from nets import BATCH, SIZES, batches, mlp, optimizer_of, silent, train

NEVER = 1e30  # a threshold that nothing reaches


def mask_of(layer: SilentLinear) -> Tensor:
    return ops.unpack_mask(layer.silent, layer.in_features)


def silent_are_zero(model: nn.Module) -> bool:
    layers = [m for m in model.modules() if isinstance(m, SilentLinear)]
    assert layers
    assert all(mask_of(layer).any() for layer in layers)
    return all(bool((layer.weight[mask_of(layer)] == 0).all()) for layer in layers)


# --------------------------------------------------------------------------- how it begins


def test_weights_and_silence_are_procedural() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    layer = SilentLinear(400, 300, silent=0.3, seed=9, stream=2)
    assert torch.equal(torch.get_rng_state(), state)
    mask, bound = mask_of(layer), 1 / math.sqrt(400)
    field = Field.uniform(9, 2, low=-bound, high=bound, purpose=Purpose.ANCHOR)
    assert layer.init == field
    expected = ops.materialize(field, (300, 400)).masked_fill(mask, 0)
    assert torch.equal(layer.weight, expected)
    draw = ops.materialize(Field.uniform(9, 2, purpose=Purpose.SILENCE), (300, 400))
    assert torch.equal(mask, draw < 0.3)
    # 120,000 draws with probability 0.3: within 5 standard deviations.
    assert abs(mask.sum().item() - 36_000) < 5 * math.sqrt(120_000 * 0.3 * 0.7)
    assert torch.equal(layer.functional_share(), 1 - mask.sum(1) / 400)
    assert layer.bias.abs().max() <= bound
    assert layer.bias.unique().numel() == 300
    same, other = (SilentLinear(400, 300, silent=0.3, seed=9, stream=s) for s in (2, 3))
    assert torch.equal(same.weight, layer.weight)
    assert torch.equal(same.bias, layer.bias)
    assert not torch.equal(mask_of(other), mask)


def test_what_begins_silent() -> None:
    assert mask_of(SilentLinear(7, 3, silent=1.0)).all()
    assert not mask_of(SilentLinear(7, 3, silent=0)).any()
    shares = torch.tensor([0.0, 1.0, 0.5])
    mask = mask_of(SilentLinear(200, 3, silent=shares))
    assert not mask[0].any()
    assert mask[1].all()
    assert abs(mask[2].sum().item() - 100) < 5 * math.sqrt(200 / 4)
    given = torch.rand(3, 7) < 0.5
    layer = SilentLinear(7, 3, silent=given)
    assert torch.equal(mask_of(layer), given)
    assert layer.silent.dtype is torch.int32
    field = Field.normal(1, 8, std=0.2)
    layer = SilentLinear(7, 3, silent=given, init=field, bias=False)
    assert torch.equal(layer.weight, ops.materialize(field, (3, 7)).masked_fill(given, 0))
    assert layer.bias is None
    assert SilentLinear(7, 3, silent=given, dtype=torch.bfloat16).weight.dtype is torch.bfloat16


# --------------------------------------------------------------------------- forward and gradients


def test_forward_is_a_dense_product_and_gradients_of_silent_weights_are_zero() -> None:
    layer = SilentLinear(6, 5, silent=0.5)
    x = torch.randn(4, 3, 6)
    plain = nn.Linear(6, 5)
    plain.weight, plain.bias = (nn.Parameter(p.detach().clone()) for p in (layer.weight, layer.bias))
    assert torch.equal(layer(x), plain(x))
    for module in (layer, plain):
        module(x).square().sum().backward()
    mask = mask_of(layer)
    assert (plain.weight.grad[mask] != 0).any()
    assert torch.equal(layer.weight.grad, plain.weight.grad.masked_fill(mask, 0))
    assert torch.equal(layer.bias.grad, plain.bias.grad)
    # An infinite gradient does not come through as NaN.
    layer.weight.grad = None
    (layer(torch.full((1, 6), 1e30)) * 1e30).sum().backward()
    assert (layer.weight.grad[mask] == 0).all()
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))


def test_double_backward() -> None:
    layer = SilentLinear(4, 3, silent=0.5, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,)).tanh()

    layer.eval()  # numerical differences would see silent weights move
    assert torch.autograd.gradgradcheck(run, (x, layer.weight, layer.bias))
    layer.train()
    (grad,) = torch.autograd.grad(layer(x).tanh().square().sum(), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), layer.weight)
    mask = mask_of(layer)
    assert (second[mask] == 0).all()
    # Where weights are functional it is the second derivative of the dense layer.
    weight = layer.weight.detach().clone().requires_grad_()
    dense = nn.functional.linear(x, weight, layer.bias).tanh().square().sum()
    (grad,) = torch.autograd.grad(dense, weight, create_graph=True)
    (expected,) = torch.autograd.grad(grad.masked_fill(mask, 0).square().sum(), weight)
    assert torch.allclose(second[~mask], expected[~mask], rtol=1e-12)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD maximize": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1),
    "MetaplasticSGD": lambda p: optimizer_of(p, momentum=0.9, weight_decay=0.1, gate="step"),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_silent_weights_stay_zero_with_every_optimizer(dtype: torch.dtype, make: Any) -> None:
    model = mlp(silent(silent=0.5, threshold=NEVER), dtype)
    start = copy.deepcopy(model.state_dict())
    optimizer = make(model if make is OPTIMIZERS["MetaplasticSGD"] else model.parameters())
    train(model, optimizer, batches(10))
    assert silent_are_zero(model)
    assert torch.equal(model[0].silent, start["0.silent"])
    functional = ~mask_of(model[0])
    assert (model[0].weight[functional] != start["0.weight"][functional]).any()


def test_silent_weights_stay_zero_through_copies() -> None:
    model = mlp(silent(silent=0.5, threshold=NEVER))
    kept = io.BytesIO()
    torch.save(model.state_dict(), kept)
    kept.seek(0)
    other = mlp(lambda i, o, n: SilentLinear(i, o, silent=0.2, seed=77, stream=n))
    assert not torch.equal(other[0].silent, model[0].silent)
    other.load_state_dict(torch.load(kept, weights_only=True))
    assert torch.equal(other[0].silent, model[0].silent)
    assert other[0].init == model[0].init
    assert torch.equal(other[0].functional_share(), model[0].functional_share())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.bfloat16)):
        assert silent_are_zero(twin)
        assert twin[0].threshold.dtype is torch.float32
        assert synapses.silent_synapses(twin[0].weight) is twin[0]
        train(twin, optimizer_of(twin, momentum=0.5), batches(3))
        assert silent_are_zero(twin)


def test_weights_of_a_plain_layer() -> None:
    layer, plain = SilentLinear(6, 5, silent=0.5), nn.Linear(6, 5)
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == {"silent", "threshold", "silent_count", "changes", "_extra_state"}
    assert torch.equal(layer.weight, plain.weight.masked_fill(mask_of(layer), 0))


def test_a_layer_does_not_outlive_its_last_reference() -> None:
    layer = SilentLinear(3, 3)
    weight = layer.weight
    assert synapses.silent_synapses(weight) is layer
    del layer
    assert synapses.silent_synapses(weight) is None


# --------------------------------------------------------------------------- conversion


def one_step(
    layer: SilentLinear, inputs: list[Tensor], *, fused: bool, **options: Any
) -> tuple[Any, list[Tensor]]:
    """One optimizer step after the micro-batches; returns the optimizer and the layer's outputs."""
    options = {"scale": 5.0, "lr": 0.1} | options
    optimizer = optimizer_of(layer, **options)
    optimizer.zero_grad()
    if fused:
        fuse_into_backward(layer, optimizer, window=len(inputs))
    outputs = []
    for x in inputs:
        y = layer(x)
        outputs.append(y.detach().clone())
        (y.square().sum() / len(inputs)).backward()
    optimizer.step()
    return optimizer, outputs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("rule", ["rate", "hebbian"])
@pytest.mark.parametrize("threshold", ["number", "tensor"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_step_converts_what_was_driven(
    dtype: torch.dtype, parts: int, threshold: str, rule: str, insert: str, fused: bool
) -> None:
    fan_in, fan_out = 37, 11
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, fan_in, generator=generator).to(dtype)
    level = 0.0813 if rule == "rate" else 0.207
    theta = level if threshold == "number" else level * (0.5 + torch.rand(fan_out, generator=generator))
    layer = SilentLinear(
        fan_in, fan_out, silent=0.6, threshold=theta, rule=rule, insert=insert, eta=0.5, seed=1, dtype=dtype
    )
    before, was = layer.weight.detach().double().clone(), mask_of(layer)
    optimizer, outputs = one_step(layer, list(x.chunk(parts)), fused=fused)
    pre, post = x.double().clamp(min=0), torch.cat(outputs).double().clamp(min=0)
    c = torch.outer(post.mean(0), pre.mean(0)) if rule == "rate" else post.T @ pre / BATCH
    level = torch.as_tensor(theta, dtype=torch.float64).reshape(-1, 1)
    u = 2 * 2.0**-53 if dtype is torch.float64 else 2.0**-24
    # c sums at most BATCH terms twice (rate: two means), divides twice and multiplies: 2 BATCH + 4 roundings;
    # theta rounds once. No synapse is so near to its threshold that this could decide.
    assert ((c - level).abs() > (2 * BATCH + 5) * u * (c + level)).all()
    converts = was & (c >= level)
    assert 0 < converts.sum() < was.sum()
    assert torch.equal(mask_of(layer), was & ~converts)
    exact = optimizer.state[layer.weight].get("master", layer.weight).detach().double()
    field = ops.materialize(layer.init, layer.weight.shape).double()
    inserted = 0.5 * c if insert == "hebbian" else field
    assert ((exact - inserted)[converts].abs() <= (2 * BATCH + 5) * u * inserted[converts].abs()).all()
    assert (layer.weight[was & ~converts] == 0).all()
    assert (exact[~was] != before[~was]).any()
    anchor = optimizer.state[layer.weight]["anchor"]
    if insert == "init":
        assert anchor is None  # procedural
    else:
        assert torch.equal(anchor.double()[converts], exact[converts])
        assert torch.equal(anchor.double()[~converts & was], field[~converts & was])
    assert torch.equal(layer.changes[0], converts.sum(1))
    assert torch.equal(layer.silent_count, mask_of(layer).sum(1))


@pytest.mark.parametrize("fused", [False, True])
def test_micro_batches_are_one_large_batch(fused: bool) -> None:
    """Also of unequal size: coincidences are means over samples."""
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    masks = []
    for parts in ([12], [6, 6], [1, 4, 7]):
        layer = SilentLinear(20, 16, silent=0.7, threshold=0.03, rule="rate")
        one_step(layer, list(x.split(parts)), fused=fused)
        masks.append(mask_of(layer))
    assert 0 < layer.changes[0].sum() < 0.7 * 320
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_what_was_recorded_is_used_once() -> None:
    layer = SilentLinear(8, 8, silent=0.5, threshold=NEVER, rule="hebbian")
    x = torch.rand(4, 8)
    optimizer, _ = one_step(layer, [x], fused=False)
    assert all(value.isnan().all() for value in layer.drive().values())
    layer.threshold.zero_()
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()  # nothing was recorded since, so nothing converts
    assert layer.changes.sum() == 0
    layer.eval()
    layer(x)
    layer.train()
    with torch.no_grad():
        layer(x)
    optimizer.step()
    assert layer.changes.sum() == 0
    layer(x)
    optimizer.step()
    assert not mask_of(layer).any()


@pytest.mark.parametrize("fused", [False, True])
def test_pruned_synapses_go_silent(fused: bool) -> None:
    layer = SilentLinear(
        8, 8, silent=0.0, threshold=NEVER, prune=0.1, init=Field.uniform(3, low=-1.0, high=1.0)
    )
    start = layer.weight.detach().clone()
    optimizer, _ = one_step(layer, [torch.full((1, 8), 1e-6)], fused=fused)  # hardly a gradient
    pruned = start.abs() < 0.1
    assert 0 < pruned.sum() < 64
    assert torch.equal(mask_of(layer), pruned)
    assert silent_are_zero(layer)
    assert torch.equal(layer.changes[1], pruned.sum(1))
    optimizer.consolidate()
    assert layer.conversions == [0]


# --------------------------------------------------------------------------- with the optimizer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_alpha_of_silent_synapses_is_that_of_their_anchor(fused: bool, zero: bool) -> None:
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    f = torch.rand(8, 9)
    if zero:
        f[::2] = 0
    mask, flexibility = mask_of(layer), [f, 1.0]
    optimizer, _ = one_step(layer, [torch.randn(5, 9)], fused=fused, scale=50.0, flexibility=flexibility)
    optimizer.consolidate()
    optimizer.zero_grad()
    layer(torch.randn(5, 9)).sum().backward()
    optimizer.step()
    alpha = optimizer.state[layer.weight]["alpha"]
    assert torch.equal(alpha[mask], (f[mask] != 0).float())
    assert (alpha[~mask] < 0.99).any()


def test_where_the_anchor_comes_from() -> None:
    x = torch.randn(5, 9)
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    optimizer, _ = one_step(layer, [x], fused=False)
    assert optimizer.state[layer.weight]["anchor"] is None
    assert optimizer.param_groups[0]["anchor"] == [layer.init, None]

    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    layer.load_state_dict(nn.Linear(9, 8).state_dict(), strict=False)
    weight, mask = layer.weight.detach().clone(), mask_of(layer)
    optimizer, _ = one_step(layer, [x], fused=False)
    field = ops.materialize(layer.init, (8, 9))
    assert torch.equal(optimizer.state[layer.weight]["anchor"], torch.where(mask, field, weight))

    # A Field that was given has to be right, where synapses are functional.
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    with pytest.raises(ValueError, match="does not hold the values"):
        one_step(layer, [x], fused=False, anchor=[Field.normal(0), None])
    one_step(layer, [x], fused=False, anchor=[layer.init, None])

    # Conventional synapses (f = 1) have no use for an anchor, but for what is inserted.
    layer = SilentLinear(9, 8, silent=0.5, threshold=0.0)
    optimizer, _ = one_step(layer, [x.abs()], fused=False, flexibility=1.0)
    assert layer.changes[0].sum() == mask.sum()
    assert torch.equal(layer.weight[mask], field[mask])


@pytest.mark.parametrize("insert", ["init", "hebbian"])
def test_saved_and_loaded_training_goes_on_to_the_bit(insert: str) -> None:
    make = silent(silent=0.5, threshold=AdaptiveThreshold(0.02, start=0.3), rule="hebbian", insert=insert)
    data = batches(24)
    model = mlp(make)
    optimizer = optimizer_of(model, momentum=0.9)
    train(model, optimizer, data[:12], items=2)
    kept = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], kept)
    kept.seek(0)
    states = torch.load(kept, weights_only=True)
    untouched = copy.deepcopy(states)
    other = mlp(silent(silent=0.1, threshold=AdaptiveThreshold(0.02, start=0.1), rule="hebbian", insert=insert))
    fresh = optimizer_of(other, momentum=0.9)
    other.load_state_dict(states[0])
    fresh.load_state_dict(states[1])
    assert other[0].conversions == model[0].conversions
    assert len(model[0].conversions) == 2
    assert sum(model[0].conversions) > 0
    train(model, optimizer, data[12:], items=2)
    train(other, fresh, data[12:], items=2)
    for (name, p), q in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q) if isinstance(p, Tensor) else p == q, name
    assert sum(model[0].conversions[2:]) > 0
    for p, q in zip(states[1]["state"].values(), untouched[1]["state"].values(), strict=True):
        assert all(torch.equal(p[k], q[k]) if isinstance(p[k], Tensor) else p[k] == q[k] for k in q)


def test_auto_scale_counts_functional_synapses_only() -> None:
    """Silent synapses have not moved: a reserve does not look like weights that went far."""
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[:, 5:] = True
    layer = SilentLinear(9, 8, silent=mask, threshold=NEVER)
    start = layer.weight.detach().clone()
    optimizer, _ = one_step(layer, [x], fused=False, scale="auto")
    displacement = (layer.weight - start)[~mask].abs().mean().item()
    watched = optimizer.state[layer.weight]["first_item"]
    # `speed` is displacement / effort, after one step of lr 0.1; sums of 40 float32 values in another order.
    assert watched[3] == pytest.approx(displacement / 0.1, rel=40 * 2.0**-24)
    optimizer.consolidate()
    assert optimizer.scales()[0] > 0


def test_other_optimizers_convert_by_hand() -> None:
    x = torch.rand(6, 9)
    for dtype in (torch.float32, torch.bfloat16):
        for insert in ("init", "hebbian"):
            layer = SilentLinear(9, 8, silent=0.5, threshold=0.01, insert=insert, dtype=dtype)
            was = mask_of(layer)
            optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9)
            c = torch.outer(
                layer(x.to(dtype)).detach().clamp(min=0).mean(0).double(), x.to(dtype).mean(0).double()
            )
            layer(x.to(dtype)).sum().backward()
            optimizer.step()
            assert torch.equal(mask_of(layer), was)
            weight = layer.weight.detach().clone()
            conversions = layer.convert()
            converted = was & ~mask_of(layer)
            assert 0 < converted.sum() < was.sum()
            assert torch.equal(conversions.converted, converted.sum(1).int())
            assert torch.equal(layer.weight[~converted], weight[~converted])
            inserted = c if insert == "hebbian" else ops.materialize(layer.init, (8, 9))
            # bfloat16 rounds to 2^-9; both means of bfloat16 values, and c, are rounded on the way.
            rtol = 2.0**-7 if dtype is torch.bfloat16 else 2.0**-20
            assert torch.allclose(
                layer.weight[converted].double(), inserted[converted].double(), rtol=rtol, atol=0
            )
            layer.end_item()
            assert layer.conversions == [int(converted.sum())]


def test_a_layer_that_is_all_functional_is_an_ordinary_one() -> None:
    layer, plain = SilentLinear(9, 8, silent=0.9, threshold=0.0), MetaplasticLinear(9, 8)
    x = torch.rand(6, 9)
    optimizer, _ = one_step(layer, [x], fused=False, flexibility=1.0)
    optimizer.consolidate()
    assert layer.conversions == [layer.in_features * 8 - int((~mask_of(SilentLinear(9, 8, silent=0.9))).sum())]
    assert not layer.may_convert()
    assert (layer.functional_share() == 1).all()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    for module in (layer, plain):
        one_step(module, [x], fused=False)
    assert torch.equal(layer.weight, plain.weight)
    for module in (layer, plain):
        one_step(module, [x], fused=True)
    assert torch.equal(layer.weight, plain.weight)


def test_extra_repr() -> None:
    layer = SilentLinear(10, 4, silent=torch.eye(4, 10).bool(), threshold=0.25, prune=0.01)
    text = repr(layer)
    assert "in_features=10, out_features=4" in text
    assert "silent=10.0%, threshold=0.25, rule='rate', insert='init', prune=0.01" in text
    assert "threshold=adaptive" in repr(SilentLinear(3, 3, threshold=AdaptiveThreshold()))
    assert SIZES[0] == mlp(silent())[0].in_features
