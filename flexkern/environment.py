"""What this installation consists of: versions, compilers, backends and why each is or is not there."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from flexkern.backends import backends, built, choose, gpus, requested
from flexkern.ops import direct
from flexkern.spec import SPECS, Spec
from flexkern.version import __version__

__all__ = ["environment"]

TEMPLATE = "null"  # the worked example of an operator, which nothing calls


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build() -> dict[str, str] | None:
    info = built.build_info()
    if info is None:
        return None
    return info | {"instruction_set": built.instruction_set(), "direct_calls": direct.lacks() or "yes"}


def _gpus() -> list[dict[str, str]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": f"{properties.total_memory / 2**30:.0f}",
            }
        )
    return gpus


def _kinds_of_gpu() -> dict[str, torch.device]:
    """A GPU of each compute capability, by the name of its column."""
    if not torch.cuda.is_available():
        return {}
    kinds: dict[tuple[int, int], int] = {}
    for i in range(torch.cuda.device_count()):
        kinds.setdefault(torch.cuda.get_device_capability(i), i)
    return {f"cuda:{i}" if i else "cuda": torch.device("cuda", i) for i in kinds.values()}


def environment() -> dict[str, Any]:
    """Everything that a bug report needs, as plain data.

    Returns:
        ``versions``; ``build``, the compilers, GPU architectures and CPU instruction set of the compiled
        extension, and whether calls on the CPU go past torch's dispatcher (``direct_calls``: "yes", or why
        not), or None without it; ``driver``, the CUDA that the NVIDIA driver serves, or None; ``gpus``;
        ``requested``, the backend asked for; ``backends``, for each whether it is available and why;
        ``operators``, the backend that serves each on the CPU ("cpu"), on the first GPU ("cuda"), and on each
        that is of another kind than those before it ("cuda:1" and so on); ``lacking``, for each of them the
        backends that have no kernel of it, and why.
    """
    specs = [spec for spec in SPECS.values() if spec.name != TEMPLATE]
    devices = {"cpu": torch.device("cpu")} | _kinds_of_gpu()
    driver = gpus.driver()
    return {
        "versions": {
            "flexkern": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
        },
        "build": _build(),
        "driver": None if driver is None else ".".join(map(str, driver)),
        "gpus": _gpus(),
        "requested": requested(),
        "backends": {name: status._asdict() for name, status in backends().items()},
        "operators": {spec.name: {d: _serves(spec, at) for d, at in devices.items()} for spec in specs},
        "lacking": {spec.name: {b: spec.has_no_kernel(b) for b in spec.lacks} for spec in specs},
    }


def _serves(spec: Spec, device: torch.device) -> str:
    try:
        return choose(spec.name, device, spec.has_no_kernel)
    except RuntimeError as error:
        return f"none: {error}"
