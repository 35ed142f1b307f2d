"""Arguments that share memory, and what autograd learns of an in-place step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import ops
from flexkern.ops.metaplastic import SGD
from helpers import judge
from helpers.arguments import SHAPE, gated, refuses, step_arguments
from helpers.judge import make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = r"shares memory with another argument"


def transposed(t: Tensor) -> Tensor:
    return t.t()


def shifted(t: Tensor) -> Tensor:
    """24 elements of which the last is the first of ``t``."""
    memory = torch.zeros(47)
    memory[23:] = t.flatten()
    t.set_(memory.untyped_storage(), 23, SHAPE, (6, 1))
    return memory[:24].view(SHAPE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["grad", "anchor", "flexibility", "momentum_buffer", "master"])
@pytest.mark.parametrize("overlap", [lambda t: t, shifted], ids=["same", "one element"])
def test_what_is_written_shares_no_memory(
    backend: str, overlap: Callable[[Tensor], Tensor], name: str, dtype: torch.dtype
) -> None:
    arguments = step_arguments(dtype)
    low = dtype is torch.bfloat16
    if name == "master" and not low:
        pytest.skip("a float32 weight has no master")
    # of a low-precision step, the float32 tensor that is written first is the master
    written = "weight" if not low else "momentum_buffer" if name == "master" else "master"
    if low and name == "grad":
        arguments["grad"] = arguments["grad"].float()
    arguments[name] = overlap(arguments[written])
    refuses(ops.metaplastic_sgd_, arguments, (ValueError, RuntimeError), SHARED)
    if name not in ("anchor", "flexibility"):
        refuses(ops.gated_sgd_, gated(arguments), (ValueError, RuntimeError), SHARED)


def test_the_grad_is_the_low_precision_weight(backend: str) -> None:
    arguments = step_arguments(torch.float16)
    arguments["grad"] = arguments["weight"]
    refuses(ops.metaplastic_sgd_, arguments, (ValueError, RuntimeError), SHARED)


@pytest.mark.parametrize("name", ["weight", "momentum_buffer", "master"])
@pytest.mark.parametrize("overlap", [lambda t: t, transposed], ids=["same", "both transposed"])
def test_two_of_a_list_share_memory(backend: str, overlap: Callable[[Tensor], Tensor], name: str) -> None:
    arguments = step_arguments(torch.bfloat16 if name == "master" else torch.float32, count=3)
    if overlap is transposed:
        arguments = {k: [t.t() for t in v] if isinstance(v, list) else v for k, v in arguments.items()}
    arguments[name][2] = arguments[name][0]
    refuses(ops.metaplastic_sgd_, arguments, (ValueError, RuntimeError), SHARED)


def test_reading_one_tensor_twice_is_allowed(backend: str) -> None:
    x, y = make_inputs(SHAPE, 1), make_inputs(SHAPE, 1)
    ops.metaplastic_sgd_(
        [x.weight, x.master],
        [x.grad, x.grad],
        [x.anchor, x.anchor],
        [x.flexibility, x.flexibility],
        lr=0.1,
        scale=20.0,
    )
    ops.metaplastic_sgd_(y.weight, y.grad, y.anchor, y.flexibility, lr=0.1, scale=20.0)
    assert same_bits(x.weight, y.weight)
    assert same_bits(x.master, y.weight)


def test_neighbours_in_memory_are_no_overlap(backend: str) -> None:
    x, y = make_inputs((8, 6), 1), make_inputs((8, 6), 1)
    halves = [[t[:4], t[4:]] for t in x]
    ops.metaplastic_sgd_(*halves[:4], lr=0.1, scale=20.0)
    ops.metaplastic_sgd_(*y[:4], lr=0.1, scale=20.0)
    assert same_bits(x.weight, y.weight)
    columns = [[t[:, ::2], t[:, 1::2]] for t in x]
    ops.metaplastic_sgd_(*columns[:4], lr=0.1, scale=20.0)
    ops.metaplastic_sgd_(*y[:4], lr=0.1, scale=20.0)
    assert same_bits(x.weight, y.weight)


# --------------------------------------------------------------------------- extents inside others


def nested() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, gradients and anchors of which the second weight lies inside the first gradient.

    Between them, in the order in which they begin, lies the second gradient, which ends before the weight
    begins: what is remembered has to be how far any of them reached, not the last.
    """
    memory = torch.arange(100.0)
    weights = [torch.zeros(100), memory[50:60]]
    grads = [memory, memory[10:20]]
    return weights, grads, [torch.zeros(100), torch.zeros(10)]


def test_an_extent_inside_a_larger_one_with_a_third_between(backend: str) -> None:
    weights, grads, anchors = nested()
    arguments = {"weight": weights, "grad": grads, "anchor": anchors, "flexibility": [0.5, 0.5]}
    refuses(ops.metaplastic_sgd_, {**arguments, "lr": 0.1, "scale": 20.0}, (ValueError, RuntimeError), SHARED)
    gate = {"weight": weights, "grad": grads, "alpha": None, "lr": 0.1}
    refuses(ops.gated_sgd_, gate, (ValueError, RuntimeError), SHARED)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_each_operator_itself_refuses_it(name: str) -> None:
    """Also where a check before it has not looked: the compiled operators have a check of their own."""
    if not flexkern.backends()[name].available:
        pytest.skip(flexkern.backends()[name].reason)
    weights, grads, anchors = nested()
    flexibilities = [torch.full((100,), 0.5), torch.full((10,), 0.5)]
    before = [t.clone() for t in (*weights, *grads)]
    with pytest.raises((ValueError, RuntimeError), match=SHARED):
        SGD.on(name)(weights, grads, anchors, flexibilities, 0.1, 20.0)
    assert all(same_bits(t, b) for t, b in zip((*weights, *grads), before, strict=True))
    # and neighbours of the same extents are stepped
    SGD.on(name)([weights[0], torch.zeros(10)], grads, anchors, flexibilities, 0.1, 20.0)
    assert not same_bits(weights[0], before[0])


# --------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", ["weight", "momentum_buffer", "master"])
def test_a_backward_through_an_old_value_raises(backend: str, name: str, layout: str) -> None:
    for call, adapt in ((ops.metaplastic_sgd_, dict), (ops.gated_sgd_, gated)):
        arguments = step_arguments(torch.bfloat16)
        if layout == "transposed":
            arguments = {k: v.t() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        arguments[name] = arguments[name].detach().requires_grad_()
        loss = (arguments[name] * arguments[name]).sum()
        call(**adapt(arguments))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_parameters_and_their_grads(backend: str) -> None:
    x = make_inputs(SHAPE, 1)
    parameter = torch.nn.Parameter(x.weight.clone())
    (parameter * x.grad).sum().backward()
    ops.metaplastic_sgd_(parameter, parameter.grad, x.anchor, x.flexibility, lr=0.1, scale=20.0)
    ops.metaplastic_sgd_(x.weight, x.grad, x.anchor, x.flexibility, lr=0.1, scale=20.0)
    assert same_bits(parameter, x.weight)
    assert parameter.requires_grad
    assert parameter.grad_fn is None
    assert not ops.metaplastic_gate(parameter, x.anchor, x.flexibility, 20.0).requires_grad


def test_what_is_only_read_keeps_its_version(backend: str) -> None:
    arguments = step_arguments()
    read = [arguments[name] for name in ("grad", "anchor", "flexibility")]
    ops.metaplastic_sgd_(**arguments)
    assert [t._version for t in read] == [0, 0, 0]


def test_inference_mode(backend: str) -> None:
    x = make_inputs(SHAPE, 1)
    with torch.inference_mode():
        y = judge.Inputs(*(t.clone() for t in x))
        ops.metaplastic_sgd_(*y[:4], lr=0.1, scale=20.0)
    ops.metaplastic_sgd_(*x[:4], lr=0.1, scale=20.0)
    assert torch.equal(x.weight, y.weight)
