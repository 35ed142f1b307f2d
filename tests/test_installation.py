"""What an installation consists of, and what the source folder says where it is not one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
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
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
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


CMAKE = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1" in
--version) echo cmake version 3.30.0;;
--build) exit {status};;
--install) mkdir -p {lib}; touch {lib}/libflexkern_cpu.so {lib}/../_core{suffix};;
esac
"""


@pytest.mark.parametrize("status", [0, 1])
def test_what_the_build_does_around_cmake(tmp_path: Path, status: int) -> None:
    """It passes on what was asked for, leaves no library of before, and says what helps if CMake fails."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    lib = tmp_path / "built" / "flexkern" / "lib"
    lib.mkdir(parents=True)
    (lib / "libflexkern_cuda.so").touch()  # which has other operators, perhaps
    suffix = (
        sysconfig.get_config_var("EXT_SUFFIX") if sysconfig.get_config_var("Py_GIL_DISABLED") else ".abi3.so"
    )
    programs = {
        "cmake": CMAKE.format(folder=tmp_path, lib=lib, suffix=suffix, status=status),
        "ninja": "#!/bin/sh\n",
        "c++": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("include/torch/csrc/stable/library.h", "version.py"):
        (tmp_path / "torch" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "torch" / name).touch()
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CXX": "c++", "FLEXKERN_CUDA": "0",
        "FLEXKERN_CUDA_ARCHS": "80;90", "FLEXKERN_TORCH_DIR": str(tmp_path / "torch"),
    }  # fmt: skip
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "built")]
    done = subprocess.run(
        [*command, "--build-temp", str(tmp_path / "temp")], cwd=ROOT, env=_environment() | given,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text()
    assert "-DFLEXKERN_CUDA=0 -DFLEXKERN_CUDA_ARCHS=80;90" in calls
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.splitlines()[-1].startswith(
            "flexkern's kernels do not compile here, as is said above; "
        )
        assert "FLEXKERN_EXTENSION=0" in done.stderr
        return
    assert [path.name for path in lib.iterdir()] == ["libflexkern_cpu.so"]


def test_make_builds_again_for_other_options(tmp_path: Path) -> None:
    """`FLEXKERN_CUDA=1 make demo` after `make demo`: else it would do nothing."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    for folder in ("csrc", "build_tools", "flexkern/spec", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pip", "flexkern"):
        (tmp_path / ".venv/bin" / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    (tmp_path / ".venv/.torch").touch()

    def runs(**options: str) -> list[str]:
        environment = {k: v for k, v in _environment().items() if not k.startswith(("FLEXKERN", "MAKE"))}
        done = subprocess.run(
            [make, "-s", "demo"],
            cwd=tmp_path,
            env=environment | options,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()]

    built = ["pip", "pip", "flexkern"]  # what is here, and then what it needs
    assert runs() == built
    assert runs() == ["flexkern"]
    assert runs(FLEXKERN_CUDA="1") == built
    assert runs(FLEXKERN_CUDA="1") == ["flexkern"]
    assert runs(FLEXKERN_CUDA="1", FLEXKERN_CUDA_ARCHS="80;90") == built
    assert runs() == built


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
