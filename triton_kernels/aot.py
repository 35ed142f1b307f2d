"""Compiles every kernel variant ahead of time, for GPUs that are not here: registers, spills, access widths.

``python -m flexkern.triton_kernels.aot`` prints a table, ``--json`` the same as JSON; exit code 1 if a variant
spills. It needs no GPU. TRITON_INTERPRET must not be 1: the interpreter takes the place of the compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from flexkern.triton_kernels.catalogue import all_variants
from flexkern.triton_kernels.variant import Variant

__all__ = ["TARGETS", "Resources", "architecture_of", "compile_variant", "report", "resources", "resources_of"]

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}


def architecture_of(target: str) -> str:
    """A target, one of TARGETS, as the tuning table names it."""
    family, _, chip = target.partition(":")
    return f"sm_{chip}" if family == "cuda" else chip


@dataclass(frozen=True)
class Resources:
    """What a compiled variant needs of a GPU.

    Args:
        registers: 32-bit registers per thread (vector registers on AMD).
        spills: bytes of local memory per thread on NVIDIA; spilled vector registers on AMD, whose scalar ones
            spill into lanes of vector registers and touch no memory.
        stack: bytes of stack per thread.
        shared: bytes of shared memory per program.
        wide_loads, wide_stores: instructions by which a thread reads or writes 16 bytes of global memory.
        wide_copies: by which it copies 16 bytes from there to shared memory, on NVIDIA (LDGSTS).
        tensor_core: instructions for the units that multiply matrices: wgmma (HGMMA) and its kin.
    """

    variant: str
    target: str
    registers: int
    spills: int
    stack: int
    shared: int
    wide_loads: int
    wide_stores: int
    wide_copies: int
    tensor_core: int


def compile_variant(variant: Variant, target: GPUTarget) -> CompiledKernel:
    """Compiles exactly what a launch of the variant would on such a GPU."""
    source = ASTSource(variant.kernel, variant.signature(), variant.constants)
    return triton.compile(source, target=target, options={**variant.options, "enable_fp_fusion": False})


def _nvidia_tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuobjdump(cubin: bytes) -> str:
    """What resources a kernel uses, and its SASS; in one call, since most of its 0.2 s are its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_nvidia_tool("cuobjdump"), "--dump-resource-usage", "--dump-sass", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _find(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"the compiler's report has no {pattern!r}; its format has changed")
    return int(match.group(1))


def _wide(asm: str, operation: str) -> int:
    """Number of 16-byte accesses in SASS (LDG.E.128) or AMD assembly (global_load_dwordx4)."""
    sass = {"load": "LDG", "store": "STG"}[operation]
    return len(re.findall(rf"\b{sass}\.E\S*\.128\b|\b(?:global|buffer)_{operation}_dwordx4\b", asm))


def resources(name: str, target: str, configuration: Mapping[str, int] | None = None) -> Resources:
    """Compiles a variant by name and reads what it needs from the binary.

    Args:
        name: in the catalogue.
        target: one of TARGETS.
        configuration: instead of the tuning table's.
    """
    variant = all_variants()[name]
    cut = variant.at(architecture_of(target)) if configuration is None else variant.cut(configuration)
    return resources_of(cut, target)


def report(name: str, architecture: str, configuration: Mapping[str, int] | None = None) -> dict[str, Any]:
    """As resources, of an architecture as the tuning table names it, in plain data: for other processes.

    The binary stays in Triton's cache, where a launch finds it.

    Raises:
        ValueError: if it is none of those that are compiled for here.
    """
    targets = {architecture_of(target): target for target in TARGETS}
    if architecture not in targets:
        raise ValueError(f"architecture must be one of {list(targets)}, got {architecture!r}")
    return asdict(resources(name, targets[architecture], configuration))


def resources_of(variant: Variant, target: str) -> Resources:
    """As resources, of any variant in a configuration."""
    compiled = compile_variant(variant, TARGETS[target])
    shared = compiled.metadata.shared
    if target.startswith("cuda"):
        asm = _cuobjdump(compiled.asm["cubin"])
        registers, spills, stack = (_find(rf"{key}:(\d+)", asm) for key in ("REG", "LOCAL", "STACK"))
    else:
        asm = compiled.asm["amdgcn"]
        registers = _find(r"\.vgpr_count:\s+(\d+)", asm)
        spills = _find(r"\.vgpr_spill_count:\s+(\d+)", asm)
        stack = _find(r"\.private_segment_fixed_size:\s+(\d+)", asm)
    tensor_core = len(re.findall(r"\bHGMMA\b|\bUTC\w*MMA\b|\bHMMA\b|\bv_mfma_", asm))
    wide = _wide(asm, "load"), _wide(asm, "store"), len(re.findall(r"\bLDGSTS\.E\S*\.128\b", asm))
    return Resources(variant.name, target, registers, spills, stack, shared, *wide, tensor_core)


def _table(reports: Sequence[Resources]) -> str:
    head = tuple(field.name.replace("_", " ") for field in fields(Resources))
    rows = [head, *[tuple(map(str, asdict(r).values())) for r in reports]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: compiles, reports, and returns 1 if a variant spills or uses a stack."""
    parser = argparse.ArgumentParser(prog="python -m flexkern.triton_kernels.aot", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="default: all; may be repeated"
    )
    parser.add_argument(
        "--variant", action="append", choices=list(all_variants()), help="default: all; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler by the interpreter; unset it")
    pairs = product(options.variant or all_variants(), options.target or TARGETS)
    reports = [resources(variant, target) for variant, target in pairs]
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(r) for r in reports]}, indent=1))
    else:
        print(_table(reports))
    return int(any(r.spills or r.stack for r in reports))


if __name__ == "__main__":
    sys.exit(main())
