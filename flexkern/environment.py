"""What this installation consists of: versions, compilers, backends and why each is or is not there."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any

import torch

from flexkern.backends import backends, choose, requested
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
    try:
        core = importlib.import_module("flexkern._core")
    except ImportError:
        return None
    return core.build_info()


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


def environment() -> dict[str, Any]:
    """Everything that a bug report needs, as plain data.

    Returns:
        ``versions``; ``build``, the compilers, GPU architectures and CPU instruction set of the compiled
        extension, or None without it; ``gpus``; ``requested``, the backend asked for; ``backends``, for each
        whether it is available and why; ``operators``, the backend that serves each on each device type here;
        ``lacking``, for each of them the backends that have no kernel of it, and why.
    """
    specs = [spec for spec in SPECS.values() if spec.name != TEMPLATE]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
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
        "gpus": _gpus(),
        "requested": requested(),
        "backends": {name: status._asdict() for name, status in backends().items()},
        "operators": {spec.name: {d.type: _serves(spec, d) for d in devices} for spec in specs},
        "lacking": {spec.name: {b: spec.has_no_kernel(b) for b in spec.lacks} for spec in specs},
    }


def _serves(spec: Spec, device: torch.device) -> str:
    try:
        return choose(spec.name, device, spec.has_no_kernel)
    except RuntimeError as error:
        return f"none: {error}"
