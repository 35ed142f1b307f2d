"""Every kernel variant compiled ahead of time: no spills, wide accesses, and one compilation for all numbers.

The compiler works without a GPU but not under the interpreter, so it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent


def run(*arguments: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert process.stdout, process.stderr
    return process.stdout


def compile_variants(*options: str) -> list[dict]:
    return json.loads(run("-m", "flexkern.triton_kernels.aot", "--json", *options))["kernels"]


# In how many 16-byte accesses a thread of an NVIDIA GPU reads and writes its 8 elements of each float32 array
WIDE = {
    "sgd-stored-fp32-fp32": (8, 2),  # w g f a; w
    "sgd-stored-fp32-fp32-momentum": (10, 4),  # and the buffer
    "sgd-mixed-fp32-fp32": (8, 2),
    "sgd-held-fp32-fp32": (6, 2),  # w g alpha; w
    "sgd-stored-bf16-bf16": (6, 2),  # master f a; master: the others are 8 bytes
    "sgd-stored-bf16-fp32": (8, 2),
    "gate-stored": (6, 2),
    "fill": (0, 2),
    "pack-aligned": (1, 0),  # 16 bytes of the mask a thread
    "unpack-aligned": (0, 1),
}


def check(kernel: dict) -> None:
    name = kernel["variant"]
    assert kernel["spills"] == 0, kernel
    assert kernel["stack"] == 0, kernel
    # 128 threads: at most 128 registers keep four programs, 512 threads, on a multiprocessor
    assert 0 < kernel["registers"] <= 128, kernel
    if name not in WIDE:
        return
    loads, stores = WIDE[name]
    if kernel["target"].startswith("cuda"):
        assert (kernel["wide_loads"], kernel["wide_stores"]) == (loads, stores), kernel
    elif not name.endswith("aligned"):  # twice as many threads with half of the elements
        assert kernel["wide_loads"] >= loads // 2, kernel
        assert kernel["wide_stores"] == stores // 2, kernel


# One of each kind for sm_90, with the largest; the others' compilers see the step that most use
QUICK = {
    "cuda:90": ["sgd-mixed-fp32-fp32", "sgd-held-bf16-bf16-momentum", "gate-stored", "fill", "pack-aligned"],
    "cuda:80": ["sgd-stored-fp32-fp32"],
    "cuda:100": ["sgd-stored-fp32-fp32"],
    "hip:gfx942": ["sgd-stored-fp32-fp32"],
}


@pytest.mark.parametrize("target", QUICK)
def test_compiles_without_spills(target: str) -> None:
    options = [option for name in QUICK[target] for option in ("--variant", name)]
    kernels = compile_variants("--target", target, *options)
    assert [kernel["variant"] for kernel in kernels] == QUICK[target]
    for kernel in kernels:
        check(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("target", QUICK)
def test_every_variant_compiles_without_spills(target: str) -> None:
    kernels = compile_variants("--target", target)
    assert len(kernels) > 30
    for kernel in kernels:
        check(kernel)


def test_calls_use_the_variants_that_are_compiled_here() -> None:
    """Each launch of each operator is in the registry, also with numbers that Triton likes to specialise on.

    And all of the registry is used.
    """
    report = json.loads(run(str(HERE / "record_launches.py")))
    assert report["unknown"] == []
    assert report["unused"] == []
    assert report["launches"] > 2 * report["variants"]


def test_it_says_that_the_interpreter_cannot_compile() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "flexkern.triton_kernels.aot"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "TRITON_INTERPRET=1" in process.stderr
