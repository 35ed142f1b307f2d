"""What a fused step cannot do is an error that explains itself, before anything changes where that is known."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations, parametrize

from flexkern.nn import MetaplasticLinear, SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.nets import batches, mlp, optimizer_of, train

INPUTS, LABELS = batches(1)[0]


def fused_mlp(window: int = 1, **options: object) -> tuple[nn.Sequential, MetaplasticSGD]:
    model = mlp()
    optimizer = optimizer_of(model, **options)
    fuse_into_backward(model, optimizer, window=window)
    return model, optimizer


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(INPUTS), LABELS)


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Parameters and buffers are the same after the block as before it."""
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    yield
    for module, state in zip(modules, before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name


# --------------------------------------------------------------------------- what stands in weight.grad

OTHERS: dict[str, Callable[[nn.Sequential], object]] = {
    "clip_grad_norm": lambda m: clip_grad_norm_(m.parameters(), 1.0),
    "clip_grad_norm plain": lambda m: clip_grad_norm_(m.parameters(), 1.0, foreach=False),
    "clip_grad_value": lambda m: clip_grad_value_(m.parameters(), 1.0),
    "SGD": lambda m: torch.optim.SGD([m[0].weight], 0.1).step(),
    "SGD foreach momentum": lambda m: torch.optim.SGD([m[0].weight], 0.1, foreach=True, momentum=0.9).step(),
    "SGD fused": lambda m: torch.optim.SGD([m[0].weight], 0.1, fused=True).step(),
    "Adam": lambda m: torch.optim.Adam([m[0].weight], 0.1).step(),
    "AdamW foreach": lambda m: torch.optim.AdamW([m[0].weight], 0.1, foreach=True).step(),
    "AdamW fused": lambda m: torch.optim.AdamW([m[0].weight], 0.1, fused=True).step(),
    "RMSprop": lambda m: torch.optim.RMSprop([m[0].weight], 0.1).step(),
    "another gradient": lambda m: m[0].weight.square().sum().backward(),
    "zero_grad in place": lambda m: torch.optim.SGD(m.parameters(), 0.1).zero_grad(set_to_none=False),
    "zero_grad of the module": lambda m: m.zero_grad(set_to_none=False),
    "reading": lambda m: m[0].weight.grad.norm(),
    "copying": lambda m: m[0].weight.grad.clone(),
    "data": lambda m: m[0].weight.grad.data,
}


@pytest.mark.parametrize("use", OTHERS.values(), ids=OTHERS)
def test_a_gradient_that_does_not_exist_cannot_be_used(use: Callable[[nn.Sequential], object]) -> None:
    model, _ = fused_mlp()
    loss_of(model).backward()
    with unchanged(model), pytest.raises(RuntimeError, match=r"a gradient that does not exist.*clipped"):
        use(model)


def test_grad_scaler() -> None:
    model, optimizer = fused_mlp()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(loss_of(model)).backward()
    with unchanged(model), pytest.raises(RuntimeError, match=r"does not exist.*GradScaler"):
        scaler.unscale_(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    with unchanged(model), pytest.raises(RuntimeError, match=r"does not exist.*GradScaler"):
        scaler.step(optimizer)


def test_a_second_metaplastic_optimizer() -> None:
    model, _ = fused_mlp()
    other = optimizer_of(model)
    loss_of(model).backward()
    with unchanged(model), pytest.raises(RuntimeError, match="stepped in backward by another optimizer"):
        other.step()


def test_step_twice() -> None:
    model, optimizer = fused_mlp()
    loss_of(model).backward()
    optimizer.step()
    with unchanged(model), pytest.raises(RuntimeError, match=r"second step\(\) without another backward"):
        optimizer.step()


# --------------------------------------------------------------------------- accumulation


def test_backward_twice_without_a_window() -> None:
    model, optimizer = fused_mlp()
    loss_of(model).backward()
    optimizer.step()
    loss = loss_of(model)
    with unchanged(model), pytest.raises(RuntimeError, match=r"has had its step since .*zero_grad.*window=k"):
        loss.backward()


def test_step_inside_a_window() -> None:
    model, optimizer = fused_mlp(window=3)
    with unchanged(model):
        for seen in (1, 2):
            loss_of(model).backward()
            with pytest.raises(RuntimeError, match=rf"{seen} of the 3 micro-batches.*zero_grad"):
                optimizer.step()
    loss_of(model).backward()
    optimizer.step()
    with unchanged(model[0]), pytest.raises(RuntimeError, match="has had its step"):
        loss_of(model).backward()


def test_an_ordinary_gradient_is_there_already() -> None:
    model, _ = fused_mlp()
    model[2].weight.square().sum().backward()
    loss = loss_of(model)
    with unchanged(model), pytest.raises(RuntimeError, match=r"ordinary gradient in weight.grad.*zero_grad"):
        loss.backward()


def test_another_optimizer_inside_a_window() -> None:
    model, optimizer = fused_mlp(window=2)
    loss_of(model).backward()
    other = optimizer_of(model)
    fuse_into_backward(model, other, window=2)
    loss = loss_of(model)
    with unchanged(model), pytest.raises(RuntimeError, match=r"another optimizer in the middle of a window"):
        loss.backward()
    del optimizer


# --------------------------------------------------------------------------- graphs


@pytest.mark.filterwarnings("ignore:Using backward")
def test_double_backward() -> None:
    model, _ = fused_mlp()
    loss = loss_of(model)
    with (
        unchanged(model),
        pytest.raises(RuntimeError, match=r"double backward \(create_graph=True\).*fused_step"),
    ):
        loss.backward(create_graph=True)
    inputs = INPUTS.clone().requires_grad_()
    with unchanged(model), pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(model(inputs).sum(), [inputs], create_graph=True)


def test_second_backward_through_one_graph() -> None:
    model, optimizer = fused_mlp()
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    optimizer.zero_grad()
    with unchanged(model), pytest.raises(RuntimeError, match=r"retain_graph=True.*stepped the weight already"):
        loss.backward()


def test_a_layer_used_twice_in_one_graph() -> None:
    layer = MetaplasticLinear(4, 4)
    optimizer = optimizer_of(layer)
    fuse_into_backward(layer, optimizer)
    out = layer(layer(torch.ones(2, 4)).relu())
    with unchanged(layer), pytest.raises(RuntimeError, match=r"another graph through it.*weight tying"):
        out.sum().backward()
    del out  # a graph that was given up does not wait any more
    layer(torch.ones(2, 4)).sum().backward()


def test_two_uses_in_one_window_are_two_micro_batches() -> None:
    """A window of 2 is what such a graph needs: nothing steps before both uses have had their backward."""
    torch.manual_seed(0)
    ours, theirs = MetaplasticLinear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    x = torch.randn(6, 4)
    stepping = optimizer_of(ours)
    fuse_into_backward(ours, stepping, window=2)
    ours(ours(x).relu()).sum().backward()
    optimizer = optimizer_of(theirs)
    theirs(theirs(x).relu()).sum().backward()
    optimizer.step()
    moved = (theirs.weight - start).abs().max()
    # Sums of 12 terms in another order, of steps that are as large as `moved`; both weights round once.
    assert (ours.weight - theirs.weight).abs().max() <= 2**-24 * (2 * 12 * 4 * moved + 2 * start.abs().max())
    assert moved > 0.1


def test_the_weight_changed_since_forward() -> None:
    model, _ = fused_mlp()
    loss = loss_of(model)
    with torch.no_grad():
        model[2].weight.mul_(2)
    with (
        unchanged(model),
        pytest.raises(RuntimeError, match="changed between this forward pass and its backward"),
    ):
        loss.backward()


def test_the_gradient_itself_is_asked_for() -> None:
    model, _ = fused_mlp()
    with unchanged(model), pytest.raises(RuntimeError, match=r"autograd.grad was asked.*never formed"):
        torch.autograd.grad(loss_of(model), [model[0].weight])


# --------------------------------------------------------------------------- layers that cannot be fused


def test_no_optimizer() -> None:
    layer = MetaplasticLinear(3, 2, fused_step=True)
    with pytest.raises(RuntimeError, match=r"MetaplasticLinear\(3, 2\) has fused_step but no optimizer"):
        layer(torch.ones(1, 3))
    layer.eval()
    layer(torch.ones(1, 3))
    model, optimizer = fused_mlp()
    del optimizer
    gc.collect()
    with pytest.raises(RuntimeError, match="it is gone"):
        model(INPUTS)


def test_copies_have_no_optimizer() -> None:
    model, _optimizer = fused_mlp()
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(kept, weights_only=False)]
    for other in copies:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        with pytest.raises(RuntimeError, match="a copy of a fused layer"):
            other(INPUTS)
        fresh = optimizer_of(other)
        fuse_into_backward(other, fresh)
        train(other, fresh, batches(1))


def test_the_optimizer_does_not_own_the_weight() -> None:
    model, _optimizer = fused_mlp()
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"does not own its weight \(any more\)"):
        model(INPUTS)


def test_weight_tying() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = optimizer_of(model)
    with unchanged(model), pytest.raises(ValueError, match=r"0\.weight and 2\.weight are one parameter"):
        fuse_into_backward(model, optimizer)
    assert type(model[0]) is nn.Linear
    twice = nn.Linear(4, 4)
    model = nn.Sequential(twice, nn.ReLU(), twice)
    with pytest.raises(ValueError, match="weight tying"):
        fuse_into_backward(model, optimizer_of(model))
    # An embedding that shares the weight of the output layer.
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="weight tying"):
        fuse_into_backward(model, optimizer_of(model))


def test_parametrized_weights() -> None:
    model, _optimizer = fused_mlp()
    parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match=r"its weight is computed \(parametrized"):
        model(INPUTS)
    parametrize.remove_parametrizations(model[0], "weight")
    with pytest.raises(RuntimeError, match="does not own its weight"):
        model(INPUTS)
    # Before fusing it is another class, which is left alone.
    model = mlp()
    parametrizations.weight_norm(model[0])
    optimizer = optimizer_of(model)
    assert fuse_into_backward(model, optimizer) == ["2"]
    train(model, optimizer, batches(1))


def test_weights_with_gradient_hooks() -> None:
    model, _optimizer = fused_mlp()
    handle = model[0].weight.register_hook(lambda grad: 2 * grad)
    with pytest.raises(RuntimeError, match="gradient hooks"):
        model(INPUTS)
    handle.remove()
    model[2].weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(RuntimeError, match="gradient hooks"):
        model(INPUTS)


def test_function_transforms() -> None:
    model, _optimizer = fused_mlp()
    with unchanged(model), pytest.raises(RuntimeError, match=r"torch.func transforms.*use eval\(\)"):
        torch.func.grad(lambda x: model(x).sum())(INPUTS)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with unchanged(model), pytest.raises(RuntimeError, match="does not own its weight"):
        torch.func.functional_call(model, weights, (INPUTS,))
    model.eval()
    torch.vmap(model)(INPUTS)


def test_float16_autocast() -> None:
    model, _optimizer = fused_mlp()
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(RuntimeError, match=r"float16 autocast.*GradScaler.*bfloat16"),
    ):
        model(INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        model(INPUTS)


def test_arguments_of_fuse_into_backward() -> None:
    model = mlp()
    optimizer = optimizer_of(model)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        fuse_into_backward([model], optimizer)
    with pytest.raises(
        TypeError, match=r"must be a flexkern.optim.MetaplasticSGD or MetaplasticAdamW, got SGD"
    ):
        fuse_into_backward(model, torch.optim.SGD(model.parameters(), 0.1))
    for window, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="window must be"):
            fuse_into_backward(model, optimizer, window=window)
        with pytest.raises(error, match="window must be"):
            MetaplasticLinear(2, 2, window=window)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        fuse_into_backward(mlp(), optimizer)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"weight of shape \(2, 3\) is not a parameter of this optimizer"):
        optimizer.step_in_backward(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"silent": 1.5}, r"silent must be a share .* in \[0, 1\], got 1.5"),
        ({"silent": float("nan")}, "silent must be a share"),
        ({"silent": True}, "silent must be a number"),
        ({"silent": torch.zeros(4)}, r"silent as a tensor must be .* each of the 3 units .*\(4,\)"),
        ({"silent": torch.zeros(4, 3, dtype=torch.bool)}, r"silent as a mask must be bool .* = \(3, 4\)"),
        ({"threshold": -1.0}, "threshold must be >= 0"),
        ({"threshold": torch.tensor([1.0, float("nan"), 1.0])}, "threshold must be >= 0"),
        ({"threshold": "low"}, r"threshold must be a number, a tensor \[3\] or a .*AdaptiveThreshold"),
        ({"rule": "oja"}, "rule must be one of"),
        ({"insert": "zero"}, "insert must be one of"),
        ({"eta": -1.0}, "eta must be finite and >= 0"),
        ({"prune": "no"}, "prune must be a number"),
        ({"seed": -1}, "seed must be in"),
        ({"init": torch.zeros(3, 4)}, "init must be a flexkern.Field or None, got Tensor"),
    ],
)
def test_arguments_of_silent_linear(options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SilentLinear(4, 3, **options)
