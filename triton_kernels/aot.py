"""Compiles every kernel variant ahead of time, for GPUs that are not here: registers, spills, access widths.

``python -m flexkern.triton_kernels.aot`` prints a table, ``--json`` the same as JSON; exit code 1 if a variant
spills, or needs more shared memory than the GPU has. It needs no GPU. TRITON_INTERPRET must not be 1: the
interpreter takes the place of the compiler.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend

from flexkern.backends.shared import limit_of
from flexkern.triton_kernels.catalogue import all_variants, variants_on
from flexkern.triton_kernels.target import target_of
from flexkern.triton_kernels.variant import Variant

__all__ = [
    "TARGETS",
    "Resources",
    "architecture_of",
    "compile_variant",
    "report",
    "resources",
    "resources_of",
    "shared_memory",
]

# One of each limit of shared memory and of each way to multiply, as the command names them.
TARGETS = {
    f"{target.backend}:{target.arch}": target
    for target in map(
        target_of,
        ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx90a", "gfx942"),
    )
}


def architecture_of(target: str) -> str:
    """A target, "cuda:90" or "hip:gfx942", as the tuning table names it."""
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
        tile_copies: by which its copy engine moves a tile, on NVIDIA from sm_90 on (UTMALDG, UTMASTG).
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
    tile_copies: int
    tensor_core: int


def compile_variant(variant: Variant, target: GPUTarget) -> CompiledKernel:
    """Compiles exactly what a launch of the variant would on such a GPU."""
    source = ASTSource(variant.kernel, variant.signature(), variant.constants)
    return triton.compile(source, target=target, options={**variant.options, "enable_fp_fusion": False})


def shared_memory(name: str, architecture: str, configuration: Mapping[str, int] | None = None) -> int:
    """Bytes of shared memory of a program: compiled as far as that is known, in a fifth of the whole time.

    Args:
        name, configuration: as in :func:`resources`.
        architecture: as the tuning table names it.
    """
    variant, target = _cut(name, architecture, configuration), target_of(architecture)
    backend, source = make_backend(target), ASTSource(variant.kernel, variant.signature(), variant.constants)
    options = backend.parse_options({**variant.options, "enable_fp_fusion": False, **source.parse_options()})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    metadata: dict[str, Any] = {"target": target, **options.__dict__}
    implementations = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(target, options, *implementations, context)
    for stage in ("ttir", "ttgir", "llir"):
        module = stages[stage](module, metadata)
    return metadata["shared"]


def _cut(name: str, architecture: str, configuration: Mapping[str, int] | None) -> Variant:
    variant = all_variants()[name]
    return variant.at(architecture) if configuration is None else variant.cut(configuration)


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
        target: "cuda:90", "hip:gfx942" and so on.
        configuration: instead of the tuning table's.

    Raises:
        ValueError: if there is no such target.
    """
    return resources_of(_cut(name, architecture_of(target), configuration), target)


def report(name: str, architecture: str, configuration: Mapping[str, int] | None = None) -> dict[str, Any]:
    """As resources, of any architecture as the tuning table names it, in plain data: for other processes.

    The binary stays in Triton's cache, where a launch finds it.

    Raises:
        ValueError: if it names no GPU.
    """
    target = target_of(architecture)
    return asdict(resources(name, f"{target.backend}:{target.arch}", configuration))


def resources_of(variant: Variant, target: str) -> Resources:
    """As resources, of any variant in a configuration."""
    compiled = compile_variant(variant, target_of(architecture_of(target)))
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
    tiles = len(re.findall(r"\bUTMA(?:LDG|STG)\b", asm))
    return Resources(variant.name, target, registers, spills, stack, shared, *wide, tiles, tensor_core)


def _table(reports: Sequence[Resources]) -> str:
    head = tuple(field.name.replace("_", " ") for field in fields(Resources))
    rows = [head, *[tuple(map(str, asdict(r).values())) for r in reports]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: compiles, reports, and returns 1 if a variant spills, uses a stack or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m flexkern.triton_kernels.aot", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="default: all; may be repeated"
    )
    parser.add_argument("--variant", action="append", metavar="NAME", help="default: all; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--shared", action="store_true", help="only shared memory, which takes a fifth of the time"
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler by the interpreter; unset it")
    for name in options.variant or ():
        if name not in all_variants():
            near = difflib.get_close_matches(name, all_variants(), 3)
            parser.error(f"there is no variant {name!r}; did you mean one of {near}?")
    chosen = [
        (variant, target)
        for target in options.target or TARGETS
        for variant in variants_on(architecture_of(target))
        if variant in (options.variant or all_variants())
    ]
    if options.shared:
        found = [(*pair, shared_memory(pair[0], architecture_of(pair[1]))) for pair in chosen]
        print("\n".join(f"{shared:>7}  {target}  {variant}" for variant, target, shared in found))
        return _does_not_fit(found)
    reports = [resources(*pair) for pair in chosen]
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(r) for r in reports]}, indent=1))
    else:
        print(_table(reports))
    over = _does_not_fit([(r.variant, r.target, r.shared) for r in reports])
    return int(over or any(r.spills or r.stack for r in reports))


def _does_not_fit(found: Sequence[tuple[str, str, int]]) -> int:
    """Says which variants have more shared memory than their targets; 1 if some have."""
    over = [one for one in found if one[2] > limit_of(architecture_of(one[1]))]
    for variant, target, shared in over:
        limit = limit_of(architecture_of(target))
        print(
            f"{variant} needs {shared} bytes of shared memory of {target}, which has {limit}", file=sys.stderr
        )
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
