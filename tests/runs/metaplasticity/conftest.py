"""Features of the tiny settings, computed once for all tests; and one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexkern.learners.mlp.closed_form import RidgeMLP


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def as_experiments_run_each_network(one_thread: None) -> None:
    """In one thread."""


@pytest.fixture
def few_random_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ridge regressions on 2,000, the default, take seconds an item. Of this process: with jobs=1."""
    monkeypatch.setitem(RidgeMLP.__init__.__kwdefaults__, "random_features", 64)  # type: ignore[arg-type]
