"""Arguments that do not fit: the right exception, the argument's name in it, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flexkern import Field, ops
from helpers.arguments import SHAPE, gated, refuses, step_arguments
from helpers.judge import make_inputs
from helpers.refusals import NOT_GATED, ONLY_GATED, WRONG, tensor

pytestmark = pytest.mark.usefixtures("one_thread")


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
    "field",
    [Field.uniform(0, low=-1.0), Field.uniform(0, high=1.5), Field.normal(0), Field.normal_table(0)],
    ids=str,
)
def test_a_field_that_is_no_flexibility(field: Field) -> None:
    refuses(
        ops.metaplastic_sgd_, {**step_arguments(), "flexibility": field}, ValueError, r"flexibility must be in"
    )
