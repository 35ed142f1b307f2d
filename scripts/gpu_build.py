"""Makes flexkern for one kind of GPU in a folder: the first step of scripts/gpu_check.py.

    python scripts/gpu_build.py build/gpu-site 90

What an earlier call has compiled there, perhaps on another machine, is taken where it is of the same sources
and loads here. Where compilers are missing, or fail, the folder has the Python files alone: they serve Triton.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["digest", "main", "missing_tools"]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))

import nvcc as nvcc_of_build  # noqa: E402

STAMP = "compiled.json"
# All that the libraries are compiled from.
COMPILED = ("csrc", "build_tools", "flexkern/spec", "CMakeLists.txt", "setup.py")
# In the tree, and in an installation.
PACKAGES = {
    "flexkern": "flexkern", "triton_kernels": "flexkern/triton_kernels", "benchmarks": "flexkern/benchmarks"
}  # fmt: skip
PROBE = """
import sys, torch
for library in sys.argv[1:]:
    if torch.version.cuda is not None or "cuda" not in library:
        torch.ops.load_library(library)
"""


def main(folder: Path, architecture: str) -> int:
    """Returns the exit code of the build."""
    stamp = {"sources": digest(), "architecture": architecture, "processor": platform.machine()}
    if found(folder, stamp):
        copy_python(folder)
        print(f"compiled before, for sm_{architecture}, from the same sources: taken from {folder}")
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    copy_python(folder)  # where the compiler fails, or is cut, Triton's kernels can still be tried
    lacking = missing_tools()
    if lacking:
        print(f"no compiled kernels, only Triton's and the reference: {', '.join(lacking)} is missing")
        return 0
    nvcc = find_nvcc()
    install = [
        sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade", "--target",
        str(folder), ".",
    ]  # fmt: skip
    environment = {
        # What has been compiled when this is cut is not compiled again.
        "FLEXKERN_BUILD_DIR": str(folder.with_name(f"{folder.name}-cmake")),
        **os.environ,
        "FLEXKERN_CUDA": "0" if nvcc is None else "1",  # also where torch is one for CPUs
        "FLEXKERN_CUDA_ARCHS": architecture,
    }
    code = subprocess.run(install, cwd=ROOT, env=environment).returncode
    if code == 0:
        (folder / STAMP).write_text(json.dumps(stamp) + "\n")
    return code


def digest() -> str:
    """Of the names and bytes of all that is compiled."""
    seen = hashlib.sha256()
    for name in COMPILED:
        top = ROOT / name
        for path in sorted(p for p in (top, *top.rglob("*")) if p.is_file() and p.suffix != ".pyc"):
            seen.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
            seen.update(path.read_bytes())
    return seen.hexdigest()


def found(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether libraries of these sources are there, and load."""
    try:
        if json.loads((folder / STAMP).read_text()) != stamp:
            return False
    except (OSError, ValueError):
        return False
    libraries = sorted(map(str, (folder / "flexkern" / "lib").glob("*.so")))
    loads = subprocess.run([sys.executable, "-c", PROBE, *libraries], capture_output=True, text=True)
    if loads.returncode != 0:
        print(f"what was compiled before does not load here: {loads.stderr.strip()[-500:]}")
    return bool(libraries) and loads.returncode == 0


def copy_python(folder: Path) -> None:
    """The Python files as they are now, beside the libraries that are there."""
    ignored = shutil.ignore_patterns("__pycache__", "lib", "*.so", "results", "tests")
    for source, target in PACKAGES.items():
        shutil.copytree(ROOT / source, folder / target, ignore=ignored, dirs_exist_ok=True)


def find_nvcc() -> Path | None:
    """Where the build finds it."""
    try:
        return nvcc_of_build.find(os.environ)
    except nvcc_of_build.UselessError as useless:
        print(f"no CUDA kernels, only those of the CPU and Triton's: {useless}")
        return None


def missing_tools() -> list[str]:
    """What a build needs beside nvcc, and is not here."""
    lacking = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    lacking += [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        lacking.append("a C++ compiler")
    return lacking


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2]))
