"""Importing the package imports no framework, and a framework that is missing is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import sys
{before}
try:
    import flexkern.integrations{module}
except ImportError as error:
    print("ImportError", error.name, error)
there = {{name for name, module in sys.modules.items() if module}}
print(sorted({{"transformers", "accelerate", "lightning", "avalanche"}} & there))
"""


def run(module: str, before: str = "") -> str:
    code = CHECK.format(before=before, module=module)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_package_imports_no_framework() -> None:
    assert run("") == "[]\n"
    assert run(".consolidation") == "[]\n"


@pytest.mark.parametrize(
    ("module", "name", "package", "target"),
    [
        ("transformers", "transformers", "transformers", "'flexkern[transformers]'"),
        ("lightning", "lightning", "lightning", "'flexkern[lightning]'"),
        ("avalanche", "avalanche", "avalanche-lib", "avalanche-lib"),
    ],
)
def test_a_missing_framework(module: str, name: str, package: str, target: str) -> None:
    out = run(f".{module}", f"sys.modules[{name!r}] = None")
    assert out.startswith(f"ImportError {package} flexkern.integrations.{module} needs {package}")
    assert f"pip install {target}" in out
