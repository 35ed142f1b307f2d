"""synapse_step_ and linear_step_: arguments that share memory, lists that are all or nothing, and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern import ops
from helpers.arguments import SHAPE, Arguments, linear_arguments, refuses, synapse_arguments
from helpers.judge import Rule, same_bits
from helpers.judge_layer import Opening, clone, eighths, make_layer, same_state, step_layer

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = r"shares memory with another argument"
OPERATORS = {
    "synapse": (ops.synapse_step_, synapse_arguments),
    "linear": (ops.linear_step_, linear_arguments),
}
Operator = tuple[Callable[..., object], Callable[..., Arguments]]


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return request.param


def storage_of(t: Tensor, elements: int) -> Tensor:
    """``elements`` float32 values of which the first lies where ``t`` begins; ``t`` keeps its values."""
    memory = torch.zeros(max(elements, t.numel()) + 1)
    view = memory.view(t.dtype)[: t.numel()]
    view.copy_(t.flatten())
    t.set_(view.untyped_storage(), 0, t.shape, t.stride())
    return memory[:elements]


# --------------------------------------------------------------------------- shared memory


READ = {
    "synapse": ("grad", "anchor", "flexibility", "pre", "post"),
    "linear": ("x", "grad_out", "post", "anchor", "flexibility"),
}
WRITTEN = ("weight", "momentum_buffer", "silent")


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("name", sorted({n for names in READ.values() for n in names}))
def test_what_is_written_is_not_read(backend: str, operator: Operator, name: str, written: str) -> None:
    call, make = operator
    arguments = make()
    if name not in arguments:
        pytest.skip("not an argument of it")
    like = arguments[name]
    arguments[name] = storage_of(arguments[written], like.numel()).view(like.shape)
    refuses(call, arguments, (ValueError, RuntimeError), SHARED)


@pytest.mark.parametrize(
    "pair", [("weight", "momentum_buffer"), ("weight", "silent"), ("momentum_buffer", "silent")]
)
def test_two_that_are_written_share_no_memory(backend: str, operator: Operator, pair: tuple[str, str]) -> None:
    call, make = operator
    arguments = make()
    other = arguments[pair[1]]
    memory = storage_of(arguments[pair[0]], other.numel())
    arguments[pair[1]] = memory.view(other.dtype).view(other.shape)
    refuses(call, arguments, (ValueError, RuntimeError), SHARED)


def test_the_master_is_written(backend: str, operator: Operator) -> None:
    call, make = operator
    for name in ("anchor", "momentum_buffer", "flexibility"):
        arguments = make(torch.bfloat16)
        arguments[name] = arguments["master"]
        refuses(call, arguments, (ValueError, RuntimeError), SHARED)


@pytest.mark.parametrize("other", ["flexibility", "momentum_buffer", "weight"])
def test_an_anchor_that_is_written(backend: str, operator: Operator, other: str) -> None:
    call, make = operator
    arguments = {**make(), "insert": "hebbian"}
    arguments["anchor"] = arguments[other]
    refuses(call, arguments, (ValueError, RuntimeError), SHARED)
    if other != "flexibility":  # both are written, through copies
        arguments["anchor"] = arguments[other] = arguments[other].t().contiguous().t()
        refuses(call, arguments, (ValueError, RuntimeError), SHARED)


@pytest.mark.parametrize("name", ["anchor", "flexibility"])
def test_reading_one_tensor_twice_is_allowed(backend: str, operator: Operator, name: str) -> None:
    call, make = operator
    arguments, other = make(), make()
    shared = torch.rand(SHAPE)
    for given, second in ((arguments, shared), (other, shared.clone())):
        given["anchor"], given["flexibility"] = shared, second
        call(**given)
    assert same_bits(arguments["weight"], other["weight"])


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_neighbours_in_memory_are_no_overlap(backend: str, layout: str) -> None:
    start = make_layer((8, 12), 1)
    pre, post = eighths((12,), 2), eighths((8,), 3)
    if layout == "rows":
        parts = [[t[:4], t[4:]] for t in start[:6]]
        drives = ([pre, pre], [post[:4], post[4:]])
    else:
        parts = [[t[:, ::2], t[:, 1::2]] for t in start[:6]]
        drives = ([pre[::2], pre[1::2]], [post, post])
    mask = ops.unpack_mask(start.silent, 12)
    masks = [mask[:4], mask[4:]] if layout == "rows" else [mask[:, ::2], mask[:, 1::2]]
    words = [ops.pack_mask(m) for m in masks]
    whole = clone(start)
    step_layer(whole, Rule(), Opening(0.5), pre, post)
    weight, grad, anchor, flexibility, *_ = parts
    ops.synapse_step_(
        weight, grad, anchor, flexibility, words, *drives, threshold=0.5, **Rule()._asdict()
    )  # fmt: skip
    assert same_bits(start.weight, whole.weight)


@pytest.mark.parametrize("name", ["weight", "momentum_buffer", "silent"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_two_layers_of_a_list_share_memory(backend: str, layout: str, name: str) -> None:
    arguments = synapse_arguments(count=3)
    if layout == "transposed":
        matrices = ("weight", "grad", "anchor", "flexibility", "momentum_buffer", "silent")
        for key in matrices:
            arguments[key] = [t.t().contiguous().t() for t in arguments[key]]
    arguments[name][2] = arguments[name][0]
    refuses(ops.synapse_step_, arguments, (ValueError, RuntimeError), SHARED)


def test_one_layers_state_is_what_another_reads(backend: str) -> None:
    for name, read in (("weight", "anchor"), ("momentum_buffer", "grad"), ("weight", "flexibility")):
        for transpose in (False, True) if read == "grad" else (False,):
            arguments = synapse_arguments(count=2)
            if transpose:
                arguments[name][0] = arguments[name][0].t().contiguous().t()
            arguments[read][1] = arguments[name][0]
            refuses(ops.synapse_step_, arguments, (ValueError, RuntimeError), SHARED)


# --------------------------------------------------------------------------- inference tensors


@pytest.mark.parametrize("name", ["weight", "momentum_buffer", "silent", "anchor"])
def test_inference_tensors_are_not_written(backend: str, operator: Operator, name: str) -> None:
    call, make = operator
    arguments = {**make(), "insert": "hebbian"}
    with torch.inference_mode():
        arguments[name] = arguments[name].clone()
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    with pytest.raises(RuntimeError, match=rf"{name}.* inference tensor; pass a .clone\(\)"):
        call(**arguments)
    assert all(same_bits(arguments[k], v) for k, v in before.items())
    with torch.inference_mode():
        call(**arguments)
    assert not same_bits(arguments["weight"], before["weight"])


def test_a_list_with_an_inference_tensor_changes_nothing(backend: str) -> None:
    arguments = synapse_arguments(count=3)
    with torch.inference_mode():
        arguments["weight"][2] = arguments["weight"][2].clone()
    before = {k: [t.clone() for t in v] for k, v in arguments.items() if isinstance(v, list)}
    with pytest.raises(RuntimeError, match="inference tensor"):
        ops.synapse_step_(**arguments)
    for name, values in before.items():
        assert all(same_bits(a, b) for a, b in zip(arguments[name], values, strict=True)), name


# --------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", ["weight", "momentum_buffer", "master", "anchor"])
def test_a_backward_through_an_old_value_raises(
    backend: str, operator: Operator, name: str, layout: str
) -> None:
    call, make = operator
    arguments = {**make(torch.bfloat16), "insert": "hebbian"}
    value = arguments[name] if layout == "contiguous" else arguments[name].t().contiguous().t()
    arguments[name] = value.detach().requires_grad_()
    loss = (arguments[name] * arguments[name]).sum()
    call(**arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("insert", ["init", "hebbian"])
def test_versions(backend: str, operator: Operator, insert: str) -> None:
    call, make = operator
    arguments = {**make(torch.bfloat16), "insert": insert}
    call(**arguments)
    written = {"weight", "momentum_buffer", "master", "silent"} | ({"anchor"} if insert == "hebbian" else set())
    versions = {k: v._version for k, v in make(torch.bfloat16).items() if isinstance(v, Tensor)}
    for key, version in versions.items():
        assert (arguments[key]._version > version) == (key in written), key


def test_parameters_and_their_grads(backend: str) -> None:
    start = make_layer(SHAPE, 1, silent=0.0)
    layer = clone(start)
    parameter = torch.nn.Parameter(start.weight.clone())
    (parameter * start.grad).sum().backward()
    pre, post = eighths((SHAPE[1],), 1), eighths((SHAPE[0],), 2)
    by_grad = clone(start)._replace(weight=parameter, grad=parameter.grad)
    for target in (layer, by_grad):
        done = step_layer(target, Rule(), Opening(0.5, prune=0.2), pre, post)
        assert not done.converted.requires_grad
    assert same_state(layer, by_grad)
    assert parameter.requires_grad
    assert parameter.grad_fn is None


def test_activities_that_carry_a_graph(backend: str) -> None:
    # pre, post, x as they come out of a network
    arguments, other = linear_arguments(), linear_arguments()
    for name in ("x", "grad_out", "post"):
        arguments[name] = arguments[name].requires_grad_() * 1.0
    done, expected = ops.linear_step_(**arguments), ops.linear_step_(**other)
    assert same_bits(arguments["weight"], other["weight"])
    assert torch.equal(done.converted, expected.converted)
    assert not arguments["weight"].requires_grad
