"""Compiles every kernel variant ahead of time, for GPUs that are not here: registers, spills, access widths.

``python -m flexkern.triton_kernels.aot`` prints a table, ``--json`` the same as JSON; exit code 1 if a variant
spills. It needs no GPU. TRITON_INTERPRET must not be 1: the interpreter takes the place of the compiler.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from flexkern.fields import Kind
from flexkern.triton_kernels import (
    adapter_bank,
    adapter_pass,
    linear,
    mask,
    memory,
    metaplastic,
    synapse,
    tuning,
)
from flexkern.triton_kernels.adapter_bank import variant_of
from flexkern.triton_kernels.field import fill_kernel
from flexkern.triton_kernels.product import arithmetic

__all__ = ["TARGETS", "VARIANTS", "Resources", "Variant", "compile_variant", "resources", "resources_of"]

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}


def architecture_of(target: str) -> str:
    """A target, one of TARGETS, as the tuning table names it."""
    kind, _, chip = target.partition(":")
    return f"sm_{chip}" if kind == "cuda" else chip


@dataclass(frozen=True)
class Variant:
    """A kernel with its constexpr arguments: what one compilation at run time makes.

    Args:
        name: for reports.
        kernel: a triton.JITFunction.
        constants: its constexpr arguments, but for those that :meth:`at` adds.
        tuned: kernel and variant in the tuning table; None: ``options`` are all there is.
        options: what the compiler is told.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    tuned: tuple[str, str] | None = None
    options: dict[str, int] = field(default_factory=dict)

    def at(self, target: str) -> "Variant":
        """This variant as it is launched on a target, one of TARGETS."""
        if self.tuned is None:
            return self
        aligned = self.constants.get("ALIGNED", True)
        return self.cut(tuning.config(*self.tuned, architecture_of(target), bounded=aligned))

    def cut(self, configuration: dict[str, int]) -> "Variant":
        """This variant in a configuration as the tuning table has them."""
        wanted = {p.name for p in self.kernel.params if p.is_constexpr} - self.constants.keys()
        cuts = {name.upper(): value for name, value in configuration.items() if name.upper() in wanted}
        if "STAGES" in wanted:
            cuts["STAGES"] = configuration["num_stages"]
        return replace(
            self, constants=self.constants | cuts, options=tuning.launch_options(configuration), tuned=None
        )

    def signature(self) -> dict[str, str]:
        """Parameter name to type. All are annotated and none is specialised, so a variant is compiled once."""
        return {p.name: "constexpr" if p.is_constexpr else p.annotation_type for p in self.kernel.params}


FOUR_WARPS = {"num_warps": 4}


@dataclass(frozen=True)
class Resources:
    """What a compiled variant needs of a GPU.

    Args:
        registers: 32-bit registers a thread (vector registers on AMD).
        spills: bytes of local memory a thread on NVIDIA; spilled vector registers on AMD, whose scalar ones
        spill
            into lanes of vector registers and touch no memory.
        stack: bytes of stack a thread.
        shared: bytes of shared memory a program.
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


def _sgd_variants() -> Iterable[Variant]:
    sources = {"stored": metaplastic.STORED, "mixed": metaplastic.MIXED, "held": metaplastic.HELD}
    dtypes = (tl.float32, tl.bfloat16, tl.float16)
    pairs = [(w, g) for w in dtypes for g in dict.fromkeys((w, tl.float32))]
    for (w, g), has_momentum, (name, mode) in product(pairs, (False, True), sources.items()):
        constants = {"WEIGHT_DTYPE": w, "GRAD_DTYPE": g, "HAS_MOMENTUM": has_momentum, "SOURCES": mode.value}
        full_name = f"sgd-{name}-{w}-{g}{'-momentum' if has_momentum else ''}"
        yield Variant(full_name, metaplastic.sgd_kernel, constants, ("sgd", name))


# held, and the kinds of anchor and flexibility
_LAYERS = {
    "stored": (False, Kind.STORED, Kind.STORED),
    "mixed": (False, Kind.NORMAL, Kind.UNIFORM),
    "held": (True, Kind.STORED, Kind.CONSTANT),
}


def _layer_constants(sources: str) -> dict[str, Any]:
    held, anchor, flexibility = _LAYERS[sources]
    return {"HELD": held, "A_KIND": int(anchor), "F_KIND": int(flexibility)}


def _synapse_variants() -> Iterable[Variant]:
    for dtype, sources, rate in product((tl.float32, tl.bfloat16), ("stored", "mixed"), (True, False)):
        yield _synapse_variant(f"{sources}-{dtype}-{'rate' if rate else 'matrix'}", dtype, sources, rate)
    yield _synapse_variant("held-fp32-rate", tl.float32, "held", True)
    yield _synapse_variant("stored-fp32-rate-momentum", tl.float32, "stored", True, momentum=True)
    yield _synapse_variant("stored-bf16-matrix-hebbian", tl.bfloat16, "stored", False, hebbian=True)
    yield _synapse_variant("mixed-fp32-rate-unaligned", tl.float32, "mixed", True, aligned=False)


def _synapse_variant(
    name: str,
    dtype: Any,
    sources: str,
    rate: bool,
    *,
    momentum: bool = False,
    hebbian: bool = False,
    aligned: bool = True,
) -> Variant:
    constants = {
        "WEIGHT_DTYPE": dtype, "GRAD_DTYPE": dtype, "HAS_MOMENTUM": momentum, **_layer_constants(sources),
        "RATE": rate, "HEBBIAN": hebbian, "ALIGNED": aligned,
    }  # fmt: skip
    return Variant(f"synapse-{name}", synapse.synapse_kernel, constants, ("synapse", sources))


PRODUCTS = {
    "bf16": (torch.bfloat16, "ieee"), "fp16": (torch.float16, "ieee"), "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}  # fmt: skip


def _linear_variants() -> Iterable[Variant]:
    drives = {"": linear.NOBODY, "-hebbian": linear.HEBBIAN}
    for x, (drive, how), sources in product(PRODUCTS, drives.items(), ("stored", "mixed")):
        yield _linear_variant(f"{x}-{sources}{drive}", PRODUCTS[x], sources, how.value)
    yield _linear_variant("bf16-stored-rate", PRODUCTS["bf16"], "stored", linear.RATE.value)
    yield _linear_variant("bf16-held", PRODUCTS["bf16"], "held", linear.NOBODY.value)
    yield _linear_variant("bf16-stored-bf16", PRODUCTS["bf16"], "stored", linear.NOBODY.value, tl.bfloat16)


def _linear_variant(
    name: str, of_product: tuple[torch.dtype, str], sources: str, drive: int, weight: Any = tl.float32
) -> Variant:
    dtype, precision = of_product
    layer = _layer_constants(sources)
    if sources == "held":
        layer["A_KIND"] = int(Kind.CONSTANT)  # without silent synapses nobody needs an anchor
    constants = {
        "WEIGHT_DTYPE": weight, "X_DTYPE": metaplastic.TRITON_DTYPES[dtype], "PRECISION": precision,
        "HAS_MOMENTUM": False, **layer, "DRIVE": drive, "INSERTS_C": False, "ALIGNED": True,
        "ALIGNED_ROWS": True,
    }  # fmt: skip
    silent = "" if drive == linear.NOBODY.value else "-silent"
    return Variant(
        f"linear-{name}", linear.linear_kernel, constants, ("linear", arithmetic(dtype, precision) + silent)
    )


def _adapter_variants() -> Iterable[Variant]:
    """Training (dropout, a residual) and inference at rank 64; and rank 16, and sizes that are not aligned."""
    training = {"HAS_RESIDUAL": True, "DROPOUT": True, "KEEPS_HIDDEN": True}
    inference = {"HAS_RESIDUAL": True, "DROPOUT": False, "KEEPS_HIDDEN": False}
    backward = {"NEEDS_X": True, "NEEDS_BANK": True}
    shapes = [(x, 64, True) for x in PRODUCTS] + [("bf16", 16, True), ("ieee", 16, True), ("bf16", 16, False)]
    for x, rank, aligned in shapes:
        dtype, precision = PRODUCTS[x]
        name = f"{x}{'' if rank == 64 else f'-{rank}'}{'' if aligned else '-unaligned'}"
        sizes = {
            "DTYPE": metaplastic.TRITON_DTYPES[dtype], "PRECISION": precision, "ALIGNED": aligned,
            "ALIGNED_RANK": aligned, "RANK": rank,
        }  # fmt: skip
        by_sample = sizes | {"INDEX_DTYPE": tl.int64}
        forward_kernel, backward_kernel = adapter_pass.forward_kernel, adapter_pass.backward_kernel
        tuned = variant_of(dtype, precision, rank)
        forward = ("adapter forward", tuned)
        yield Variant(f"adapter-{name}", forward_kernel, by_sample | training, forward)
        if rank == 64:
            yield Variant(f"adapter-inference-{name}", forward_kernel, by_sample | inference, forward)
        yield Variant(
            f"adapter-backward-{name}", backward_kernel, by_sample | backward, ("adapter backward", tuned)
        )
        yield Variant(f"adapter-parts-{name}", adapter_bank.part_kernel, sizes, ("adapter bank", tuned))
    order = {"INDEX_DTYPE": tl.int64, "BLOCK": adapter_bank.ORDER_BLOCK}
    yield Variant("adapter-order", adapter_bank.order_kernel, order, options=FOUR_WARPS)
    for dtype in metaplastic.TRITON_DTYPES.values():
        total = {"DTYPE": dtype, "BLOCK": adapter_bank.SUM_BLOCK, "PARTS": adapter_bank.SUM_PARTS}
        yield Variant(f"adapter-total-{dtype}", adapter_bank.total_kernel, total, options=FOUR_WARPS)


def _variants() -> Iterable[Variant]:
    yield from _sgd_variants()
    yield from _synapse_variants()
    yield from _linear_variants()
    yield from _adapter_variants()
    for name, mode in (("stored", metaplastic.STORED), ("mixed", metaplastic.MIXED)):
        yield Variant(f"gate-{name}", metaplastic.gate_kernel, {"SOURCES": mode.value}, ("gate", name))
    yield Variant("fill", fill_kernel, {}, ("fill", "any"))
    for kernel, unit in product((mask.pack_kernel, mask.unpack_kernel), (1, memory.ALIGNMENT)):
        name = f"{kernel.__name__.removesuffix('_kernel')}{'-aligned' if unit > 1 else ''}"
        yield Variant(name, kernel, {"WORDS": mask.WORDS, "UNIT": unit}, options={"num_warps": mask.NUM_WARPS})


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _variants()}


def compile_variant(variant: Variant, target: GPUTarget) -> CompiledKernel:
    """Compiles exactly what a launch of the variant would on such a GPU."""
    source = ASTSource(variant.kernel, variant.signature(), variant.constants)
    return triton.compile(source, target=target, options={**variant.options, "enable_fp_fusion": False})


def _nvidia_tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_nvidia_tool("cuobjdump"), option, str(path)]
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


def resources(name: str, target: str) -> Resources:
    """Compiles a variant by name and reads what it needs from the binary."""
    return resources_of(VARIANTS[name].at(target), target)


def resources_of(variant: Variant, target: str) -> Resources:
    """As resources, of any variant in a configuration."""
    compiled = compile_variant(variant, TARGETS[target])
    shared = compiled.metadata.shared
    if target.startswith("cuda"):
        usage = _cuobjdump(compiled.asm["cubin"], "--dump-resource-usage")
        asm = _cuobjdump(compiled.asm["cubin"], "--dump-sass")
        registers, spills, stack = (_find(rf"{key}:(\d+)", usage) for key in ("REG", "LOCAL", "STACK"))
    else:
        asm = compiled.asm["amdgcn"]
        registers = _find(r"\.vgpr_count:\s+(\d+)", asm)
        spills = _find(r"\.vgpr_spill_count:\s+(\d+)", asm)
        stack = _find(r"\.private_segment_fixed_size:\s+(\d+)", asm)
    tensor_core = len(re.findall(r"\bHGMMA\b|\bUTC\w*MMA\b|\bHMMA\b|\bv_mfma_", asm))
    wide = _wide(asm, "load"), _wide(asm, "store"), len(re.findall(r"\bLDGSTS\.E\S*\.128\b", asm))
    return Resources(variant.name, target, registers, spills, stack, shared, *wide, tensor_core)


def _table(reports: Sequence[Resources]) -> str:
    head = (
        "variant",
        "target",
        "registers",
        "spills",
        "stack",
        "shared",
        "wide loads",
        "wide stores",
        "wide copies",
        "tensor core",
    )
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
        "--variant", action="append", choices=list(VARIANTS), help="default: all; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler by the interpreter; unset it")
    pairs = product(options.variant or VARIANTS, options.target or TARGETS)
    reports = [resources(variant, target) for variant, target in pairs]
    if options.json:
        print(json.dumps({"triton": triton.__version__, "kernels": [asdict(r) for r in reports]}, indent=1))
    else:
        print(_table(reports))
    return int(any(r.spills or r.stack for r in reports))


if __name__ == "__main__":
    sys.exit(main())
