"""What a build lacks is said in one sentence, with the cure, before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
PLAIN = "`FLEXKERN_EXTENSION=0 pip install .` installs without the compiled kernels"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------ setuptools


@pytest.fixture
def old_setuptools(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds an old setuptools first."""
    (tmp_path / "old" / "setuptools").mkdir(parents=True)
    (tmp_path / "old" / "setuptools" / "__init__.py").write_text('__version__ = "65.5.0"\n')
    return os.environ | {"PYTHONPATH": str(tmp_path / "old")}


@pytest.mark.parametrize("door", ["import sys; sys.path.insert(0, 'build_tools'); import backend", "setup.py"])
def test_an_old_setuptools(old_setuptools: dict[str, str], door: str) -> None:
    """By both ways in: pip's, and that of who runs setup.py."""
    command = [sys.executable, door, "--version"] if door == "setup.py" else [sys.executable, "-c", door]
    done = subprocess.run(command, cwd=ROOT, env=old_setuptools, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "flexkern is built by setuptools >= 77, here is 65.5.0: `pip install 'setuptools>=77'`, or leave out "
        "--no-build-isolation"
    ]


def test_no_setuptools(needs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new environment of Python 3.12."""
    monkeypatch.setitem(sys.modules, "setuptools", None)
    assert "here is none: `pip install 'setuptools>=77'`" in needs.setuptools_lacks()


def test_the_requirement_is_that_of_the_pyproject(needs: ModuleType) -> None:
    assert f'requires = ["setuptools>={needs.SETUPTOOLS}"]' in (ROOT / "pyproject.toml").read_text()
    assert (
        f"cmake_minimum_required(VERSION {'.'.join(map(str, needs.CMAKE))})"
        in (ROOT / "CMakeLists.txt").read_text()
    )


# ------------------------------------------------------------------ compilers


def test_no_compiler(needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    why = needs.compiler_lacks()
    assert why.startswith(
        "flexkern needs a C++17 compiler, and there is none (c++, CC, g++, clang++, icpx on PATH)"
    )
    assert why.endswith(PLAIN)
    monkeypatch.setenv("CXX", "/none/g++ -m64")
    assert "there is none (CXX=/none/g++ -m64)" in needs.compiler_lacks()


def test_a_compiler_that_does_not_compile(
    needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = program(tmp_path / "c++", "echo \"c++: error: unrecognized option '-std=c++17'\" >&2; exit 1")
    monkeypatch.setenv("CXX", str(old))
    why = needs.compiler_lacks()
    assert f"{old} does not compile a small program (c++: error: unrecognized option '-std=c++17')" in why
    assert why.endswith(PLAIN)


def test_no_headers_of_python(needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(program(tmp_path / "c++", "exit 0")))
    monkeypatch.setattr(needs.sysconfig, "get_path", lambda name: str(tmp_path / "local"))
    monkeypatch.setattr(needs.sysconfig, "get_config_var", lambda name: str(tmp_path / "own"))
    why = needs.compiler_lacks()
    assert f"{tmp_path / 'local'} has no Python.h: install python3." in why
    assert why.endswith(PLAIN)
    needs._compiler.cache_clear()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "Python.h").touch()  # as in Debian
    assert needs.compiler_lacks() is None


def test_nothing_is_fetched_for_a_build_that_cannot_be(
    needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    backend = load_file(ROOT / "build_tools" / "backend.py")
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda settings: [])
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs a C\+\+17 compiler"):
        backend.get_requires_for_build_wheel()
    monkeypatch.setenv("FLEXKERN_EXTENSION", "0")
    assert backend.get_requires_for_build_wheel() == []


# ------------------------------------------------------------------ tools


def test_tools_that_are_not_there(needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --no-build-isolation in a bare environment."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(needs.sys, "executable", str(tmp_path / "python"))
    why = needs.tools_lack()
    assert why == (
        "flexkern's build lacks cmake>=3.24, ninja>=1.10: `pip install 'cmake>=3.24' 'ninja>=1.10'`, or "
        f"leave out --no-build-isolation; {PLAIN}"
    )


def test_tools_of_an_environment_that_is_not_activated(
    needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside its Python."""
    program(tmp_path / "bin" / "cmake", "echo cmake version 3.24.0")
    program(tmp_path / "bin" / "ninja", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(needs.sys, "executable", str(tmp_path / "bin" / "python"))
    assert needs.tools_lack() is None
    program(tmp_path / "bin" / "cmake", "echo cmake version 3.22.1")
    assert "lacks cmake>=3.24:" in needs.tools_lack()


# ------------------------------------------------------------------ all


@pytest.mark.parametrize("lacks", ["compiler_lacks", "tools_lack"])
def test_a_build_ends_with_what_it_lacks(
    needs: ModuleType, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    for name in ("compiler_lacks", "tools_lack"):
        monkeypatch.setattr(needs, name, lambda name=name: "a sentence" if name == lacks else None)
    with pytest.raises(SystemExit, match=r"^a sentence$"):
        needs.find_all()


def test_a_build_ends_with_what_was_asked_for_and_cannot_be(
    needs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compiler_lacks", "tools_lack"):
        monkeypatch.setattr(needs, name, lambda: None)
    monkeypatch.setattr(needs, "find_torch", lambda: None)
    with pytest.raises(SystemExit, match=r"needs the headers of torch >= 2\.11 .*FLEXKERN_EXTENSION=0"):
        needs.find_all()
    monkeypatch.setattr(needs, "find_torch", lambda: tmp_path)
    monkeypatch.setenv("FLEXKERN_CUDA", "1")
    monkeypatch.setenv("CUDACXX", "/none/nvcc")
    with pytest.raises(SystemExit, match=r"^FLEXKERN_CUDA=1, but CUDACXX names /none/nvcc"):
        needs.find_all()


@pytest.mark.parametrize(("value", "wants"), [("", True), ("1", True), ("0", False), ("no", None)])
def test_with_or_without_the_kernels(
    needs: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str, wants: Any
) -> None:
    monkeypatch.setenv("FLEXKERN_EXTENSION", value)
    if wants is None:
        with pytest.raises(SystemExit, match="FLEXKERN_EXTENSION must be 0, 1 or unset, got 'no'"):
            needs.wants_extension()
    else:
        assert needs.wants_extension() is wants
