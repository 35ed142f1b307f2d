"""Launches of CUDA kernels, on the host: devices, tables, and masks at every alignment (cuda_launches.cpp)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.scripts import load_file
from native.cuda_on_host.translate import translate

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
EMULATOR = HERE / "cuda_on_host"
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs a checkout"),
]


def test_launches_keep_their_promises(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "build_tools" / "bindings.py", tmp_path], check=True)
    sources = [HERE / "cuda_launches.cpp", EMULATOR / "emulator.cpp"]
    for name in ("null", "mask"):
        sources.append(tmp_path / f"{name}.cpp")
        sources[-1].write_text(translate((ROOT / "csrc" / "cuda" / f"{name}.cu").read_text()))
    folders = (EMULATOR / "include", ROOT / "csrc", ROOT / "csrc" / "include", ROOT / "csrc" / "cuda", tmp_path)
    flags = load_file(ROOT / "scripts" / "sanitize.py").FLAGS
    subprocess.run(
        ["g++", "-std=c++17", *flags, *(f"-I{folder}" for folder in folders), "-isystem", TORCH / "include",
         "-D__CUDACC__", "-D__CUDA_ARCH__=900", "-DUSE_CUDA", "-DFLEXKERN_FOR_CUDA", "-DFLEXKERN_DEVICE=CPU",
         "-DTORCH_TARGET_VERSION=0x020b000000000000", "-include", "cuda_runtime.h", "-ffp-contract=off", "-w",
         "-o", tmp_path / "launches", *sources, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10",
         f"-Wl,-rpath,{TORCH / 'lib'}"],
        check=True,
    )  # fmt: skip
    options = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    ended = subprocess.run([tmp_path / "launches"], capture_output=True, text=True, env=options)
    assert ended.returncode == 0, ended.stderr
