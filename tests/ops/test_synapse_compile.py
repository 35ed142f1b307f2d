"""synapse_step_ and linear_step_ under torch.library.opcheck and torch.compile, and which code really runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import flexkern
from flexkern import Field, ops
from flexkern.fields import Kind
from flexkern.ops.linear import LINEAR
from flexkern.ops.synapse import SYNAPSE
from helpers.arguments import Arguments, linear_arguments, synapse_arguments
from helpers.judge import same_bits
from helpers.judge_layer import Layer, eighths, make_batch, make_layer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHAPE = (5, 37)
STORED = [int(Kind.STORED), 0, 0, 0, 0]
UNIFORM, NORMAL = Field.uniform(1, 2).source(), Field.normal(3, 4, offset=5).source()


def test_arguments_have_the_names_and_the_order_of_the_schemas() -> None:
    for operator, own in ((SYNAPSE, ["weight", "grad"]), (LINEAR, ["weight", "x", "grad_out"])):
        for backend in ("cpu", "reference", "triton"):
            names = [argument.name for argument in operator.on(backend)._schema.arguments]
            shared = [a.name for a in operator.spec.arguments][len(own) :]
            assert names == [*own, *shared]
            assert shared[:3] == ["anchor", "flexibility", "silent"]


def entry(
    dtype: torch.dtype = torch.float32,
    gate: str = "stored",
    *,
    linear: bool = False,
    activities: str = "rate",
    hebbian: bool = False,
    momentum: float = 0.9,
    threshold: Tensor | None = None,
) -> tuple:
    """Arguments of the dispatcher's entry."""
    layer, batch = make_layer(SHAPE, 1, dtype), make_batch(8, SHAPE, 2, dtype, exact=False)
    layer.grad.nan_to_num_(0.5)  # opcheck compares with a tolerance, where NaN is not NaN
    anchor, flexibility, alpha = layer.anchor, layer.flexibility, None
    sources = parameters = None
    if gate == "held":
        flexibility, alpha = None, torch.rand(SHAPE)
        sources, parameters = [*STORED, int(Kind.CONSTANT), 0, 0, 0, 0], [0.0, 0.0, 1.0, 0.0]
    if gate == "procedural":
        anchor, flexibility = None, None
        sources, parameters = NORMAL[0] + UNIFORM[0], NORMAL[1] + UNIFORM[1]
    by_rule = {
        "rate": [eighths((37,), 1), eighths((5,), 2)],
        "hebbian": [batch.post] if linear else [torch.rand(SHAPE)],
        "none": None,
    }
    return (
        layer.weight, *((batch.x, batch.grad_out) if linear else (layer.grad,)),
        anchor, flexibility, None if activities == "none" else layer.silent, by_rule[activities],
        0.3, 0.1, 20.0, alpha,
        sources, parameters, layer.buffer if momentum else None,
        None if dtype is torch.float32 else layer.master, threshold,
        None if momentum else torch.tensor([0.1]), torch.tensor([20.0]) if momentum else None, hebbian, 0.5,
        0.1, 0.1, momentum, 0.0, bool(momentum), False, True,
    )  # fmt: skip


BF16, THETA = torch.bfloat16, torch.full((5,), 0.25)
OPCHECKS = {
    "synapse": (SYNAPSE, lambda: entry()),
    "synapse bf16, hebbian": (
        SYNAPSE,
        lambda: entry(BF16, hebbian=True, activities="hebbian", threshold=THETA),
    ),
    "synapse held": (SYNAPSE, lambda: entry(gate="held", momentum=0.0)),
    "synapse procedural": (SYNAPSE, lambda: entry(gate="procedural", threshold=THETA[:1])),
    "linear": (LINEAR, lambda: entry(linear=True, activities="none")),
    "linear rate": (LINEAR, lambda: entry(linear=True, gate="procedural")),
    "linear bf16, hebbian": (LINEAR, lambda: entry(BF16, linear=True, activities="hebbian", hebbian=True)),
    "linear held": (LINEAR, lambda: entry(linear=True, gate="held", activities="hebbian", momentum=0.0)),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(backend: str, name: str) -> None:
    operator, arguments = OPCHECKS[name]
    torch.library.opcheck(operator.on(backend), arguments())


# --------------------------------------------------------------------------- torch.compile


def every_way(a: Layer, b: Layer, low: Layer, lr: Tensor, theta: Tensor) -> list[Tensor]:
    """Both operators in most of their ways; changes the layers in place."""
    rows, columns = a.weight.shape
    pre, post = torch.arange(columns) / 32, torch.arange(rows) / 4
    batch = (a.grad[:3] * 0.5, a.grad[:3, :rows] * 2, a.grad[:3, -rows:] * 4)
    anchor, flexibility = Field.normal(3, 4), Field.uniform(1, 2)
    lists = ops.synapse_step_(
        [a.weight, b.weight], [b.grad, a.grad], [a.anchor, anchor], [a.flexibility, flexibility],
        [a.silent, b.silent], [pre, pre], [post, post], threshold=[theta, 0.5], lr=lr, scale=20.0, momentum=0.9,
        momentum_buffer=[a.buffer, b.buffer], nesterov=True,
    )  # fmt: skip
    one = ops.synapse_step_(
        low.weight, low.grad, low.anchor, 0.5, low.silent, coincidence=b.grad.abs(), threshold=0.5, lr=0.1,
        scale=torch.tensor(20.0), insert="hebbian", eta=0.5, prune=0.1, master=low.master,
    )  # fmt: skip
    fused = ops.linear_step_(
        a.weight, *batch[:2], a.anchor, None, a.silent, batch[2], alpha=a.flexibility, lr=lr, threshold=theta
    )
    rate = ops.linear_step_(
        b.weight.t(), batch[1], batch[0], b.anchor.t(), 0.5, lr=0.1, scale=2.0, nonfinite="propagate"
    )
    also = ops.linear_step_(
        low.weight, *batch[:2], anchor, flexibility, low.silent, batch[2], rule="rate", threshold=0.1, lr=0.1,
        scale=2.0, master=low.master,
    )  # fmt: skip
    return [*lists[0], *lists[1], *one, *fused, *rate, *also, a.weight + 1]  # the value after the steps


def layers(seed: int, shape: tuple[int, int] = SHAPE) -> tuple[Layer, Layer, Layer]:
    made = make_layer(shape, seed), make_layer(shape, seed + 1), make_layer(shape, seed + 2, torch.bfloat16)
    for layer in made:
        layer.grad.nan_to_num_(0.5)
    return made


def compiled_equals_eager(compiler: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(every_way, fullgraph=True, backend=compiler)
    lr, theta = torch.tensor(0.1), torch.linspace(0, 1, 5)
    for seed in (1, 2):
        arguments = [layers(seed) for _ in range(2)]
        results = [f(*x, lr, theta) for f, x in zip((every_way, compiled), arguments, strict=True)]
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
        for eager, other in zip(*arguments, strict=True):
            assert all(same_bits(a, b) for a, b in zip(eager, other, strict=True))
        assert sum(int(r.sum()) for r in results[1][:-1]) > 100


def test_compile_fullgraph(backend: str) -> None:
    compiled_equals_eager("aot_eager")


@pytest.mark.slow
def test_compile_fullgraph_with_inductor(backend: str) -> None:
    compiled_equals_eager("inductor")


def test_schedules_of_tensors_compile_once(backend: str) -> None:
    torch._dynamo.reset()
    x, y = make_layer(SHAPE, 1), make_layer(SHAPE, 1)
    counter = CompileCounterWithBackend("aot_eager")
    pre, post = eighths((37,), 1), eighths((5,), 2)

    def step(layer: Layer, lr: Tensor, theta: Tensor) -> Tensor:
        rest = (layer.grad, layer.anchor, layer.flexibility, layer.silent, pre, post)
        return ops.synapse_step_(layer.weight, *rest, threshold=theta, lr=lr, scale=20.0).converted

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for i in range(5):
        numbers = torch.tensor(0.1 / (i + 1)), torch.full((5,), 1.0 - 0.2 * i)
        assert torch.equal(compiled(x, *numbers), step(y, *numbers))
    assert same_bits(x.weight, y.weight)
    assert same_bits(x.silent, y.silent)
    assert counter.frame_count == 1


def both_steps(layer: Layer, x: Tensor, grad_out: Tensor, post: Tensor, theta: float, lr: float) -> Tensor:
    state = (layer.anchor, layer.flexibility, layer.silent)
    numbers = {"threshold": theta, "lr": lr, "scale": 20.0}
    first = ops.linear_step_(layer.weight, x, grad_out, *state, post, **numbers)
    pre, post = x.mean(0).clamp(min=0), post.mean(0).clamp(min=0)
    second = ops.synapse_step_(layer.weight, layer.weight * 0.1, *state, pre, post, **numbers)
    return first.converted + second.converted


@pytest.mark.parametrize("change", ["sizes", "numbers"])
def test_sizes_and_numbers_that_change(backend: str, change: str) -> None:
    # From the second shape on torch traces sizes as symbols; a number is traced anew (a tensor is not).
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both_steps, fullgraph=True, backend=counter)
    for i in range(3):
        rows = 5 + 3 * i if change == "sizes" else 5
        theta, lr = (0.25, 0.125) if change == "sizes" else (0.5 / (i + 1), 0.1 / (i + 1))
        x, y = make_layer((rows, 40), 1), make_layer((rows, 40), 1)
        batch = make_batch(rows + 1, (rows, 40), 2, exact=True)
        assert torch.equal(compiled(x, *batch, theta, lr), both_steps(y, *batch, theta, lr))
        assert same_bits(x.weight, y.weight)
        assert same_bits(x.silent, y.silent)
    if change == "sizes":
        assert counter.frame_count == 2


def test_fake_tensors(backend: str) -> None:
    with torch._subclasses.FakeTensorMode():
        w, words = torch.empty(5, 40), torch.empty(5, 2, dtype=torch.int32)
        done = ops.synapse_step_(
            w,
            w * 2,
            Field.normal(0),
            0.5,
            words,
            torch.empty(40),
            torch.empty(5),
            threshold=0.5,
            lr=0.1,
            scale=1.0,
        )
        assert [(t.dtype, tuple(t.shape)) for t in done] == [(torch.int32, (5,))] * 2
        done = ops.linear_step_(w, torch.empty(3, 40), torch.empty(3, 5), w * 2, 0.5, lr=0.1, scale=1.0)
        assert [(t.dtype, tuple(t.shape)) for t in done] == [(torch.int32, (5,))] * 2


# --------------------------------------------------------------------------- inside a graph


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_operands_that_want_gradients_stay_out_of_the_graph(dtype: torch.dtype) -> None:
    """The compiled operator itself, in grad mode: autograd hears nothing of the products that it is made of.

    As where x is the output of the layer before: bfloat16 operands that are widened in grad mode would each
    make a node of a graph that nobody wants.
    """
    status = flexkern.backends()["cpu"]
    if not status.available:
        pytest.skip(status.reason)
    operator, (weight, batch, post) = LINEAR.on("cpu"), (0, (1, 2), 6)
    for wanted in ((weight,), batch, (weight, *batch)):
        plain, given = (list(entry(dtype, linear=True, activities="hebbian", hebbian=True)) for _ in range(2))
        for i in wanted:
            given[i].requires_grad_()
        if batch[0] in wanted:
            given[post][0].requires_grad_()
            given[1] = given[1] * 1.0  # not a leaf
        with torch.no_grad():
            expected = operator(*plain)
        probe = torch.ones(1, requires_grad=True)
        with torch.enable_grad():
            first = (probe * 1.0).grad_fn._sequence_nr()  # nodes of graphs are numbered as they are made
            counts = operator(*given)
            assert (probe * 1.0).grad_fn._sequence_nr() == first + 1
        assert torch.equal(counts, expected)
        assert same_bits(given[weight].detach(), plain[weight])
        assert not counts.requires_grad
        assert given[weight].grad_fn is None
        assert all(given[i].grad is None for i in wanted if given[i].is_leaf)
        assert torch.is_grad_enabled()  # as it was before


# --------------------------------------------------------------------------- which implementation runs


class Recorder(TorchDispatchMode):
    """Names of the operators of flexkern that the dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func.namespace == "flexkern":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def recorded(*arguments: Arguments) -> list[str]:
    with Recorder() as recorder:
        ops.synapse_step_(**arguments[0])
        ops.linear_step_(**arguments[1])
    return recorder.names


NATIVE = ["flexkern::synapse_step_", "flexkern::linear_step_"]
PLAIN = ["flexkern::synapse_step_reference_", "flexkern::linear_step_reference_"]


def test_a_chosen_backend_is_the_one_that_runs(backend: str) -> None:
    expected = {"reference": PLAIN, "cpu": NATIVE}[backend]
    assert recorded(synapse_arguments(), linear_arguments()) == expected
    if backend == "cpu":
        for name in NATIVE:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_auto_takes_the_compiled_library_where_it_serves(dtype: torch.dtype) -> None:
    serves = flexkern.backends()["cpu"].available and dtype is not torch.float64
    with flexkern.use_backend("auto"):
        assert recorded(synapse_arguments(dtype), linear_arguments(dtype)) == (NATIVE if serves else PLAIN)
