"""The modules of build_tools, which import each other by their bare names, as CMake and pip run them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "build_tools"
NAMES = ("needs", "nvcc", "old_libraries", "target_torch")


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def nvcc(tools: dict[str, ModuleType]) -> ModuleType:
    return tools["nvcc"]


@pytest.fixture
def needs(tools: dict[str, ModuleType]) -> ModuleType:
    tools["needs"].find_all.cache_clear()
    return tools["needs"]
