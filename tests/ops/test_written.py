"""A low-precision weight that was written from outside is its own master from then on (docs/design.md)."""

from __future__ import annotations

import pytest
import torch

from flexkern import ops
from helpers.judge import same_bits
from helpers.written import LOW, STEPPERS, check_followed, check_kept

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_masters_follow_what_was_written_and_no_other(backend: str, name: str, dtype: torch.dtype) -> None:
    check_kept(name, dtype, CPU)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_a_step_goes_on_from_what_was_written(backend: str, name: str, dtype: torch.dtype) -> None:
    check_followed(name, dtype, CPU)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_weights_are_compared_as_numbers(backend: str, dtype: torch.dtype) -> None:
    # -0 is 0, and what overflows to infinity in the weight may be finite in the master.
    master = torch.tensor([2.0**-120, 0.0, 3.4e38, 1.0, 1.0, 1.0])
    weight = master.to(dtype)
    weight[1] = -0.0
    weight[3:] = torch.tensor([torch.nan, torch.inf, 2.0**-120]).to(dtype)
    written, before = weight.clone(), master.clone()
    ops.gated_sgd_(weight, torch.zeros_like(weight), None, lr=0.1, master=master)
    assert same_bits(master[:3], before[:3])
    assert torch.equal(master[4:], written[4:].float())
    assert bool(master[3].isnan())
    assert bool(weight[3].isnan())
