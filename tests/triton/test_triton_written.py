"""In Triton too a low-precision weight that was written from outside is its own master from then on."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from helpers.written import LOW, STEPPERS, check_followed, check_kept

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_masters_follow_what_was_written_and_no_other(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    check_kept(name, dtype, device)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_a_step_goes_on_from_what_was_written(name: str, dtype: torch.dtype, device: torch.device) -> None:
    check_followed(name, dtype, device)
