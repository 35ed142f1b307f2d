"""Every kernel variant compiled ahead of time: no spills, wide accesses, and one compilation for all numbers.

Each is compiled once for all tests: see helpers/compiled.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from flexkern.backends.shared import limit_of
from flexkern.triton_kernels import aot
from flexkern.triton_kernels.catalogue import all_variants
from helpers.compiled import Wanted, everything, reports, to_the_end, without_interpreter

HERE = Path(__file__).parent


def run(*arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=without_interpreter(), check=False
    )
    assert process.stdout, process.stderr
    return process.stdout


def compile_variants(target: str, names: Iterable[str]) -> list[dict]:
    return reports([Wanted(name, target) for name in names])


# In how many 16-byte accesses a thread of an NVIDIA GPU reads and writes its 8 elements of each float32 array
WIDE = {
    "sgd-stored-fp32-fp32": (8, 2),  # w g f a; w
    "sgd-stored-fp32-fp32-momentum": (10, 4),  # and the buffer
    "sgd-mixed-fp32-fp32": (24, 2),  # and a row of the table for each value of two drawn fields
    "sgd-held-fp32-fp32": (6, 2),  # w g alpha; w
    "sgd-stored-bf16-bf16": (6, 2),  # master f a; master: the others are 8 bytes
    "sgd-stored-bf16-fp32": (8, 2),
    "adamw-stored-fp32-fp32": (12, 6),  # w g m v a f; w m v
    "displacement-stored-fp32": (8, 2),  # w w0 f a; w
    "displacement-held-fp32": (6, 2),
    "displacement-stored-bf16": (6, 2),  # master f a; master
    "gate-stored": (6, 2),
    "fill": (8, 2),  # a row of the table for each value
    "pack-aligned": (1, 0),  # 16 bytes of the mask a thread
    "unpack-aligned": (0, 1),
    # Two for pre, and two each for the weights and the anchors that only converting synapses want, as what
    # functional ones want is on its way before. No more for the gradient of linear_step_, which is a product: a
    # part of its tile is 8 elements a thread
    "synapse-stored-fp32-rate": (14, 2),
    "synapse-mixed-fp32-rate": (8, 2),
    "linear-bf16-stored": (6, 2),  # w f a; w
    "linear-bf16-mixed": (2, 2),
    "linear-tma-bf16-stored": (0, 0),  # the copy engine does
}
# Of x and grad_out two steps ahead and one in the loop, of w f a (w alpha) three parts and one; w is stored
TILES = {f"linear-tma-{x}-stored": 19 for x in ("bf16", "fp16", "tf32")} | {"linear-tma-bf16-held": 15}
# Registers that let two programs of 256 threads, or four of 128, be on a multiprocessor
OCCUPANCY = 128
# AdamW has up to seven operands, 224 bytes a thread at once: three programs of 128 threads have 86 KB in
# flight, where 26 KB are enough (memory.py). A tile of a product is then the only one of a multiprocessor.
ADAMW_OCCUPANCY = 168
# On tensor cores each product needs so many instructions a step, on sm_90: 64 samples, 16 at a time; tf32 32
# and 8
WGMMA = 4


# Where the compiler keeps 8 bytes of a thread on the stack. Of the product 64 rows, batches of 8 or 2 stages
# do no better, and 16 warps take minutes to compile for sm_90.
STACK = {
    # Two numbers of a thread, for a fifth program on a multiprocessor.
    ("adamw-mixed-fp32-fp32", "cuda:80"): 8,
    ("linear-ieee-mixed", "cuda:100"): 8,
    # Adapters of a rank and a GPU that nobody has asked for yet.
    ("adapter-backward-ieee-16", "cuda:80"): 8,
    ("adapter-bf16-16", "cuda:100"): 8,
}
# Five registers too many for two programs a multiprocessor. Steps of 16 samples, in 4 stages, have 128 and half
# of the work between two barriers; which is faster a GPU has to say. maxnreg=128 costs 8 bytes of stack.
ONE_PROGRAM = {"linear-tf32-mixed": 133}


def check_layer(kernel: dict) -> None:
    name, target = kernel["variant"], kernel["target"]
    products = 2 if "hebbian" in name else 1
    if name.startswith("linear") and target == "cuda:90":
        assert kernel["tensor_core"] == (0 if "ieee" in name else WGMMA * products), kernel
    elif name.startswith("linear"):
        assert (kernel["tensor_core"] > 0) == ("ieee" not in name or target.startswith("hip")), kernel
    if (target == "cuda:90" and "hebbian" not in name and "rate" not in name) or (
        name.startswith("synapse") and target.startswith("cuda")
    ):
        of_rule = OCCUPANCY if "adamw" not in name else 256 if name.startswith("linear") else ADAMW_OCCUPANCY
        assert kernel["registers"] <= ONE_PROGRAM.get(name, of_rule), kernel
    assert kernel["registers"] <= 256, kernel
    if target == "cuda:90":
        assert kernel["tile_copies"] == TILES.get(name, 0), kernel
        if name in TILES:  # nothing else moves, and two programs are on a multiprocessor
            assert kernel["wide_copies"] == kernel["wide_loads"] == kernel["wide_stores"] == 0, kernel
            assert 2 * (kernel["shared"] + 1024) <= 228 * 1024, kernel


# Of the passes through adapters for sm_90, at rank 64 and 16 bits: 16-byte loads, stores and copies to shared
# memory by a thread, and instructions for the tensor cores (four for 64 of d, of rank or of the rows). A copy
# of a [128, 64] tile is 4, of [64, 64] 2, and each is there three times: two steps ahead, and in the loop.
ADAPTER = {
    "adapter-": (4, 16, 3 * (4 + 2) + 3 * (2 + 4), 8),  # copies x, down; up, residual; stores hidden, out
    "adapter-inference-": (4, 8, 3 * (4 + 2) + 3 * (2 + 4), 8),
    "adapter-backward-": (4, 12, 3 * (4 + 2) + 3 * 2, 8),  # hidden is loaded; grad_out, up; down
    "adapter-parts-": (0, 16, 2 * 3 * (2 + 4), 8),  # for down and for up: [64, 64] and [64, 128]
}
SMALL_KERNELS = ("adapter-order", "adapter-total")


def check_adapter(kernel: dict) -> None:
    name, target = kernel["variant"], kernel["target"]
    if name.startswith(SMALL_KERNELS):
        assert kernel["tensor_core"] == 0, kernel
        assert kernel["registers"] <= OCCUPANCY // 2, kernel
        return
    assert (kernel["tensor_core"] > 0) == ("ieee" not in name or target.startswith("hip")), kernel
    assert kernel["registers"] <= 256, kernel
    kind, _, dtype = name.rpartition("-")
    if target == "cuda:90" and dtype in ("bf16", "fp16"):
        # Two programs of 256 threads on a multiprocessor, so that one reads while the other begins a product
        assert kernel["registers"] <= OCCUPANCY, kernel
        assert 2 * kernel["shared"] <= 227 * 1024, kernel
        found = tuple(kernel[key] for key in ("wide_loads", "wide_stores", "wide_copies", "tensor_core"))
        assert found == ADAPTER[f"{kind}-"], kernel


def check(kernel: dict) -> None:
    name = kernel["variant"]
    assert kernel["spills"] == 0, kernel
    assert kernel["shared"] <= limit_of(aot.architecture_of(kernel["target"])), kernel
    assert kernel["stack"] == STACK.get((name, kernel["target"]), 0), kernel
    if name.startswith("adapter"):
        check_adapter(kernel)
        return
    if name.startswith(("linear", "synapse")):
        check_layer(kernel)
    else:
        most = ADAMW_OCCUPANCY if name.startswith("adamw") else OCCUPANCY
        assert 0 < kernel["registers"] <= most, kernel
        assert kernel["tensor_core"] == 0, kernel
    if name not in WIDE or (name.startswith("linear") and kernel["target"] == "cuda:80"):
        return  # on sm_80 one operand of the product goes through registers, also in wide loads
    loads, stores = WIDE[name]
    if kernel["target"].startswith("cuda"):
        assert (kernel["wide_loads"], kernel["wide_stores"]) == (loads, stores), kernel
    elif not name.endswith("aligned") and not name.startswith(
        ("linear", "synapse")
    ):  # twice as many threads with half of the elements
        assert kernel["wide_loads"] >= loads // 2, kernel
        assert kernel["wide_stores"] == stores // 2, kernel


# One of each kind for sm_90, with the largest; the others' compilers see the step that most use
QUICK = {
    "cuda:90": [
        "sgd-mixed-fp32-fp32",
        "sgd-held-bf16-bf16-momentum",
        "adamw-stored-fp32-fp32",
        "gate-stored",
        "fill",
        "pack-aligned",
        "synapse-mixed-fp32-rate",
        "linear-bf16-stored",
        "linear-tf32-stored",
        "linear-bf16-stored-hebbian",
        "linear-tma-bf16-stored",
        "adapter-bf16",
        "adapter-backward-bf16",
        "adapter-parts-bf16",
        "adapter-order",
        "adapter-total-bf16",
    ],
    "cuda:80": ["sgd-stored-fp32-fp32", "linear-bf16-stored", "adapter-bf16"],
    "cuda:100": ["sgd-stored-fp32-fp32", "linear-bf16-stored", "adapter-bf16"],
    "hip:gfx942": ["sgd-stored-fp32-fp32", "linear-bf16-stored", "adapter-bf16"],
}


@pytest.mark.parametrize("target", QUICK)
def test_compiles_without_spills(target: str) -> None:
    reports([Wanted(name, target) for target in QUICK for name in QUICK[target]])  # of all targets at once
    kernels = compile_variants(target, QUICK[target])
    assert [kernel["variant"] for kernel in kernels] == QUICK[target]
    for kernel in kernels:
        check(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("target", aot.TARGETS)
def test_every_variant_compiles_without_spills(target: str) -> None:
    reports(everything())  # of all targets at once, and for test_tuning.py
    kernels = compile_variants(target, to_the_end(target))
    assert len(kernels) > (30 if target in QUICK else 0)
    for kernel in kernels:
        check(kernel)


def test_the_command_prints_what_it_compiled() -> None:
    command = ("-m", "flexkern.triton_kernels.aot", "--target", "cuda:90", "--variant", "fill")
    said = json.loads(run(*command, "--json"))
    assert said["kernels"] == compile_variants("cuda:90", ["fill"])
    assert said["triton"] == triton.__version__
    head, row = run(*command).splitlines()
    assert head.split()[:3] == ["variant", "target", "registers"]
    assert row.split()[:2] == ["fill", "cuda:90"]


def test_the_command_says_which_variants_there_are_and_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # nothing is compiled here
    with pytest.raises(SystemExit):
        aot.main(["--variant", "adapter-bf61"])
    assert "no variant 'adapter-bf61'; did you mean one of ['adapter-bf16'" in capsys.readouterr().err
    monkeypatch.setattr(aot, "shared_memory", lambda name, architecture: 65 * 1024)
    assert aot.main(["--shared", "--variant", "adapter-bf16", "--target", "cuda:86"]) == 0
    assert aot.main(["--shared", "--variant", "adapter-bf16", "--target", "hip:gfx90a"]) == 1
    said = capsys.readouterr()
    assert "66560  hip:gfx90a  adapter-bf16" in said.out
    assert "adapter-bf16 needs 66560 bytes of shared memory of hip:gfx90a, which has 65536" in said.err
    assert (
        aot.main(["--shared", "--variant", "adapter-tf32", "--target", "hip:gfx90a"]) == 0
    )  # not launched there


def test_a_kernel_is_found_where_it_is_defined() -> None:
    """Modules of kernels say what is compiled; nothing else has a list of them."""
    names = {name for name, variant in all_variants().items() if variant.kernel.fn.__module__.endswith(".mask")}
    assert names == {"pack", "pack-aligned", "unpack", "unpack-aligned"}
    of_kernels = {variant.kernel.fn for variant in all_variants().values()}
    for module in {sys.modules[fn.__module__] for fn in of_kernels}:
        defined = [value for name, value in vars(module).items() if name.endswith("_kernel")]
        assert {kernel.fn for kernel in defined if kernel.fn.__module__ == module.__name__} <= of_kernels


def test_calls_use_the_variants_that_are_compiled_here() -> None:
    """Each launch of each operator is in the registry, also with numbers that Triton likes to specialise on.

    And all of the registry is used.
    """
    report = json.loads(run(str(HERE.parent / "helpers" / "record_launches.py")))
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
