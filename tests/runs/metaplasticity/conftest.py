"""Features of the tiny settings, computed once for all tests; and one thread."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def as_experiments_run_each_network(one_thread: None) -> None:
    """In one thread."""
