"""Run by test_aot.py in a process without the interpreter: what would each launch compile?

Records launches instead of making them, looks each up among the variants of the registry, and prints a JSON.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
from triton.compiler import make_backend
from triton.runtime import jit

from flexkern import Field
from flexkern.backends import tuning
from flexkern.fields import Kind
from flexkern.ops.adapter import BACKWARD, FORWARD
from flexkern.ops.displacement import DISPLACEMENT
from flexkern.ops.field import FILL
from flexkern.ops.linear import LINEAR
from flexkern.ops.linear import STEPS as LINEAR_STEPS
from flexkern.ops.mask import PACK, UNPACK
from flexkern.ops.metaplastic import ADAMW, GATE, SGD
from flexkern.ops.null import NULL
from flexkern.ops.synapse import STEPS as SYNAPSE_STEPS
from flexkern.ops.synapse import SYNAPSE
from flexkern.triton_kernels import (
    adapter,
    aot,
    displacement,
    field,
    linear,
    linear_tma,
    mask,
    metaplastic,
    synapse,
)
from flexkern.triton_kernels.catalogue import all_variants
from flexkern.triton_kernels.variant import Variant

TARGET = "cuda:90"
ARCHITECTURE = aot.architecture_of(TARGET)
recorded: list[tuple[Any, tuple, dict[str, Any]]] = []


def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    recorded.append((kernel, args, options))


def compiled_for(kernel: Any, args: tuple, options: dict[str, Any]) -> str:
    """What Triton would look up its compiled kernel by: types, constants and options."""
    backend = make_backend(aot.TARGETS[TARGET])
    binder = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(*args, **options)
    constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr}
    types = {p.name: kind for p, (kind, *_) in zip(kernel.params, specialization, strict=True)}
    attributes = [
        key for p, (_, key) in zip(kernel.params, specialization, strict=True)
        if isinstance(key, str) and key and not p.is_constexpr
    ]  # fmt: skip
    return repr((kernel.__name__, types, constants, attributes, sorted(rest.items())))


def expected_for(variant: Variant) -> str:
    options: dict[str, Any] = dict(variant.options)
    if variant.kernel not in (mask.pack_kernel, mask.unpack_kernel):  # these compute with integers
        options["enable_fp_fusion"] = False
    constants = {p.name: variant.constants[p.name] for p in variant.kernel.params if p.is_constexpr}
    return repr((variant.kernel.__name__, variant.signature(), constants, [], sorted(options.items())))


def step_all() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    pairs = [(w, g) for w in dtypes for g in dict.fromkeys((w, torch.float32))]
    uniform, normal = Field.uniform(1).source(), Field.normal(2**64 - 1, offset=2**40).source()
    mixed = (uniform[0] + normal[0], uniform[1] + normal[1])
    # 0, 1 and multiples of 16 are what Triton makes variants for where it may
    for (w, g), momentum, numel, number in itertools.product(
        pairs, (False, True), (1, 16, 1040), (0.0, 1.0, 0.3)
    ):
        ones = [torch.ones(numel) for _ in range(4)]
        weight, grad = torch.ones(numel, dtype=w), torch.ones(numel, dtype=g)
        states = {
            "stored": ([ones[0]], [ones[1]], number, number),
            "mixed": (None, None, number, number, None, *mixed),
            "held": (None, None, number, number, [ones[0]]),
        }
        for state in states.values():
            SGD.on("triton")(
                [weight], [grad], *state,
                momentum_buffer=[ones[2]] if momentum else None,
                master=None if w is torch.float32 else [ones[3]],
                lr_tensor=torch.ones(1) if number == 1 else None,
                scale_tensor=torch.ones(1) if number == 0 else None,
                weight_decay=number, momentum=number, nesterov=number == 1, maximize=number == 0,
                skip_nonfinite=number == 1,
            )  # fmt: skip
            ADAMW.on("triton")(
                [weight], [grad], *state,
                exp_avg=[ones[2]], exp_avg_sq=[ones[2].clone()],
                max_exp_avg_sq=[ones[2].clone()] if momentum else None,
                step=[torch.ones(16)[int(number) :][:1]],
                master=None if w is torch.float32 else [ones[3]],
                lr_tensor=torch.ones(1) if number == 1 else None,
                scale_tensor=torch.ones(1) if number == 0 else None,
                weight_decay=number, eps=number, beta1=number / 2, beta2=number / 2, amsgrad=momentum,
                maximize=number == 0, skip_nonfinite=number == 1,
            )  # fmt: skip


def scale_displacements() -> None:
    uniform, normal = Field.uniform(1).source(), Field.normal(2**64 - 1, offset=2**40).source()
    for dtype, numel, number in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (1, 16, 1040), (0.0, 1.0, 0.3)
    ):
        ones = [torch.ones(numel) for _ in range(3)]
        for gate in (
            ([ones[0]], [ones[1]], number),
            (None, None, number, None, uniform[0] + normal[0], uniform[1] + normal[1]),
            (None, None, number, [ones[0]]),
        ):
            DISPLACEMENT.on("triton")(
                [torch.ones(numel, dtype=dtype)], [torch.ones(numel, dtype=dtype)], *gate,
                master=None if dtype is torch.float32 else [ones[2]],
                scale_tensor=torch.ones(1) if number == 0 else None, skip_nonfinite=number == 1,
            )  # fmt: skip


def fill_pack_and_gate() -> None:
    for numel, offset in itertools.product((1, 16, 2048), (0, 1)):
        memory = torch.ones(numel + 1)[offset:][:numel]
        FILL.on("triton")(memory, *Field.uniform(offset, offset).source())
        FILL.on("triton")(memory, [int(Kind.CONSTANT), 0, 0, 0, 0], [1.0, 0.0])
        GATE.on("triton")(memory, memory.clone(), memory.clone(), float(offset))
        uniform = Field.uniform(1).source()
        GATE.on("triton")(memory, None, None, 1.0, uniform[0] * 2, uniform[1] * 2, torch.ones(1))
    for rows, columns in itertools.product((1, 16), (1, 15, 16, 48, 4096)):
        mask = torch.ones(rows, columns, dtype=torch.bool)
        UNPACK.on("triton")(PACK.on("triton")(mask), columns)


def step_layers() -> None:
    """What aot.py has of the passes over a layer, with numbers and sizes that Triton likes to specialise on."""
    for (rows, columns), number in itertools.product(((1, 16), (16, 16), (136, 264)), (0.0, 1.0, 0.3)):
        step_layer(rows, columns, number)


def step_layer(rows: int, columns: int, number: float) -> None:
    uniform, normal = Field.uniform(1).source(), Field.normal(2**64 - 1, offset=2**40).source()
    mixed = {
        "anchor": None, "flexibility": None,
        "sources": normal[0] + uniform[0], "parameters": normal[1] + uniform[1],
    }  # fmt: skip
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    shape = (rows, columns)
    one = [torch.ones(shape) for _ in range(4)]
    stored = {"anchor": one[0], "flexibility": one[1]}
    held = {
        "anchor": one[0], "flexibility": None, "alpha": one[1],
        "sources": [0] * 5 + [1, 0, 0, 0, 0], "parameters": [0.0, 0.0, 1.0, 0.0],
    }  # fmt: skip
    words = torch.zeros((rows, -(-columns // 32)), dtype=torch.int32)
    units = [torch.ones(columns), torch.ones(rows)]
    c = [torch.ones(shape)]
    tensor = torch.ones(1) if number == 1 else None
    theta = torch.ones(rows) if number == 0 else None
    of_adamw = {
        "exp_avg": one[2], "exp_avg_sq": one[2].clone(), "max_exp_avg_sq": one[2].clone(), "amsgrad": True,
        "step": torch.ones(1), "beta1": number / 2, "beta2": number / 2, "eps": number,
    }  # fmt: skip
    rest = {
        "threshold": number, "lr": number, "scale": number, "threshold_tensor": theta, "lr_tensor": tensor,
        "scale_tensor": tensor, "eta": number, "prune": number, "weight_decay": number, "momentum": number,
        "nesterov": number == 1, "maximize": number == 0, "skip_nonfinite": number == 1,
    }  # fmt: skip

    def synapse(dtype: Any, state: Any, activities: Any, momentum: bool = False, hebbian: bool = False) -> None:
        SYNAPSE.on("triton")(
            torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype), **state, silent=words,
            activities=activities,
            momentum_buffer=one[2] if momentum else None, master=None if dtype is fp32 else one[3],
            hebbian=hebbian, **rest,
        )  # fmt: skip

    for dtype, state, activities in itertools.product((fp32, bf16), (stored, mixed), (units, c)):
        synapse(dtype, state, activities)
    synapse(fp32, held, units)
    synapse(fp32, stored, units, momentum=True)
    of_all = {name: value for name, value in rest.items() if name not in ("momentum", "nesterov")}
    SYNAPSE_STEPS["synapse_adamw_step_"].on("triton")(
        torch.zeros(shape), torch.ones(shape), **stored, silent=words, activities=units, **of_adamw, **of_all
    )
    synapse(bf16, stored, c, hebbian=True)
    odd = torch.zeros(rows, 37), torch.ones(rows, 37)
    SYNAPSE.on("triton")(
        *odd, **mixed, silent=torch.zeros(rows, 2, dtype=torch.int32),
        activities=[torch.ones(37), units[1]], **rest
    )  # fmt: skip
    if rows % 8:
        return

    def linear(dtype: Any, state: Any, activities: Any, weight: Any = fp32) -> None:
        batch = 0 if number == 0 else 16
        x, post = torch.ones(batch, columns, dtype=dtype), [torch.ones(batch, rows, dtype=dtype)]
        listed = {None: [], "hebbian": post, "rate": units}[activities]
        LINEAR.on("triton")(
            torch.zeros(shape, dtype=weight), x, torch.ones(batch, rows, dtype=dtype), **state,
            silent=words if activities else None, activities=listed,
            master=None if weight is fp32 else one[3], **rest,
        )  # fmt: skip

    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        for dtype, state, activities in itertools.product(
            (fp32, bf16, fp16), (stored, mixed), (None, "hebbian")
        ):
            linear(dtype, state, activities)
    linear(bf16, stored, "rate")
    linear(bf16, held, None)
    linear(bf16, stored, None, weight=bf16)
    with tuning.trial("linear", "half", linear_tma.PROPOSED):
        for dtype, state in ((bf16, stored), (bf16, held), (fp16, stored)):
            linear(dtype, state, None)
    with tuning.trial("linear", "tf32", linear_tma.PROPOSED_TF32):
        linear(fp32, stored, None)
    LINEAR_STEPS["linear_adamw_step_"].on("triton")(
        torch.zeros(shape), torch.ones(16, columns, dtype=bf16), torch.ones(16, rows, dtype=bf16), **stored,
        silent=None, activities=[], **of_adamw, **of_all,
    )  # fmt: skip


def pass_adapters() -> None:
    """The passes through adapters of every rank, with numbers and sizes that Triton likes to specialise on."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        for number, samples, tasks in ((0.0, 1, 1), (1.0, 16, 16), (0.3, 5, 2)):
            for dtype in (bf16, fp16, fp32):
                pass_adapter(dtype, number, samples, tasks, d=768, r=64)
        for dtype, r in itertools.product((bf16, fp16, fp32), (8, 32, 56, 128, 256, 512)):
            pass_adapter(dtype, 0.3, 2, 3, d=48, r=r)
            pass_adapter(dtype, 1.0, 1, 1, d=33, r=r - 1)


def pass_adapter(dtype: torch.dtype, number: float, samples: int, tasks: int, d: int, r: int) -> None:
    x = torch.ones(samples, 16, d, dtype=dtype)
    down, up = torch.ones(tasks, d, r, dtype=dtype), torch.ones(tasks, r, d, dtype=dtype)
    biases = torch.ones(tasks, r, dtype=dtype), torch.ones(tasks, d, dtype=dtype)
    index, seed = torch.zeros(samples, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    bank = (down, biases[0], up, biases[1], index, x.clone())
    FORWARD.on("triton")(x, *bank, None, number, 0.0, False)
    _, hidden = FORWARD.on("triton")(x, *bank, seed, number, 0.5, True)
    BACKWARD.on("triton")(x.clone(), x, hidden, down, up, index, number, 0.5, True, True)


def main() -> None:
    jit.JITFunction.run = record
    for module in (adapter, displacement, field, linear, metaplastic, synapse):  # there is no device to ask
        module.architecture = lambda device: ARCHITECTURE
    step_all()
    scale_displacements()
    fill_pack_and_gate()
    NULL.on("triton")(torch.ones(1025), 2.0)
    step_layers()
    pass_adapters()
    registry = {expected_for(variant.at(ARCHITECTURE)): name for name, variant in all_variants().items()}
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
