"""Procedural fields from Triton: the reference's bits, for every distribution and position."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from flexkern import Field, Purpose, ops, reference
from flexkern.backends.tuning import config
from flexkern.fields import Kind
from flexkern.ops.field import FILL
from helpers.judge import same_bits

pytestmark = pytest.mark.usefixtures("triton_backend")
TILE = config("fill", "any", "interpreter")["tile"]
FIELDS = {
    "uniform": Field.uniform(0),
    "uniform_bounds": Field.uniform(2**63 + 5, 2**32 - 1, low=-0.3, high=1.7, purpose=Purpose.ANCHOR, offset=1),
    "uniform_far": Field.uniform(2**64 - 1, 2**31, offset=2**62 - 5000),
    "normal": Field.normal(2**63, 5, offset=2**33 + 3),
    "normal_scaled": Field.normal(12, 6, mean=0.1, std=0.0123),
    "normal_table": Field.normal_table(2**63 + 1, 5, mean=0.1, std=0.0123, offset=2**33 + 3),
    "biased_high": Field.biased_high(2, 3, offset=2**34 - 2),
    "biased_low": Field.biased_low(2**32, 3, offset=4099),
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize(
    "shape", [(), (0,), (0, 3), (1,), (3,), (TILE - 1,), (TILE,), (TILE + 1,), (33, 65)], ids=str
)
def test_bits_of_the_reference(field: Field, shape: tuple[int, ...], device: torch.device) -> None:
    assert same_bits(ops.materialize(field, shape, device=device).cpu(), reference.materialize(field, shape))


def test_tails_and_centre_of_the_normal_quantile(device: torch.device) -> None:
    # 64 tiles have some 450 values from the tail's polynomial (one in 300), at both signs
    field, shape = Field.normal(1, 2), (64 * TILE,)
    values = ops.materialize(field, shape, device=device).cpu()
    assert same_bits(values, reference.materialize(field, shape))
    assert (values > 2.93).sum() > 50
    assert (values < -2.93).sum() > 50


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_a_shard_inside_a_block(shift: int, device: torch.device) -> None:
    """A shard may begin at any lane of a Philox block; its values are those of the whole tensor there."""
    field = Field.uniform(7, offset=2**33 - 1)
    whole = ops.materialize(field, (2 * TILE,), device=device)
    part = ops.materialize(field.shard(shift), (TILE + 5,), device=device)
    assert same_bits(part, whole[shift : shift + TILE + 5])


@pytest.mark.parametrize("count", [0, 1, TILE - 1, TILE, 2 * TILE, 2 * TILE + 1])
@pytest.mark.parametrize("guard", [0, 1, 4])
def test_fill_writes_its_elements_and_no_other(count: int, guard: int, device: torch.device) -> None:
    memory = torch.full((count + 16,), -7.0, device=device)
    source, parameters = Field.uniform(1).source()
    FILL.on("triton")(memory[guard : guard + count], source, parameters)
    assert (memory[:guard] == -7).all()
    assert (memory[guard + count :] == -7).all()
    expected = reference.materialize(Field.uniform(1), (count,))
    assert same_bits(memory[guard : guard + count].cpu(), expected)


@pytest.mark.parametrize("value", [0.3, 0.0, -1e30, 1e-40])
def test_a_constant_source(value: float, device: torch.device) -> None:
    out = torch.empty(TILE + 6, device=device)
    FILL.on("triton")(out, [int(Kind.CONSTANT), 0, 0, 0, 0], [value, 0.0])
    assert same_bits(out.cpu(), torch.full((TILE + 6,), value))


@pytest.mark.parametrize(
    ("out", "source", "error", "message"),
    [
        (torch.empty(3, dtype=torch.float64), [2, 0, 0, 0, 0], TypeError, "out must be torch.float32"),
        (torch.empty(3, 4).t(), [2, 0, 0, 0, 0], ValueError, "out must be contiguous"),
        (torch.empty(3), [0, 0, 0, 0, 0], ValueError, "kind 0 is not one of a source without a tensor"),
        (torch.empty(3), [7, 0, 0, 0, 0], ValueError, "kind 7"),
        (torch.empty(3), [2, 0, 0, 0], ValueError, "a source is 5 integers and 2 numbers"),
    ],
)
def test_what_cannot_be_filled(
    out: torch.Tensor, source: list[int], error: type[Exception], message: str, device: torch.device
) -> None:
    with pytest.raises(error, match=message):
        FILL.on("triton")(out.to(device), source, [0.0, 1.0])
