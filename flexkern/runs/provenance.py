"""What the bits of a run depend on beside its settings, and that a run which goes on finds it as it was.

The library's products add up in another order on another number of threads, another processor and in another
version (docs/determinism.md). Whoever goes on with a week's work must not learn of that afterwards.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flexkern.environment import environment

__all__ = ["decides_bits", "refuse_another"]

# Beside these only what a GPU computes with decides there.
_ON_A_GPU = (
    "flexkern",
    "torch",
    "numpy",
    "device",
    "backends",
    "requested_backend",
    "float32_products",
    "variables",
)
_ON_A_CPU = (
    *(name for name in _ON_A_GPU if name != "backends"), "processor", "threads", "capability", "instruction_set"
)  # fmt: skip
_ONLY_NOW = ("capability", "instruction_set", "processor")  # not recorded before
# They choose the library's kernels, or the order of its sums.
_VARIABLES = (
    "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


def decides_bits(device: torch.device, *, threads: int | None = None) -> dict[str, Any]:
    """What decides the last bits of a run on that device, beside the configuration; plain data.

    Args:
        device: that the run computes on.
        threads: of torch while it runs. Default: as many as now.
    """
    here = environment()
    versions, gpu = here["versions"], device.type == "cuda"
    return {
        "flexkern": versions["flexkern"],
        "torch": versions["torch"],
        "numpy": versions["numpy"],
        "python": versions["python"],
        "device_type": device.type,
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": None if here["build"] is None else here["build"]["instruction_set"],
        "float32_products": _float32_products(),
        "backends": [name for name, status in here["backends"].items() if status["available"]],
        "requested_backend": here["requested"],
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _float32_products() -> str:
    """How float32 is multiplied: in torch's old words, or its new ones where those do not fit."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to answer once the new setting says what the old one cannot
        on_cpu: Any = torch.backends.mkldnn
        products = {"GPU": torch.backends.cuda.matmul, "CPU": on_cpu.matmul}
        return ", ".join(f"{where}: {settings.fp32_precision}" for where, settings in products.items())


def refuse_another(
    begun: Mapping[str, Any] | None, now: Mapping[str, Any], out: Path, *, accept: bool, what: str = "a run"
) -> None:
    """Makes sure that work which was begun in one environment goes on in the same.

    Args:
        begun: of :func:`decides_bits` when it was begun, or last went on; None: nobody noted it.
        now: the same of now.
        out: the folder of the work.
        accept: another one is right; warns only.
        what: is in the folder, for the message.

    Raises:
        ValueError: saying what differs, and how to go on.
    """
    folder = repr(os.fspath(out))
    if begun is None or any(name not in begun for name in _ONLY_NOW):
        warnings.warn(
            f"out: {folder} holds {what} of an earlier version of flexkern, which did not note all that its "
            "bits depend on. It goes on; with another processor or number of threads not to the same bits",
            stacklevel=3,
        )
        return
    decide = _ON_A_CPU if now["device_type"] == "cpu" else _ON_A_GPU
    changed = [name for name in decide if begun.get(name) != now[name]]
    if not changed:
        return
    differs = "; ".join(f"{name} was {begun.get(name)!r}, is {now[name]!r}" for name in changed)
    if accept:
        warnings.warn(
            f"out: {folder} holds {what} that goes on in another environment ({differs}), and not to the bits "
            "that it would have come to",
            stacklevel=3,
        )
        return
    remedies = [_REMEDIES[name].format(begun.get(name)) for name in changed if name in _REMEDIES]
    as_begun = f" ({' '.join(remedies)})" if remedies else ""
    raise ValueError(
        f"out: {folder} holds {what} that was begun in another environment ({differs}), so it would not go on "
        f"to the same bits. Go on as it was begun{as_begun}, or accept the difference with "
        "--accept-other-environment (in Python accept_other_environment=True); or give another folder with "
        "--out, or discard that run with --restart"
    )


_REMEDIES = {
    "threads": "OMP_NUM_THREADS={}",
    "instruction_set": "FLEXKERN_ISA={}",
    "requested_backend": "FLEXKERN_BACKEND={}",
}


def _processor() -> str:
    """The model as the system says it: the library chooses its kernels by it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""
