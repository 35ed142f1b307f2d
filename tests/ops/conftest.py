"""Fixtures of the operator tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import flexkern
from helpers.interpreter import quicken

quicken()


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that serves CPU tensors without an interpreter; inside the test it is the one that runs."""
    status = flexkern.backends()[request.param]
    if not status.available:
        pytest.skip(f"{request.param}: {status.reason}")
    with flexkern.use_backend(request.param):
        yield request.param
