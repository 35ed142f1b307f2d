"""The template of an operator, and of its test (docs/design.md, How to add)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flexkern.ops.null import NULL, null

# Two roundings to float32, of the factor and of the product, and the product of both.
BOUND = 2.01 * 2.0**-24


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (3, 5, 7), (1025,), (70_001,)], ids=str)
def test_against_float64(backend: str, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    result, exact = null(x, 2.7), x.double() * 2.7
    assert result.dtype is torch.float32
    assert ((result.double() - exact).abs() <= BOUND * exact.abs()).all()


def test_other_layouts(backend: str) -> None:
    x = draw(6, 10)[::2, 1::3].T
    result = null(x, 0.5)
    assert result.is_contiguous()
    assert torch.equal(result, x * 0.5)


def test_schema(backend: str) -> None:
    torch.library.opcheck(NULL.on(backend), (draw(9), 2.0))


@pytest.mark.parametrize(
    ("x", "factor", "error", "message"),
    [
        (draw(3).double(), 1.0, TypeError, r"x must be torch.float32, got torch.float64"),
        ([1.0], 1.0, TypeError, r"x must be a torch.Tensor, got list"),
        (draw(3), -1.0, ValueError, r"factor must be finite and >= 0, got -1.0"),
        (draw(3), "two", TypeError, r"factor must be a number"),
    ],
)
def test_wrong_arguments(backend: str, x: object, factor: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        null(x, factor)  # type: ignore[arg-type]
