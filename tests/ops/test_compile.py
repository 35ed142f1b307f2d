"""The operators under torch.library.opcheck and torch.compile, and which implementation really runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing._internal.optests import OpCheckError
from torch.utils._python_dispatch import TorchDispatchMode

import flexkern
from flexkern import Field, ops
from flexkern.fields import Kind
from flexkern.ops.field import FILL
from flexkern.ops.mask import PACK, UNPACK
from flexkern.ops.metaplastic import GATE, SGD
from helpers import judge
from helpers.judge import make_inputs, same_bits

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHAPES = [(5, 7), (3,), (0,)]
STORED = [int(Kind.STORED), 0, 0, 0, 0]
UNIFORM, NORMAL = Field.uniform(1, 2).source(), Field.normal(3, 4, offset=5).source()


def gate_arguments(procedural: bool) -> tuple:
    x = make_inputs((5, 7), 1)
    if procedural:
        return x.weight, None, None, 20.0, NORMAL[0] + UNIFORM[0], NORMAL[1] + UNIFORM[1]
    return x.weight, x.anchor, x.flexibility, 0.0, None, None, torch.tensor([20.0])


def sgd_arguments(dtype: torch.dtype, gate: str, momentum: float) -> tuple:
    """Arguments of the dispatcher's entry. ``mixed``: only the first weight's sources are stored."""
    inputs = [make_inputs(shape, i, dtype) for i, shape in enumerate(SHAPES)]
    weight, grad, anchor, flexibility, buffer, master = (list(c) for c in zip(*inputs, strict=True))
    alpha, sources, parameters = [], [], []
    if gate == "held":
        alpha, anchor, flexibility = flexibility, [], []
    if gate == "mixed":
        anchor, flexibility = anchor[:1], flexibility[:1]
        sources = STORED + NORMAL[0] * 2 + STORED + UNIFORM[0] * 2
        parameters = [0.0, 0.0] + NORMAL[1] * 2 + [0.0, 0.0] + UNIFORM[1] * 2
    return (
        weight, grad, anchor, flexibility, 0.1, 20.0, alpha, sources, parameters,
        buffer if momentum else None, None if dtype is torch.float32 else master,
        None if momentum else torch.tensor([0.1]), torch.tensor([20.0]) if momentum else None,
        0.1, momentum, 0.0, bool(momentum), False, True,
    )  # fmt: skip


OPCHECKS = {
    "gate stored": (GATE, lambda: gate_arguments(False)),
    "gate procedural": (GATE, lambda: gate_arguments(True)),
    "sgd stored": (SGD, lambda: sgd_arguments(torch.float32, "stored", 0.9)),
    "sgd mixed": (SGD, lambda: sgd_arguments(torch.bfloat16, "mixed", 0.9)),
    "sgd held": (SGD, lambda: sgd_arguments(torch.float16, "held", 0.0)),
    "fill": (FILL, lambda: (torch.empty(5, 7), *NORMAL)),
    "pack": (PACK, lambda: (torch.rand(5, 33) < 0.5,)),
    "unpack": (UNPACK, lambda: (torch.arange(10, dtype=torch.int32).view(5, 2), 33)),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(backend: str, name: str) -> None:
    operator, arguments = OPCHECKS[name]
    torch.library.opcheck(operator.on(backend), arguments())


def test_opcheck_sees_an_undeclared_mutation() -> None:
    # What the checks above rest on: an operator that writes an input its schema calls read-only does not pass.
    with torch.library._scoped_library("flexkern_test", "DEF") as library:
        library.define("secretly(Tensor x) -> Tensor")
        library.impl("secretly", lambda x: x.add_(1).clone(), "CompositeExplicitAutograd")
        torch.library.register_fake("flexkern_test::secretly", torch.empty_like, lib=library)
        with pytest.raises(OpCheckError):
            torch.library.opcheck(torch.ops.flexkern_test.secretly.default, (torch.ones(3),))


# --------------------------------------------------------------------------- torch.compile


def every_operator(x: judge.Inputs, low: judge.Inputs, lr: Tensor, mask: Tensor) -> list[Tensor]:
    """Every public operator, stored and procedural, with numbers and tensors; changes x, low in place."""
    anchor, flexibility = Field.normal(3, 4), Field.uniform(1, 2)
    alpha = ops.metaplastic_gate(x.weight, x.anchor, x.flexibility, 20.0)
    other = ops.metaplastic_gate(x.weight, anchor, 0.5, 20.0)
    ops.metaplastic_sgd_(
        [x.weight, x.master], [x.grad, x.grad * 2], [x.anchor, anchor], [x.flexibility, flexibility],
        lr=lr, scale=20.0, momentum=0.9, momentum_buffer=[x.buffer, x.anchor * 0.5], nesterov=True,
    )  # fmt: skip
    ops.metaplastic_sgd_(low.weight, low.grad, anchor, 0.5, lr=0.1, scale=20.0, master=low.master)
    ops.gated_sgd_(x.weight, x.grad, alpha, lr=0.1, weight_decay=0.1)
    ops.gated_sgd_(low.weight, low.grad, None, lr=lr, master=low.master, nonfinite="propagate")
    ops.gated_sgd_(x.anchor.t(), x.grad.t(), None, lr=lr)  # through a dense copy
    words = ops.pack_mask(mask)
    return [
        alpha,
        other + x.weight,  # the value after the steps
        ops.flexibility_field((5, 7), seed=3),
        ops.materialize(anchor, (35,)),
        words,
        ops.unpack_mask(words, mask.shape[1]),
    ]


def compiled_equals_eager(function: Callable[..., list[Tensor]], compiler: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    lr, mask = torch.tensor(0.1), torch.eye(5, 40) > 0
    for seed in (1, 2):
        arguments = [
            (make_inputs((5, 7), seed), make_inputs((33,), seed, torch.bfloat16), lr, mask) for _ in range(2)
        ]
        results = [f(*a) for f, a in zip((function, compiled), arguments, strict=True)]
        for got, expected in zip(results[1], results[0], strict=True):
            assert same_bits(got, expected) if got.dtype is not torch.bool else torch.equal(got, expected)
        for eager, other in zip(*[[*a[0], *a[1]] for a in arguments], strict=True):
            assert same_bits(other, eager)
        assert not same_bits(arguments[1][0].weight, make_inputs((5, 7), seed).weight)


def test_compile_fullgraph(backend: str) -> None:
    compiled_equals_eager(every_operator, "aot_eager")


@pytest.mark.slow
def test_compile_fullgraph_with_inductor(backend: str) -> None:
    compiled_equals_eager(every_operator, "inductor")


def test_a_schedule_of_tensors_compiles_once(backend: str) -> None:
    torch._dynamo.reset()
    x, y = make_inputs((5, 7), 1), make_inputs((5, 7), 1)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(weight: Tensor, lr: Tensor) -> None:
        ops.metaplastic_sgd_(weight, x.grad, x.anchor, x.flexibility, lr=lr, scale=20.0)

    for i in range(5):
        step(x.weight, torch.tensor(0.1 / (i + 1)))
        ops.metaplastic_sgd_(y.weight, y.grad, y.anchor, y.flexibility, lr=0.1 / (i + 1), scale=20.0)
    assert same_bits(x.weight, y.weight)
    assert counter.frame_count == 1


def test_a_schedule_of_numbers(backend: str) -> None:
    # From its second value on torch traces a number as a symbol.
    torch._dynamo.reset()
    x, y = make_inputs((5, 7), 1), make_inputs((5, 7), 1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight: Tensor, lr: float, scale: float) -> None:
        ops.metaplastic_sgd_(weight, x.grad, x.anchor, x.flexibility, lr=lr, scale=scale)

    for lr, scale in ((0.1, 20.0), (0.05, 20.0), (0.05, 30.0)):
        step(x.weight, lr, scale)
        ops.metaplastic_sgd_(y.weight, y.grad, y.anchor, y.flexibility, lr=lr, scale=scale)
    assert same_bits(x.weight, y.weight)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_shapes_that_change(backend: str, layout: str) -> None:
    # From the second shape on torch traces sizes and strides as symbols.
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(weight: Tensor, grad: Tensor, anchor: Tensor, flexibility: Tensor) -> list[Tensor]:
        ops.metaplastic_sgd_(weight, grad, anchor, flexibility, lr=0.1, scale=20.0)
        field = ops.materialize(Field.normal(3), weight.shape)
        mask = ops.unpack_mask(ops.pack_mask(weight > 0), weight.shape[1])
        return [field, mask.float(), ops.metaplastic_gate(weight, Field.normal(3), flexibility, 2.0)]

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for rows in (5, 8, 13, 40):
        x, y = make_inputs((rows, 3), 1), make_inputs((rows, 3), 1)
        x, y = ([t.t() for t in i[:4]] if layout == "transposed" else i[:4] for i in (x, y))
        for got, expected in zip([*compiled(*x), *x], [*step(*y), *y], strict=True):
            assert same_bits(got, expected)
    if layout == "contiguous":
        assert counter.frame_count == 2


def test_fake_tensors(backend: str) -> None:
    with torch._subclasses.FakeTensorMode():
        w = torch.empty(5, 7)
        alpha = ops.metaplastic_gate(w.t(), torch.empty(5, 7).t(), 0.5, 1.0)
        assert alpha.shape == (7, 5)
        assert alpha.is_contiguous()
        ops.metaplastic_sgd_(w, torch.empty(5, 7), torch.empty(5, 7), Field.uniform(0), lr=0.1, scale=1.0)
        assert ops.pack_mask(torch.empty(3, 33, dtype=torch.bool)).shape == (3, 2)
        assert ops.unpack_mask(torch.empty(3, 2, dtype=torch.int32), 33).shape == (3, 33)


# --------------------------------------------------------------------------- which implementation runs


class Recorder(TorchDispatchMode):
    """Names of the operators of flexkern that the dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func.namespace == "flexkern":
            self.names.add(func.name().removesuffix(".one"))
        return func(*args, **(kwargs or {}))


NATIVE = {
    f"flexkern::{n}"
    for n in ("metaplastic_sgd_", "metaplastic_gate", "fill_field_", "pack_mask", "unpack_mask")
}
PLAIN = {f"{n}reference_" if n.endswith("_") else f"{n}_reference" for n in NATIVE}


def recorded(dtype: torch.dtype = torch.float32) -> set[str]:
    x = make_inputs((5, 7), 1, dtype)
    with Recorder() as recorder:
        ops.metaplastic_gate(x.master, x.anchor, x.flexibility, 20.0)
        ops.metaplastic_sgd_(x.weight, x.grad, x.anchor, x.flexibility, lr=0.1, scale=20.0, master=x.master)
        ops.gated_sgd_(x.weight, x.grad, None, lr=0.1, master=x.master)
        ops.flexibility_field((3,), seed=0)
        ops.unpack_mask(ops.pack_mask(torch.ones(3, 3, dtype=torch.bool)), 3)
    return recorder.names


@pytest.fixture
def automatic() -> Iterator[None]:
    with flexkern.use_backend("auto"):
        yield


@pytest.mark.usefixtures("automatic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_auto_takes_the_compiled_library(dtype: torch.dtype) -> None:
    status = flexkern.backends()["cpu"]
    if not status.available:
        pytest.skip(status.reason)
    assert recorded(dtype) == NATIVE
    # and these entries are kernels of the library, not Python
    for name in NATIVE:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd")


@pytest.mark.usefixtures("automatic")
def test_auto_takes_the_reference_for_float64() -> None:
    fields_and_masks = {
        n for n in (NATIVE if flexkern.backends()["cpu"].available else PLAIN) if "metaplastic" not in n
    }
    assert recorded(torch.float64) == fields_and_masks | {n for n in PLAIN if "metaplastic" in n}


def test_a_chosen_backend_is_the_one_that_runs(backend: str) -> None:
    assert recorded() == {"reference": PLAIN, "cpu": NATIVE}[backend]
