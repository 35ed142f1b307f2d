"""Every test of the modules runs on the compiled CPU kernels, where they are, and on the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import flexkern
from helpers.nets import HAS_KERNELS


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cpu" and not HAS_KERNELS:
        pytest.skip(f"no compiled kernels: {flexkern.backends()['cpu'].reason}")
    # The networks are too small for several threads, which would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Not use_backend("cpu"): float64 runs, which judge, are the reference's.
    with flexkern.use_backend("auto" if request.param == "cpu" else "reference"):
        yield request.param
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every run draws the same random tensors."""
    torch.manual_seed(0)


@pytest.fixture
def swapping() -> Iterator[None]:
    """torch's option to swap parameters where modules are converted or loaded, instead of writing into them."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)
