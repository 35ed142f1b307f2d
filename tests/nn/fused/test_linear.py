"""MetaplasticLinear: a drop-in for nn.Linear, and what its fused backward does and leaves alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from flexkern.nn import MetaplasticLinear
from flexkern.optim import fuse_into_backward
from helpers.nets import BATCH, SIZES, batches, mlp, optimizer_of, plain, silent, train


def test_leading_dimensions_are_a_batch() -> None:
    torch.manual_seed(0)
    flat, deep = MetaplasticLinear(6, 4), MetaplasticLinear(6, 4)
    deep.load_state_dict(flat.state_dict())
    x = torch.randn(2, 3, 5, 6)
    grads = []
    for layer, inputs in ((flat, x.reshape(30, 6)), (deep, x)):
        optimizer = optimizer_of(layer)
        assert fuse_into_backward(layer, optimizer) == [""]
        inputs = inputs.clone().requires_grad_()
        layer(inputs).square().sum().backward()
        optimizer.step()
        grads.append(inputs.grad.reshape(30, 6))
    assert torch.equal(flat.weight, deep.weight)
    assert torch.equal(flat.bias, deep.bias)
    assert torch.equal(*grads)
    layer = MetaplasticLinear(6, 4)
    optimizer = optimizer_of(layer)
    fuse_into_backward(layer, optimizer)
    before = layer.weight.detach().clone()
    layer(torch.ones(6)).sum().backward()  # a single sample
    assert not torch.equal(layer.weight, before)


def test_gradients_of_inputs_come_from_the_weights_before_the_step() -> None:
    fused, unfused = mlp(), mlp()
    optimizer = optimizer_of(fused, 10.0)
    fuse_into_backward(fused, optimizer)
    ((x, y),) = batches(1)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, leaf in zip((fused, unfused), inputs, strict=True):
        nn.functional.cross_entropy(model(leaf), y).backward()
    # Each way sums 5 and then 17 products, in any order; what comes from the loss is at most 1 / BATCH each.
    first, second = (unfused[i].weight.detach().abs() for i in (0, 2))
    size = torch.ones(5) / BATCH @ second @ first
    assert ((inputs[0].grad - inputs[1].grad).abs() <= 2 * (5 + 17) * 2.0**-24 * size).all()
    # BATCH terms, whose sum of sizes is at most 1.
    assert ((fused[2].bias.grad - unfused[2].bias.grad).abs() <= 2 * BATCH * 2.0**-24).all()
    assert not torch.equal(fused[0].weight, unfused[0].weight)


def test_the_gradient_of_a_bias_under_autocast() -> None:
    """It is the sum over the batch in the bias's float32, not rounded to the bfloat16 of what it sums."""
    layer = MetaplasticLinear(6, 4)
    optimizer = optimizer_of(layer)
    fuse_into_backward(layer, optimizer)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(33, 4, generator=generator).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(33, 6, generator=generator))
    y.backward(grad)
    assert layer.bias.grad.dtype is torch.float32
    expected = grad.double().sum(0)
    assert ((layer.bias.grad - expected).abs() <= 33 * 2.0**-24 * grad.double().abs().sum(0)).all()
    assert (layer.bias.grad != layer.bias.grad.to(torch.bfloat16).float()).any()


class Shapes(TorchDispatchMode):
    """Collects the shapes of the floating tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.seen.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_is_never_formed(fused: bool, backend: str) -> None:
    model = mlp()
    optimizer = optimizer_of(model, momentum=0.5, gate="step")
    if fused:
        fuse_into_backward(model, optimizer)
    train(model, optimizer, batches(2))  # state that is taken at the first step has the weights' shape too
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(torch.ones(3, SIZES[0])), torch.zeros(3, dtype=torch.long))
    with Shapes() as shapes:
        loss.backward()
    assert (3, SIZES[1]) in shapes.seen
    if backend == "cpu":  # the reference makes the gradient inside the operator
        formed = {tuple(model[0].weight.shape), tuple(model[2].weight.shape)} & shapes.seen
        assert bool(formed) is not fused


def test_what_stands_in_grad() -> None:
    model = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    ((x, y),) = batches(1)
    nn.functional.cross_entropy(model(x), y).backward()
    grad = model[0].weight.grad
    assert grad.shape == (SIZES[1], SIZES[0])
    assert "stepped in backward" in repr(grad)
    assert grad.dtype is torch.float32
    assert type(model[0].bias.grad) is Tensor
    optimizer.zero_grad()
    assert model[0].weight.grad is None


def test_a_model_can_be_moved_after_its_step() -> None:
    model = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    train(model, optimizer, batches(1))
    weight = model[0].weight.detach().clone()
    model.to(torch.bfloat16)
    assert torch.equal(model[0].weight, weight.to(torch.bfloat16))
    assert model[0].weight.grad.dtype is torch.bfloat16
    assert "stepped in backward" in repr(model[0].weight.grad)
    with pytest.raises(RuntimeError, match="does not exist"):
        model[0].weight.grad.norm()
    model.to(torch.float32)
    train(model, optimizer, batches(1))


@pytest.mark.parametrize("fused", [True, False])
def test_checkpointing_and_compiling(fused: bool) -> None:
    """Activations that are computed again, and a compiled model, whose fused layers run between its parts."""
    runs: list[Callable[[nn.Module], Callable[[Tensor], Tensor]]] = [
        lambda model: model,
        lambda model: functools.partial(checkpoint, model, use_reentrant=False),
        lambda model: torch.compile(model, backend="eager"),
    ]
    models = []
    for run in runs:
        model = mlp(silent(silent=0.5, threshold=0.1))
        optimizer = optimizer_of(model)
        if fused:
            fuse_into_backward(model, optimizer)
        forward = run(model)
        for x, y in batches(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(x), y).backward()
            optimizer.step()
        models.append(model)
    assert models[0][0].changes.sum() > 0
    for other in models[1:]:
        assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), other.parameters(), strict=True))
        assert torch.equal(models[0][0].silent, other[0].silent)


def test_it_is_a_plain_layer_when_not_training() -> None:
    model = mlp()
    reference = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    ((x, _),) = batches(1)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))
    model.eval()
    model(x).sum().backward()
    reference(x).sum().backward()
    assert torch.equal(model[0].weight.grad, reference[0].weight.grad)
    model.train()
    optimizer.zero_grad()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    model(x).sum().backward()
    assert torch.equal(model[0].weight, before)
    # A layer that goes back to gradients.
    model[2].fused_step = False
    optimizer.zero_grad()
    model(x).sum().backward()
    assert type(model[2].weight.grad) is Tensor


def test_only_a_backward_that_wants_the_weight_steps_it() -> None:
    model = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    ((x, y),) = batches(1)
    x.requires_grad_()
    start = copy.deepcopy(model.state_dict())
    out = model(x)
    out.sum().backward(inputs=[x])  # as one does for adversarial examples
    torch.autograd.grad(model(x).sum(), [x])
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    nn.functional.cross_entropy(model(x), y).backward()  # `out` is still there: it has had its backward pass
    assert not torch.equal(model[0].weight, start["0.weight"])


def test_nonfinite_gradients() -> None:
    ((x, y),) = batches(1)
    for nonfinite in ("skip", "raise", "propagate"):
        model = mlp()
        optimizer = optimizer_of(model, nonfinite=nonfinite)
        fuse_into_backward(model, optimizer)
        start = model[2].weight.detach().clone()
        loss = nn.functional.cross_entropy(model(x), y) * float("nan")
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match=r"grad_out.*nothing was changed"):
                loss.backward()
        else:
            loss.backward()
        assert bool(model[2].weight.isnan().all()) == (nonfinite == "propagate")
        if nonfinite != "propagate":
            assert torch.equal(model[2].weight, start)


def test_plain_layers_are_as_they_were() -> None:
    torch.manual_seed(0)
    ours = MetaplasticLinear(7, 5)
    torch.manual_seed(0)
    theirs = nn.Linear(7, 5)
    x = torch.randn(3, 7)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.bias.grad, theirs.bias.grad)
    assert plain(7, 5, 0)(x).shape == ours(x).shape
