"""What a build needs of this machine, and one sentence on what it lacks, with the cure.

Looked at before anything is built: a build that fails ends in hundreds of lines that name no cure.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from nvcc import RefusedError, plan
from target_torch import find_torch

SETUPTOOLS = 77  # the first that takes `license = "MIT"` of pyproject.toml
CMAKE = (3, 24)
CUDA_OPTIONS = ("FLEXKERN_CUDA", "FLEXKERN_CUDA_ARCHS")
OLD_LIBRARIES = "FLEXKERN_OLD_LIBRARIES"  # a switch of CMake's
PLAIN = "`FLEXKERN_EXTENSION=0 pip install .` installs without the compiled kernels"
# The names by which CMake looks for a compiler.
_COMPILERS = ("c++", "CC", "g++", "clang++", "icpx")
_TRIAL = "#include <optional>\n#include <string>\nint main() { return std::optional<int>(0).value(); }\n"


def setuptools_lacks() -> str | None:
    """None if setuptools is new enough, else what to do. Where pip does not isolate the build, it does not look
    at the requirement in pyproject.toml."""
    try:
        import setuptools
    except ImportError:
        version = "none"
    else:
        version = setuptools.__version__
        if int(version.split(".")[0]) >= SETUPTOOLS:
            return None
    return (
        f"flexkern is built by setuptools >= {SETUPTOOLS}, here is {version}: `pip install "
        f"'setuptools>={SETUPTOOLS}'`, or leave out --no-build-isolation"
    )


def wants_extension() -> bool:
    """Whether the kernels are to be compiled.

    Raises:
        SystemExit: if FLEXKERN_EXTENSION says neither yes nor no.
    """
    value = os.environ.get("FLEXKERN_EXTENSION", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"FLEXKERN_EXTENSION must be 0, 1 or unset, got {value!r}")
    return value != "0"


def program(name: str) -> str | None:
    """Where a tool is: on PATH, or beside the Python of an environment that is not activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def good_cmake() -> str | None:
    """cmake, if there is one that is new enough."""
    cmake = program("cmake")
    if cmake is None:
        return None
    text = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", text)
    return cmake if version is not None and tuple(map(int, version.groups())) >= CMAKE else None


def compiler_lacks() -> str | None:
    """None if there is a C++17 compiler and Python's headers, else what to do."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _compiler(chosen: str, path: str) -> str | None:
    command = shlex.split(chosen) or [c for c in map(shutil.which, _COMPILERS) if c][:1]
    if not command or shutil.which(command[0]) is None:
        looked = f"CXX={chosen}" if chosen else f"{', '.join(_COMPILERS)} on PATH"
        return (
            f"flexkern needs a C++17 compiler, and there is none ({looked}): install g++ or clang++, or set "
            f"CXX; {PLAIN}"
        )
    trial = [*command, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(trial, input=_TRIAL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200]).strip()
        return (
            f"flexkern needs a C++17 compiler, and {command[0]} does not compile a small program ({said}): "
            f"install g++ or clang++, or set CXX; {PLAIN}"
        )
    # Debian's Python has them where its own packages are, and not where pip's would be.
    folders = (sysconfig.get_path("include"), sysconfig.get_config_var("INCLUDEPY"))
    if not any(Path(folder, "Python.h").exists() for folder in folders if folder):
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"flexkern needs the headers of Python, and {folders[0]} has no Python.h: install "
            f"python{version}-dev (Debian, Ubuntu) or python3-devel (Fedora); {PLAIN}"
        )
    return None


def tools_lack() -> str | None:
    """None if CMake and Ninja are there, else what to do. An isolated build has fetched them."""
    lacking = []
    if good_cmake() is None:
        lacking.append(f"cmake>={CMAKE[0]}.{CMAKE[1]}")
    if program("ninja") is None:
        lacking.append("ninja>=1.10")
    if not lacking:
        return None
    wanted = " ".join(f"'{package}'" for package in lacking)
    return (
        f"flexkern's build lacks {', '.join(lacking)}: `pip install {wanted}`, or leave out "
        f"--no-build-isolation; {PLAIN}"
    )


def must(lacks: str | None) -> None:
    """Goes on if there is nothing.

    Raises:
        SystemExit: with what there is.
    """
    if lacks is not None:
        raise SystemExit(lacks)


class Found(NamedTuple):
    """The programs of a build, and the folder of the torch package that it is for."""

    cmake: str
    ninja: str
    torch: Path


@functools.cache  # the backend looks first of all, and setup.py, in the same process, needs what it found
def find_all() -> Found:
    """All that a build of the kernels needs.

    Raises:
        SystemExit: saying what is lacking, or what was asked for and cannot be built.
    """
    must(compiler_lacks() or tools_lack())
    torch = find_torch()
    if torch is None:
        raise SystemExit(
            "flexkern needs the headers of torch >= 2.11 to build: `pip install torch` first, or set "
            f"FLEXKERN_TORCH_DIR to the folder of an installed torch package; {PLAIN}"
        )
    try:
        cuda, archs = (os.environ.get(name, "") for name in CUDA_OPTIONS)
        plan(cuda, archs, torch)
    except RefusedError as refusal:
        raise SystemExit(str(refusal)) from None
    return Found(str(good_cmake()), str(program("ninja")), torch)
