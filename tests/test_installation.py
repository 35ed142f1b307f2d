"""What an installation consists of, and what the source folder says where it is not one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_source_folder_says_in_one_sentence_that_it_is_not_installed(tmp_path: Path) -> None:
    """After ``pip install .``, Python in the checkout finds the source before the installed package."""
    shutil.copytree(ROOT / "flexkern", tmp_path / "flexkern", ignore=shutil.ignore_patterns("*.so", "small"))
    # Without `site` there is no finder of an editable installation.
    command = [sys.executable, "-S", "-c", "import flexkern"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=_environment())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path / 'flexkern'} is flexkern's source, which is not installed from here: run "
        "Python from another folder, or install this one editable with `pip install -e .`"
    )


def test_what_is_installed(tmp_path: Path) -> None:
    """The library with its data, and neither tests nor studies."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    source = tmp_path / "source"
    for name in ("flexkern", "triton_kernels", "benchmarks", "build_tools"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "benchmarks" / "test_of_benchmarks.py").touch()
    (source / "benchmarks" / "conftest.py").touch()
    (source / "studies").mkdir()
    (source / "studies" / "__init__.py").touch()
    subprocess.run(
        command, cwd=source, check=True, capture_output=True, timeout=120,
        env=_environment() | {"FLEXKERN_EXTENSION": "0"},
    )  # fmt: skip
    built = {str(path.relative_to(tmp_path / "built")) for path in (tmp_path / "built").rglob("*.*")}
    assert {path.split("/")[0] for path in built} == {"flexkern"}
    for needed in (
        "py.typed", "configs/digits.toml", "backbones/small/config.json", "backbones/small/model.safetensors",
        "runs/demo.py", "triton_kernels/__init__.py", "benchmarks/__main__.py",
    ):  # fmt: skip
        assert f"flexkern/{needed}" in built
    assert not [path for path in built if "test_" in path or "conftest" in path or "stud" in path]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
