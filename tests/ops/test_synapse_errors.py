"""Arguments of synapse_step_ and linear_step_ that do not fit: exception, name, and nothing changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern import BackendError, Field, backends, ops, use_backend
from helpers.arguments import SHAPE, Arguments, linear_arguments, refuses, synapse_arguments

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def words(dtype: torch.dtype = torch.int32, shape: tuple[int, ...] = (4, 1)) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


Wrong = tuple[str, object, type[Exception], str]
# Argument, what is passed for it, exception, message. Each wrong by exactly one thing.
STATE: list[Wrong] = [
    ("weight", [[1.0]], TypeError, r"weight must be a torch.Tensor, got list"),
    ("weight", tensor(torch.int32), TypeError, r"weight must be torch.float32 or .*, got torch.int32"),
    ("weight", tensor().to_sparse(), TypeError, r"weight must be a dense tensor, got layout torch.sparse_coo"),
    ("weight", tensor(shape=(1, 6)).expand(4, 6), ValueError, r"weight is written but its elements overlap"),
    ("anchor", None, TypeError, r"anchor must be a tensor or a flexkern.Field, got NoneType"),
    ("anchor", 0.5, TypeError, r"anchor must be a tensor or a flexkern.Field, got float"),
    ("anchor", tensor(torch.bfloat16), TypeError, r"anchor must be torch.float32, got torch.bfloat16"),
    ("anchor", tensor(shape=(4, 5)), ValueError, r"anchor must have the shape of weight"),
    ("anchor", tensor().to("meta"), ValueError, r"anchor must be on the device of weight"),
    ("anchor", tensor().to_sparse(), TypeError, r"anchor must be a dense tensor"),
    ("flexibility", "uniform", TypeError, r"flexibility must be .*, got str"),
    ("flexibility", 1.1, ValueError, r"flexibility must be in \[0, 1\], got 1.1"),
    ("flexibility", Field.normal(0), ValueError, r"flexibility must be in \[0, 1\]"),
    ("flexibility", tensor(torch.float16), TypeError, r"flexibility must be torch.float32, got torch.float16"),
    ("flexibility", tensor(shape=(1,)), ValueError, r"flexibility must have the shape"),
    ("flexibility", None, TypeError, r"flexibility and scale are needed where no alpha is given"),
    ("scale", None, TypeError, r"flexibility and scale are needed where no alpha is given"),
    ("scale", 0.0, ValueError, r"scale must be finite and > 0, got 0.0"),
    ("scale", torch.ones(2), ValueError, r"scale as a tensor must be one float32 element"),
    ("alpha", 1.0, TypeError, r"alpha must be a torch.Tensor, got float"),
    ("alpha", tensor(torch.bfloat16), TypeError, r"alpha must be torch.float32, got torch.bfloat16"),
    ("alpha", tensor(shape=(6, 4)), ValueError, r"alpha must have the shape of weight"),
    ("alpha", tensor().to("meta"), ValueError, r"alpha must be on the device of weight"),
    ("lr", -0.1, ValueError, r"lr must be finite and >= 0, got -0.1"),
    ("lr", "0.1", TypeError, r"lr must be a number or a one-element tensor, got str"),
    ("lr", torch.tensor([0.1, 0.2]), ValueError, r"lr as a tensor must be one float32 element.*\(2,\)"),
    ("weight_decay", -0.1, ValueError, r"weight_decay must be .*, got -0.1"),
    ("momentum", math.nan, ValueError, r"momentum must be .*, got nan"),
    ("dampening", math.inf, ValueError, r"dampening must be .*, got inf"),
    ("momentum_buffer", None, ValueError, r"momentum_buffer is needed: momentum is not 0"),
    ("momentum_buffer", tensor(torch.float64), TypeError, r"momentum_buffer must be torch.float32, got"),
    ("momentum_buffer", tensor(shape=(6, 4)), ValueError, r"momentum_buffer must have the shape"),
    ("momentum_buffer", tensor(shape=()).expand(SHAPE), ValueError, r"momentum_buffer is written but its"),
    ("nonfinite", "ignore", ValueError, r"nonfinite must be one of .*, got 'ignore'"),
]
SILENT: list[Wrong] = [
    ("silent", 5, TypeError, r"silent must be int32 \(4, 1\) from flexkern.ops.pack_mask, got int"),
    ("silent", words(torch.int64), TypeError, r"silent must be int32 .*, got torch.int64"),
    (
        "silent",
        torch.zeros(SHAPE, dtype=torch.bool),
        TypeError,
        r"silent must be int32 .*, got torch.bool",
    ),
    ("silent", words(shape=(4,)), TypeError, r"silent must be int32 \(4, 1\) .*\(4,\)"),
    ("silent", words(shape=(4, 2)), TypeError, r"silent must be int32 \(4, 1\) .*\(4, 2\)"),
    ("silent", words(shape=(1, 4)), TypeError, r"silent must be int32 \(4, 1\) .*\(1, 4\)"),
    ("silent", words(shape=(1, 1)).expand(4, 1), ValueError, r"silent is written but its elements overlap"),
    ("silent", words().to("meta"), ValueError, r"silent must be on the device of weight, cpu, got meta"),
    ("silent", words().to_sparse(), TypeError, r"silent must be .*sparse_coo"),
    ("threshold", -0.5, ValueError, r"threshold must be finite and >= 0, got -0.5"),
    ("threshold", math.nan, ValueError, r"threshold must be finite"),
    ("threshold", math.inf, ValueError, r"threshold must be finite"),
    ("threshold", None, TypeError, r"threshold must be a number or a one-element tensor, got NoneType"),
    ("threshold", True, TypeError, r"threshold must be a number or a one-element tensor, got bool"),
    ("threshold", "high", TypeError, r"threshold must be a number"),
    ("threshold", tensor(shape=(6,)), ValueError, r"threshold as a tensor must be .* each of the 4 .*\(6,\)"),
    ("threshold", tensor(shape=(4, 1)), ValueError, r"threshold as a tensor must be .*\(4, 1\)"),
    ("threshold", tensor(), ValueError, r"threshold as a tensor must be .*\(4, 6\)"),
    ("threshold", tensor(shape=(0,)), ValueError, r"threshold as a tensor must be .*\(0,\)"),
    (
        "threshold",
        tensor(torch.float64, (4,)),
        ValueError,
        r"threshold as a tensor must be .*got torch.float64",
    ),
    (
        "threshold",
        tensor(torch.bfloat16, ()),
        ValueError,
        r"threshold as a tensor must be .*got torch.bfloat16",
    ),
    ("threshold", tensor(shape=(4,)).to("meta"), ValueError, r"threshold must be on cpu, got meta"),
    ("insert", "random", ValueError, r"insert must be one of \('init', 'hebbian'\), got 'random'"),
    ("insert", None, ValueError, r"insert must be one of .*, got None"),
    ("eta", -1.0, ValueError, r"eta must be >= 0 .*, got -1.0"),
    ("eta", math.nan, ValueError, r"eta must be >= 0 .*, got nan"),
    ("eta", math.inf, ValueError, r"eta must be >= 0 .*, got inf"),
    ("eta", "1", TypeError, r"eta must be a number, got str"),
    ("eta", torch.ones(()), TypeError, r"eta must be a number, got Tensor"),
    ("prune", -0.1, ValueError, r"prune must be >= 0 .*, got -0.1"),
    ("prune", math.nan, ValueError, r"prune must be >= 0 .*, got nan"),
    ("prune", 1e39, ValueError, r"prune must be >= 0 and at most 1e\+38"),
    ("prune", True, TypeError, r"prune must be a number, got bool"),
]
SYNAPSE: list[Wrong] = [
    ("silent", None, TypeError, r"silent must be int32 .*, got NoneType"),
    ("silent", [words(), words()], ValueError, r"silent has 2 entries but weight has 1"),
    ("grad", None, TypeError, r"grad must be a torch.Tensor, got NoneType"),
    ("grad", tensor(torch.float64), TypeError, r"grad must be torch.float32.*, got torch.float64"),
    ("grad", tensor(shape=(6, 4)), ValueError, r"grad must have the shape of weight, \(4, 6\), got \(6, 4\)"),
    ("grad", tensor().to("meta"), ValueError, r"grad must be on the device of weight, cpu, got meta"),
    ("pre", None, TypeError, r"pre must be a tensor of mean activities, got NoneType"),
    ("pre", 1.0, TypeError, r"pre must be a tensor of mean activities, got float"),
    ("pre", tensor(shape=(4,)), ValueError, r"pre must be torch.float32 \[6\].*\(4,\)"),
    ("pre", tensor(shape=(3, 6)), ValueError, r"pre must be torch.float32 \[6\].*of a batch take pre.mean\(0"),
    ("pre", tensor(torch.float64, (6,)), ValueError, r"pre must be torch.float32 \[6\].*torch.float64"),
    ("pre", tensor(torch.bfloat16, (6,)), ValueError, r"pre must be torch.float32 \[6\].*torch.bfloat16"),
    ("pre", tensor(shape=(6,)).to("meta"), ValueError, r"pre must be on the device of weight, cpu, got meta"),
    ("pre", tensor(shape=(6,)).to_sparse(), (TypeError, ValueError), r"pre must be .*dense"),
    ("post", None, TypeError, r"post must be a tensor of mean activities, got NoneType"),
    ("post", tensor(shape=(6,)), ValueError, r"post must be torch.float32 \[4\].*\(6,\)"),
    ("post", tensor(shape=(4,)).to("meta"), ValueError, r"post must be on the device of weight"),
    ("coincidence", tensor(), ValueError, r"give either coincidence, or pre and post, not both"),
    ("threshold", [0.5, 0.5], ValueError, r"threshold has 2 entries but weight has 1"),
]  # fmt: skip
COINCIDENCE: list[Wrong] = [
    ("coincidence", 1.0, TypeError, r"coincidence must be a torch.Tensor, got float"),
    (
        "coincidence",
        tensor(torch.bfloat16),
        TypeError,
        r"coincidence must be torch.float32, got",
    ),
    ("coincidence", tensor(shape=(6, 4)), ValueError, r"coincidence must have the shape of weight"),
    ("coincidence", tensor().to("meta"), ValueError, r"coincidence must be on the device of weight"),
    ("coincidence", tensor().to_sparse(), TypeError, r"coincidence must be a dense tensor"),
    ("pre", tensor(shape=(6,)), ValueError, r"give either coincidence, or pre and post, not both"),
]
BATCH: list[Wrong] = [
    (name, value, error, message.format(name=name, units=units, other=10 - units))
    for name, units in (("x", 6), ("grad_out", 4), ("post", 4))
    for value, error, message in (
        (None, TypeError, r"{name} must be a tensor \[batch, {units}\], got NoneType"),
        (3.0, TypeError, r"{name} must be a tensor \[batch, {units}\], got float"),
        (tensor(torch.int32, (3, units)), TypeError, r"{name} must be torch.float32 or .*, got torch.int32"),
        (tensor(torch.float64, (3, units)), TypeError, r"{name} must be .*, got torch.float64"),
        (tensor(shape=(units,)), ValueError, r"{name} must be \[batch, {units}\] for a weight \(4, 6\), got"),
        (tensor(shape=(2, 3, units)), ValueError, r"{name} must be \[batch, {units}\].*flatten"),
        (tensor(shape=(3, 10 - units)), ValueError, r"{name} must be \[batch, {units}\].*\(3, {other}\)"),
        (tensor(shape=(3, units)).to("meta"), ValueError, r"{name} must be on the device of weight, cpu"),
        (tensor(shape=(3, units)).to_sparse(), TypeError, r"{name} must be a dense tensor, got layout"),
    )
] + [
    ("grad_out", tensor(shape=(2, 4)), ValueError, r"grad_out must have the dtype and batch size.* 3, got.* 2"),
    ("post", tensor(shape=(2, 4)), ValueError, r"post must have the dtype and batch size of x"),
    ("grad_out", tensor(torch.bfloat16, (3, 4)), ValueError, r"grad_out must have the dtype and batch size"),
    ("post", tensor(torch.float16, (3, 4)), ValueError, r"post must have the dtype and batch size.*float16"),
    ("rule", "oja", ValueError, r"rule must be one of \('hebbian', 'rate'\), got 'oja'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "message"), STATE + SILENT + SYNAPSE)
def test_synapse_step(name: str, value: object, error: type[Exception], message: str) -> None:
    refuses(ops.synapse_step_, {**synapse_arguments(), name: value}, error, message)


@pytest.mark.parametrize(("name", "value", "error", "message"), COINCIDENCE)
def test_synapse_step_of_a_coincidence(name: str, value: object, error: type[Exception], message: str) -> None:
    arguments = {**synapse_arguments(), "pre": None, "post": None, "coincidence": tensor()}
    refuses(ops.synapse_step_, {**arguments, name: value}, error, message)


@pytest.mark.parametrize(("name", "value", "error", "message"), STATE + SILENT + BATCH)
def test_linear_step(name: str, value: object, error: type[Exception], message: str) -> None:
    refuses(ops.linear_step_, {**linear_arguments(), name: value}, error, message)


OPERATORS = {
    "synapse": (ops.synapse_step_, synapse_arguments),
    "linear": (ops.linear_step_, linear_arguments),
}
Make = Callable[..., Arguments]


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS)
def operator(request: pytest.FixtureRequest) -> tuple[Callable[..., object], Make]:
    return request.param


Operator = tuple[Callable[..., object], Make]


def test_the_arguments_that_the_wrong_ones_start_from_are_in_order(backend: str, operator: Operator) -> None:
    call, make = operator
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = make(dtype)
        done = call(**arguments)
        assert done.converted.sum() > 0
        call(**{**make(dtype), "insert": "hebbian"})


@pytest.mark.parametrize("shape", [(), (6,), (1, 4, 6)], ids=str)
def test_a_weight_is_a_matrix(operator: Operator, shape: tuple[int, ...]) -> None:
    call, make = operator
    arguments = make()
    for name in ("weight", "grad", "anchor", "flexibility", "momentum_buffer"):
        if name in arguments:
            arguments[name] = tensor(shape=shape)
    refuses(call, arguments, ValueError, r"weight must be a matrix \[out, in\], got shape")


def test_hebbian_insertion_needs_a_stored_anchor(operator: Operator) -> None:
    call, make = operator
    message = r"insert='hebbian' writes the anchor .*materialize"
    refuses(call, {**make(), "anchor": Field.normal(1), "insert": "hebbian"}, ValueError, message)
    expanded = {**make(), "anchor": tensor(shape=()).expand(SHAPE)}
    refuses(call, {**expanded, "insert": "hebbian"}, ValueError, r"anchor is written but its elements overlap")
    call(**expanded)  # it is only read


def test_low_precision_needs_its_master(operator: Operator) -> None:
    call, make = operator
    for name, value, error, message in (
        ("master", None, ValueError, r"master is needed: a torch.bfloat16 weight cannot hold"),
        ("master", tensor(torch.bfloat16), TypeError, r"master must be torch.float32, got torch.bfloat16"),
        ("master", tensor(shape=(6, 4)), ValueError, r"master must have the shape of weight"),
        ("threshold", tensor(torch.bfloat16, (4,)), ValueError, r"threshold as a tensor must be torch.float32"),
    ):
        refuses(call, {**make(torch.bfloat16), name: value}, error, message)


def test_float64_is_for_the_reference(operator: Operator) -> None:
    call, make = operator
    with use_backend("reference"):
        call(**make(torch.float64))
    if not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
    with use_backend("cpu"):
        refuses(call, make(torch.float64), BackendError, r"float64 is computed by the reference only")
    with use_backend("auto"):
        call(**make(torch.float64))


def test_linear_step_has_no_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["flexkern.backends"]  # as an attribute of flexkern it is the function
    monkeypatch.setattr(module, "_requested", "cuda")
    monkeypatch.setattr(module, "_serves", lambda name, device: None)  # as if CUDA were here
    refuses(ops.linear_step_, linear_arguments(), BackendError, r"linear_step_ has no CUDA C\+\+ kernel")


LISTED = ("grad", "anchor", "flexibility", "momentum_buffer", "silent", "pre", "post")


@pytest.mark.parametrize("name", LISTED)
def test_lists(name: str) -> None:
    for count in (0, 2, 4):
        wrong = {**synapse_arguments(count=3), name: [tensor() for _ in range(count)]}
        refuses(ops.synapse_step_, wrong, ValueError, rf"{name} has {count} entries but weight has 3")
    wrong = synapse_arguments(count=3)
    wrong[name][2] = tensor(torch.complex64)
    refuses(ops.synapse_step_, wrong, (TypeError, ValueError), rf"{name} must be .*, got torch.complex64")
    refuses(
        ops.synapse_step_,
        {**synapse_arguments(count=3), "threshold": [0.5, torch.zeros(4), -1.0]},
        ValueError,
        r"threshold must be finite and >= 0, got -1.0",
    )
