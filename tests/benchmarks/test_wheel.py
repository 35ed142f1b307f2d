"""What is installed: the packages that setup.py finds hold no tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("flexkern", "triton_kernels", "benchmarks")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_test_is_in_a_package(package: str) -> None:
    modules = [path for init in (ROOT / package).rglob("__init__.py") for path in init.parent.glob("*.py")]
    assert modules
    assert [str(path) for path in modules if path.name == "conftest.py" or path.name.startswith("test_")] == []
