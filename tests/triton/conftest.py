"""Fixtures of the Triton tests: they run on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import flexkern
from helpers.interpreter import quicken

quicken()


@pytest.fixture
def triton_backend() -> Iterator[None]:
    """Triton runs all operators of a test; where it cannot, the test is skipped, and says why."""
    status = flexkern.backends()["triton"]
    if not status.available:
        pytest.skip(f"triton: {status.reason}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors only wait for a second thread
    with flexkern.use_backend("triton"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def launches() -> Iterator[Callable[[Any], list[dict[str, Any]]]]:
    """``launches(kernel)``: a list that gets the arguments, by name, of every launch of the kernel."""
    added = []

    def watch(kernel: Any) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def hook(*args: Any, **kwargs: Any) -> None:
            seen.append({**dict(zip(kernel.arg_names, args, strict=False)), **kwargs})

        kernel.add_pre_run_hook(hook)
        added.append((kernel, hook))
        return seen

    yield watch
    for kernel, hook in added:
        kernel.pre_run_hooks.remove(hook)
