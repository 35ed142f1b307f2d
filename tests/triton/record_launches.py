"""Run by test_aot.py in a process without the interpreter: what would each launch compile?

Records launches instead of making them, looks each up among the variants of aot.py, and prints a JSON.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
from triton.compiler import make_backend
from triton.runtime import jit

from flexkern import Field
from flexkern.fields import Kind
from flexkern.ops.field import FILL
from flexkern.ops.mask import PACK, UNPACK
from flexkern.ops.metaplastic import GATE, SGD
from flexkern.triton_kernels import aot

recorded: list[tuple[Any, tuple, dict[str, Any]]] = []


def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    recorded.append((kernel, args, options))


def compiled_for(kernel: Any, args: tuple, options: dict[str, Any]) -> str:
    """What Triton would look up its compiled kernel by: types, constants and options."""
    backend = make_backend(aot.TARGETS["cuda:90"])
    binder = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(*args, **options)
    constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr}
    types = {p.name: kind for p, (kind, *_) in zip(kernel.params, specialization, strict=True)}
    attributes = [key for _, key in specialization if isinstance(key, str) and key]
    return repr((kernel.__name__, types, constants, attributes, sorted(rest.items())))


def expected_for(variant: aot.Variant) -> str:
    options = {"num_warps": variant.num_warps}
    if "TILE" in variant.constants:
        options["enable_fp_fusion"] = False
    return repr((variant.kernel.__name__, variant.signature(), variant.constants, [], sorted(options.items())))


def step_all() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    pairs = [(w, g) for w in dtypes for g in dict.fromkeys((w, torch.float32))]
    uniform, normal = Field.uniform(1).source(), Field.normal(2**64 - 1, offset=2**40).source()
    mixed = ([], [], [], uniform[0] + normal[0], uniform[1] + normal[1])
    # 0, 1 and multiples of 16 are what Triton makes variants for where it may
    for (w, g), momentum, numel, number in itertools.product(
        pairs, (False, True), (1, 16, 1040), (0.0, 1.0, 0.3)
    ):
        ones = [torch.ones(numel) for _ in range(4)]
        weight, grad = torch.ones(numel, dtype=w), torch.ones(numel, dtype=g)
        states = {
            "stored": ([ones[0]], [ones[1]], [], [], []),
            "mixed": mixed,
            "held": ([], [], [ones[0]], [], []),
        }
        for state in states.values():
            SGD.on("triton")(
                [weight], [grad], *state, [ones[2]] if momentum else [],
                [] if w is torch.float32 else [ones[3]], number, torch.ones(1) if number == 1 else None, number,
                torch.ones(1) if number == 0 else None, number, number, 0.0,
                number == 1, number == 0, number == 1,
            )  # fmt: skip


def fill_pack_and_gate() -> None:
    for numel, offset in itertools.product((1, 16, 2048), (0, 1)):
        memory = torch.ones(numel + 1)[offset:][:numel]
        FILL.on("triton")(memory, *Field.uniform(offset, offset).source())
        FILL.on("triton")(memory, [int(Kind.CONSTANT), 0, 0, 0, 0], [1.0, 0.0])
        GATE.on("triton")(memory, [memory.clone()], [memory.clone()], [], [], float(offset), None)
        uniform = Field.uniform(1).source()
        GATE.on("triton")(memory, [], [], uniform[0] * 2, uniform[1] * 2, 1.0, torch.ones(1))
    for rows, columns in itertools.product((1, 16), (1, 15, 16, 48, 4096)):
        mask = torch.ones(rows, columns, dtype=torch.bool)
        UNPACK.on("triton")(PACK.on("triton")(mask), columns)


def main() -> None:
    jit.JITFunction.run = record
    step_all()
    fill_pack_and_gate()
    registry = {expected_for(variant): name for name, variant in aot.VARIANTS.items()}
    calls = [compiled_for(*launch) for launch in recorded]
    report = {
        "launches": len(calls),
        "variants": len(registry),
        "unknown": sorted({call for call in calls if call not in registry}),
        "unused": sorted(set(registry.values()) - {registry.get(call) for call in calls}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
