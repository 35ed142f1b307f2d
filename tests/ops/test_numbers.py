"""Numbers of every kind: numpy's are numbers, and those that float32 loses are refused where 0 is special."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import flexkern
from flexkern import Field, ops
from flexkern.fields import Kind, Purpose
from helpers.arguments import refuses, step_arguments, synapse_arguments
from helpers.judge import same_bits

LOST = [1e-46, 2.0**-150, 5e-324]


@pytest.mark.parametrize("value", LOST)
@pytest.mark.parametrize("name", ["threshold", "scale", "eta", "prune"])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_numbers_that_float32_loses(chosen: str, name: str, value: float) -> None:
    hebbian = {"insert": "hebbian"} if name == "eta" else {}
    with flexkern.use_backend(chosen):
        given = {**synapse_arguments(), **hebbian, name: value}
        refuses(ops.synapse_step_, given, ValueError, rf"{name} must be 0 or at least .*, got {value}")


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_numbers_that_float32_just_keeps(chosen: str) -> None:
    with flexkern.use_backend(chosen):
        for value in (2.0**-149, 2.0**-150 * (1 + 2.0**-40), 0.0):
            ops.synapse_step_(**{**synapse_arguments(), "threshold": value, "prune": value})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_scalars_of_numpy_are_numbers(backend: str, kind: Any) -> None:
    names = ("lr", "scale", "momentum", "flexibility")
    plain, foreign = ({**step_arguments(), "lr": 0.25, "scale": 16.0, "momentum": 0.5, "flexibility": 0.75}
                      for _ in range(2))  # fmt: skip
    ops.metaplastic_sgd_(**plain)
    ops.metaplastic_sgd_(**{**foreign, **{name: kind(foreign[name]) for name in names}})
    assert same_bits(plain["weight"], foreign["weight"])


@pytest.mark.parametrize("name", ["lr", "scale", "momentum", "weight_decay", "dampening", "flexibility"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["big", "negative", "unprintable"])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_integers_that_no_float_holds(chosen: str, name: str, value: int) -> None:
    with flexkern.use_backend(chosen):
        refuses(ops.metaplastic_sgd_, {**step_arguments(), name: value}, ValueError, f"{name} must be")


@pytest.mark.parametrize("value", [np.bool_(True), True, 1j, np.complex64(1)])
def test_what_is_no_number(backend: str, value: object) -> None:
    refuses(ops.metaplastic_sgd_, {**step_arguments(), "lr": value}, TypeError, "lr must be a number")


# ------------------------------------------------------------------ fields


@pytest.mark.parametrize("name", ["seed", "stream", "offset"])
def test_integers_of_a_field(name: str) -> None:
    field = Field.uniform(**{"seed": 0, name: np.uint32(7)})
    assert type(getattr(field, name)) is int
    assert field == Field.uniform(**{"seed": 0, name: 7})
    for wrong in (True, np.bool_(True), 1.0, "1"):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            Field.uniform(**{"seed": 0, name: wrong})


@pytest.mark.parametrize("make", [
    lambda: Field.uniform(1, low=-3e38, high=3e38),
    lambda: Field.uniform(1, low=0, high=1e39),
    lambda: Field.uniform(1, low=0, high=10**400),
    lambda: Field.uniform(1, low=float("nan")),
    lambda: Field.normal(1, std=1e38),
    lambda: Field.normal(1, mean=3e38, std=1e38),
])  # fmt: skip
def test_fields_that_overflow(make: Any) -> None:
    with pytest.raises(ValueError, match="must be finite in float32"):
        make()


def test_the_widest_fields_are_finite(backend: str) -> None:
    for field in (Field.uniform(1, low=-1.7e38, high=1.7e38), Field.normal(1, std=6.4e37)):
        assert ops.materialize(field, (1000,)).isfinite().all()


@pytest.mark.parametrize("kind", [99, -1, True, "uniform"])
def test_a_kind_that_is_none(kind: Any) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        Field(kind, 0)
    with pytest.raises(ValueError, match="purpose must be one of"):
        Field(Kind.UNIFORM, 0, purpose=kind)


def test_the_number_of_a_kind_is_that_kind() -> None:
    field: Any = Field(2, 0, purpose=1, parameters=(0, 1))  # type: ignore[arg-type]
    assert (field.kind, field.purpose) == (Kind.UNIFORM, Purpose.ANCHOR)


@pytest.mark.parametrize("parameters", [[-3e38, 3e38], [0.0, 1e39]])
def test_the_operator_refuses_fields_that_overflow(parameters: list[float]) -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip("no compiled kernels")
    with pytest.raises(RuntimeError, match="overflow float32"):
        torch.ops.flexkern.fill_field_(torch.empty(3), [2, 1, 0, 0, 0], parameters)
