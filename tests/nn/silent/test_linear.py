"""SilentLinear: what is silent stays exactly 0, and what is active together becomes functional."""

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

from flexkern import Field, Purpose, ops
from flexkern.nn import AdaptiveThreshold, Insertion, SilentLinear
from flexkern.nn.silent import layer_of_weight as synapses
from helpers.nets import SIZES, batches, mask_of, mlp, optimizer_of, silent, silent_are_zero, train

NEVER = 1e30  # a threshold that nothing reaches


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


def test_thresholds_are_not_rounded_with_the_weights() -> None:
    theta = torch.tensor([0.1, 1 / 3, 0.7])  # not one of them is a bfloat16 number
    for threshold in (theta, AdaptiveThreshold(start=0.1)):
        layer = SilentLinear(4, 3, threshold=threshold)
        before = layer.threshold.clone()
        layer.to(torch.bfloat16)
        assert layer.weight.dtype is torch.bfloat16
        assert layer.threshold.dtype is torch.float32
        assert torch.equal(layer.threshold, before)
        assert not torch.equal(before.to(torch.bfloat16).float(), before)


def test_what_was_recorded_is_not_rounded_with_the_weights() -> None:
    for rule in ("rate", "hebbian"):
        layer = SilentLinear(6, 5, threshold=NEVER, rule=rule)
        layer(torch.rand(7, 6))
        before = layer.recorded()
        after = layer.to(torch.bfloat16).recorded()
        assert all(torch.equal(after[name], value) for name, value in before.items())


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


# --------------------------------------------------------------------------- with the optimizer


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


def test_a_loaded_anchor_is_not_that_of_the_state() -> None:
    """What is inserted is written into the anchor: not into the anchor of a state that was loaded."""
    model = mlp(silent(silent=0.5, threshold=0.2, insert="hebbian"))
    optimizer = optimizer_of(model)
    train(model, optimizer, batches(2))
    anchors = {k: v["anchor"].clone() for k, v in optimizer.state_dict()["state"].items() if k in (0, 2)}
    other = mlp(silent(silent=0.5, threshold=0.2, insert="hebbian"))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    state = optimizer.state_dict()
    fresh = optimizer_of(other)
    fresh.load_state_dict(state)
    for layer in (other[0], other[2]):
        layer.threshold.zero_()  # everything that is still silent converts now
    train(other, fresh, batches(2))
    for number, layer in ((0, other[0]), (2, other[2])):
        assert not torch.equal(fresh.state[layer.weight]["anchor"], anchors[number])
        assert torch.equal(state["state"][number]["anchor"], anchors[number])


# --------------------------------------------------------------------------- its options


def test_options_as_a_record_and_one_by_one() -> None:
    theta = torch.tensor([0.1, 0.2, 0.3])
    how = Insertion(threshold=theta, rule="hebbian", insert="hebbian", eta=0.5, prune=0.25)
    for layer in (
        SilentLinear(4, 3, insertion=how),
        SilentLinear(4, 3, threshold=theta, rule="hebbian", insert="hebbian", eta=0.5, prune=0.25),
        SilentLinear(4, 3, insertion=Insertion(prune=0.25, eta=3), threshold=theta, rule="hebbian",
                     insert="hebbian", eta=0.5),
    ):  # fmt: skip
        insertion = layer.insertion()
        assert torch.equal(insertion.pop("threshold"), theta)
        assert insertion == {"insert": "hebbian", "eta": 0.5, "prune": 0.25}
        assert layer.rule == "hebbian"
    layer.threshold.zero_()
    assert theta.all()  # the layer's thresholds are its own
    with pytest.raises(ValueError, match="eta must be finite"):
        Insertion(eta=-1.0)
    with pytest.raises(TypeError, match=r"insertion must be a flexkern.nn.Insertion or None, got dict"):
        SilentLinear(4, 3, insertion={"eta": 0.5})


def test_unknown_options_are_named() -> None:
    for wrong, right in (("treshold", "threshold"), ("silence", "silent"), ("pruned", "prune")):
        with pytest.raises(TypeError, match=f"SilentLinear has no argument '{wrong}'; did you mean '{right}'"):
            SilentLinear(4, 3, **{wrong: 1.0})
    with pytest.raises(TypeError, match=r"has no argument 'xyz'$"):
        SilentLinear(4, 3, xyz=1)


def test_extra_repr() -> None:
    layer = SilentLinear(10, 4, silent=torch.eye(4, 10).bool(), threshold=0.25, prune=0.01)
    text = repr(layer)
    assert "in_features=10, out_features=4" in text
    assert "silent=10.0%, threshold=0.25, rule='rate', insert='init', prune=0.01" in text
    assert "threshold=adaptive" in repr(SilentLinear(3, 3, threshold=AdaptiveThreshold()))
    assert f"in_features={SIZES[0]}, out_features={SIZES[1]}" in repr(mlp(silent()))
