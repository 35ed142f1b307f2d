"""Arguments that do not fit: the right exception, the argument's name in it, and nothing changed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arguments import SHAPE, gated, refuses, step_arguments
from flexkern import Field, ops
from judge import make_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# Argument, what is passed for it, exception, message. Each wrong by exactly one thing.
WRONG = [
    ("weight", [[1.0]], TypeError, r"weight must be a torch.Tensor, got list"),
    ("weight", 1.0, TypeError, r"weight must be a torch.Tensor, got float"),
    ("weight", tensor(torch.int32), TypeError, r"weight must be torch.float32 or .*, got torch.int32"),
    ("weight", tensor(torch.complex64), TypeError, r"weight must be .*, got torch.complex64"),
    ("weight", tensor().to_sparse(), TypeError, r"weight must be a dense tensor, got layout torch.sparse_coo"),
    ("weight", tensor(shape=(1, 6)).expand(4, 6), ValueError, r"weight is written but its elements overlap"),
    (
        "weight",
        torch.zeros(27).as_strided((4, 6), (5, 1)),
        ValueError,
        r"weight is written but its elements overlap",
    ),
    ("grad", None, TypeError, r"grad must be a torch.Tensor, got NoneType"),
    ("grad", tensor(torch.float64), TypeError, r"grad must be torch.float32.*, got torch.float64"),
    ("grad", tensor(torch.bfloat16), TypeError, r"grad must be torch.float32.*, got torch.bfloat16"),
    ("grad", tensor().to_sparse(), TypeError, r"grad must be a dense tensor.*sparse_coo; call .to_dense\(\)"),
    ("grad", tensor(shape=(6, 4)), ValueError, r"grad must have the shape of weight, \(4, 6\), got \(6, 4\)"),
    ("grad", tensor(shape=(24,)), ValueError, r"grad must have the shape of weight, \(4, 6\), got \(24,\)"),
    ("grad", tensor(shape=(1, 6)), ValueError, r"grad must have the shape"),
    ("grad", tensor().to("meta"), ValueError, r"grad must be on the device of weight, cpu, got meta"),
    ("anchor", None, TypeError, r"anchor must be a tensor or a flexkern.Field, got NoneType"),
    ("anchor", 0.5, TypeError, r"anchor must be a tensor or a flexkern.Field, got float"),
    ("anchor", tensor(torch.bfloat16), TypeError, r"anchor must be torch.float32, got torch.bfloat16"),
    ("anchor", tensor(torch.float64), TypeError, r"anchor must be torch.float32, got torch.float64"),
    ("anchor", tensor(shape=(4, 5)), ValueError, r"anchor must have the shape of weight"),
    ("anchor", tensor().to("meta"), ValueError, r"anchor must be on the device of weight"),
    ("anchor", tensor().to_sparse(), TypeError, r"anchor must be a dense tensor"),
    (
        "flexibility",
        None,
        TypeError,
        r"flexibility must be a tensor, a number or a flexkern.Field, got NoneType",
    ),
    ("flexibility", "uniform", TypeError, r"flexibility must be .*, got str"),
    ("flexibility", True, TypeError, r"flexibility must be .*, got bool"),
    ("flexibility", -0.1, ValueError, r"flexibility must be in \[0, 1\], got -0.1"),
    ("flexibility", 1.1, ValueError, r"flexibility must be in \[0, 1\], got 1.1"),
    ("flexibility", math.nan, ValueError, r"flexibility must be in \[0, 1\], got nan"),
    ("flexibility", tensor(torch.float16), TypeError, r"flexibility must be torch.float32, got torch.float16"),
    ("flexibility", tensor(shape=(1,)), ValueError, r"flexibility must have the shape"),
    ("flexibility", tensor().to("meta"), ValueError, r"flexibility must be on the device"),
    ("lr", -0.1, ValueError, r"lr must be finite and >= 0, got -0.1"),
    ("lr", math.nan, ValueError, r"lr must be finite"),
    ("lr", math.inf, ValueError, r"lr must be finite"),
    ("lr", "0.1", TypeError, r"lr must be a number or a one-element tensor, got str"),
    ("lr", True, TypeError, r"lr must be a number or a one-element tensor, got bool"),
    ("lr", None, TypeError, r"lr must be a number"),
    (
        "lr",
        torch.tensor(0.1, dtype=torch.float64),
        ValueError,
        r"lr as a tensor must be one float32 element.*float64",
    ),
    ("lr", torch.tensor([0.1, 0.2]), ValueError, r"lr as a tensor must be one float32 element.*\(2,\)"),
    ("lr", torch.empty(0), ValueError, r"lr as a tensor must be one float32 element"),
    ("lr", torch.zeros((), device="meta"), ValueError, r"lr must be on cpu"),
    ("scale", 0.0, ValueError, r"scale must be finite and > 0, got 0.0"),
    ("scale", -1.0, ValueError, r"scale must be finite and > 0, got -1.0"),
    ("scale", math.inf, ValueError, r"scale must be finite"),
    ("scale", 1e39, ValueError, r"scale"),  # infinite in float32
    ("scale", 3e38, ValueError, r"scale"),  # 2 log2(e) times this is, and at an anchor infinity times 0
    ("scale", torch.ones(2), ValueError, r"scale as a tensor must be one float32 element"),
    ("scale", torch.tensor(1, dtype=torch.int64), ValueError, r"scale as a tensor must be one float32 element"),
    ("weight_decay", -0.1, ValueError, r"weight_decay must be .*, got -0.1"),
    ("weight_decay", math.nan, ValueError, r"weight_decay must be .*, got nan"),
    ("weight_decay", math.inf, ValueError, r"weight_decay must be .*, got inf"),
    ("momentum", -0.9, ValueError, r"momentum must be .*, got -0.9"),
    ("momentum", math.nan, ValueError, r"momentum must be .*, got nan"),
    ("momentum", math.inf, ValueError, r"momentum must be .*, got inf"),
    ("dampening", math.nan, ValueError, r"dampening must be .*, got nan"),
    ("momentum_buffer", None, ValueError, r"momentum_buffer is needed: momentum is not 0"),
    (
        "momentum_buffer",
        tensor(torch.float64),
        TypeError,
        r"momentum_buffer must be torch.float32, got torch.float64",
    ),
    ("momentum_buffer", tensor(shape=(6, 4)), ValueError, r"momentum_buffer must have the shape"),
    (
        "momentum_buffer",
        tensor(shape=()).expand(SHAPE),
        ValueError,
        r"momentum_buffer is written but its elements",
    ),
    ("momentum_buffer", tensor().to("meta"), ValueError, r"momentum_buffer must be on the device"),
    (
        "nonfinite",
        "ignore",
        ValueError,
        r"nonfinite must be one of .*'raise', 'skip', 'propagate'.*, got 'ignore'",
    ),
]
ONLY_GATED = [
    ("alpha", 1.0, TypeError, r"alpha must be a torch.Tensor, got float"),
    (
        "alpha",
        tensor(torch.float16),
        TypeError,
        r"alpha must be torch.float32 or torch.bfloat16, got torch.float16",
    ),
    ("alpha", tensor(shape=(6, 4)), ValueError, r"alpha must have the shape of weight"),
    ("alpha", tensor().to("meta"), ValueError, r"alpha must be on the device of weight"),
    ("alpha", [tensor(), tensor()], ValueError, r"alpha has 2 entries but weight has 1"),
]
NOT_GATED = ("anchor", "flexibility", "scale")


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_metaplastic_sgd(name: str, value: object, error: type[Exception], message: str) -> None:
    refuses(ops.metaplastic_sgd_, {**step_arguments(), name: value}, error, message)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), [w for w in WRONG if w[0] not in NOT_GATED] + ONLY_GATED
)
def test_gated_sgd(name: str, value: object, error: type[Exception], message: str) -> None:
    refuses(ops.gated_sgd_, {**gated(step_arguments()), name: value}, error, message)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [w for w in WRONG if w[0] in ("weight", *NOT_GATED) and "written" not in w[3]],
)
def test_gate(name: str, value: object, error: type[Exception], message: str) -> None:
    x = make_inputs(SHAPE, 0)
    arguments = {
        "weight": x.weight,
        "anchor": x.anchor,
        "flexibility": x.flexibility,
        "scale": 20.0,
        name: value,
    }
    refuses(ops.metaplastic_gate, arguments, error, message)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gate_of_a_low_precision_weight_needs_its_master(dtype: torch.dtype) -> None:
    x = make_inputs(SHAPE, 0, dtype)
    with pytest.raises(TypeError, match=r"weight must be float32, got .*: pass its float32 master"):
        ops.metaplastic_gate(x.weight, x.anchor, x.flexibility, 20.0)


def test_the_arguments_that_the_wrong_ones_start_from_are_in_order(backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for count in (1, 3):
            arguments = step_arguments(dtype, count)
            ops.metaplastic_sgd_(**arguments)
            ops.gated_sgd_(**gated(arguments))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("master", None, ValueError, r"master is needed: a torch.bfloat16 weight cannot hold its"),
        ("master", tensor(torch.bfloat16), TypeError, r"master must be torch.float32, got torch.bfloat16"),
        ("master", tensor(shape=(6, 4)), ValueError, r"master must have the shape of weight"),
        (
            "master",
            tensor(shape=(4, 1)).expand(SHAPE),
            ValueError,
            r"master is written but its elements overlap",
        ),
        ("master", tensor().to("meta"), ValueError, r"master must be on the device of weight"),
        ("master", [tensor(), tensor()], ValueError, r"master has 2 entries but weight has 1"),
        (
            "grad",
            tensor(torch.float16),
            TypeError,
            r"grad must be torch.bfloat16 or torch.float32, got torch.float16",
        ),
        ("anchor", tensor(torch.bfloat16), TypeError, r"anchor must be torch.float32, got torch.bfloat16"),
        ("momentum_buffer", tensor(torch.bfloat16), TypeError, r"momentum_buffer must be torch.float32, got"),
    ],
)
def test_low_precision(name: str, value: object, error: type[Exception], message: str) -> None:
    arguments = step_arguments(torch.bfloat16)
    refuses(ops.metaplastic_sgd_, {**arguments, name: value}, error, message)
    if name != "anchor":
        refuses(ops.gated_sgd_, {**gated(arguments), name: value}, error, message)


@pytest.mark.parametrize("name", ["grad", "anchor", "flexibility", "momentum_buffer", "alpha"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_list_lengths(name: str, count: int) -> None:
    arguments = step_arguments(count=3)
    call: Callable[..., None] = ops.metaplastic_sgd_
    if name == "alpha":
        call, arguments = ops.gated_sgd_, gated(arguments)
    arguments[name] = [tensor() for _ in range(count)]
    refuses(
        call, arguments, ValueError, rf"{name} has {count} entries but weight has 3; give one for each weight"
    )


@pytest.mark.parametrize("name", ["weight", "grad", "anchor", "flexibility", "momentum_buffer"])
def test_only_the_last_of_a_list_is_wrong(name: str) -> None:
    arguments = step_arguments(count=3)
    arguments[name][2] = torch.zeros((4, 7), dtype=torch.int32)
    refuses(ops.metaplastic_sgd_, arguments, TypeError, rf"{name} must be .*, got torch.int32")


def test_a_list_has_one_dtype() -> None:
    arguments = step_arguments(count=3)
    arguments["weight"][1] = tensor(torch.float64)
    refuses(ops.metaplastic_sgd_, arguments, ValueError, r"weights of one call must share dtype and device")
    arguments = step_arguments(torch.bfloat16, count=3)
    arguments["grad"][1] = tensor()
    refuses(ops.metaplastic_sgd_, arguments, ValueError, r"grads of one call must share")
    arguments = step_arguments(count=3)
    arguments["weight"][1] = tensor().to("meta")
    refuses(ops.metaplastic_sgd_, arguments, ValueError, r"weights of one call must share dtype and device")


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.1)])
def test_nesterov_needs_momentum_without_dampening(momentum: float, dampening: float) -> None:
    arguments = {**step_arguments(), "momentum": momentum, "dampening": dampening, "nesterov": True}
    refuses(ops.metaplastic_sgd_, arguments, ValueError, r"nesterov needs momentum > 0 and dampening = 0")


@pytest.mark.parametrize(
    "field", [Field.uniform(0, low=-1.0), Field.uniform(0, high=1.5), Field.normal(0)], ids=str
)
def test_a_field_that_is_no_flexibility(field: Field) -> None:
    refuses(
        ops.metaplastic_sgd_, {**step_arguments(), "flexibility": field}, ValueError, r"flexibility must be in"
    )
