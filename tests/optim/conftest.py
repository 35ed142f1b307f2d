"""What the processes of helpers.ranks answered, for all modules that ask them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import ranks


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that they wrote to, and what each of them answered."""
    return ranks.answers(tmp_path_factory)


@pytest.fixture
def found(launched: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of them answered."""
    return launched[1]
