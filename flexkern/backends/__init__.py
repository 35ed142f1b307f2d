"""Which implementations exist on this machine, which one runs, and why one is missing.

Four backends: ``reference`` (plain PyTorch, always there), ``cpu`` and ``cuda`` (the compiled extension) and
``triton``. ``auto``, the default, takes the fastest that serves; an explicit choice that cannot serve raises.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from flexkern.backends import tuning

__all__ = [
    "BackendError",
    "Status",
    "backends",
    "choose",
    "prefers_compiled_cpu",
    "requested",
    "use_backend",
]

LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"
NAMES = ("reference", "cpu", "cuda", "triton")
_REINSTALL = "reinstall with `pip install --no-cache-dir --force-reinstall --no-deps flexkern`"


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve; the message says why and what to do."""


class Status(NamedTuple):
    """Whether a backend can be used here, and one line that says why or why not."""

    available: bool
    reason: str


def _load_library(name: str) -> Status:
    path = LIBRARY_DIR / f"libflexkern_{name}.so"
    if not path.exists():
        if name == "cuda" and (LIBRARY_DIR / "libflexkern_cpu.so").exists():
            why = "flexkern was built without nvcc; set CUDA_HOME or put nvcc on PATH"
        else:
            why = "flexkern was installed without its compiled extension; install a C++17 compiler"
        return Status(False, f"{why}, then {_REINSTALL}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Status(False, f"{path.name} does not load: {error}; {_REINSTALL}")
    return Status(True, str(path))


def _cuda_status() -> Status:
    if torch.version.cuda is None:
        built = "; its CUDA kernels are built" if (LIBRARY_DIR / "libflexkern_cuda.so").exists() else ""
        return Status(False, f"torch {torch.__version__} is built without CUDA{built}")
    status = _load_library("cuda")
    if status.available and not torch.cuda.is_available():
        return Status(False, "torch sees no NVIDIA GPU (torch.cuda.is_available() is False)")
    return status


def _triton_status() -> Status:
    if importlib.util.find_spec("triton") is None:
        return Status(False, "triton is not installed; `pip install triton`")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Status(True, "interpreter (TRITON_INTERPRET=1): runs on CPU tensors, slowly, for checking")
    if not torch.cuda.is_available():
        return Status(False, "torch sees no GPU; TRITON_INTERPRET=1 runs the kernels on CPU tensors")
    return Status(True, "compiles for the GPU at first use")


_STATUS: dict[str, Status] = {
    "reference": Status(True, "plain PyTorch"),
    "cpu": _load_library("cpu"),
    "cuda": _cuda_status(),
    "triton": _triton_status(),
}
if torch.cuda.is_available():
    tuning.table()  # torch.compile traces `choose`, and could not look into a file


def backends() -> dict[str, Status]:
    """What is available here: backend name to :class:`Status`, with the reason for each."""
    return dict(_STATUS)


def _check_name(name: str, where: str = "backend") -> str:
    if name != "auto" and name not in NAMES:
        raise ValueError(f"{where} must be one of {('auto', *NAMES)}, got {name!r}")
    return name


_requested = _check_name(
    os.environ.get("FLEXKERN_BACKEND", "auto"), "the environment variable FLEXKERN_BACKEND"
)


def requested() -> str:
    """The backend asked for: by :func:`use_backend`, else by FLEXKERN_BACKEND, else ``auto``."""
    return _requested


class use_backend:  # noqa: N801 - it is called like a function, as torch.set_grad_enabled is
    """Chooses the backend of all operators from here on, or, in a ``with`` statement, inside the block.

    Args:
        name: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Raises:
        ValueError: if there is no backend of that name.
        BackendError: if it is not available here; the message says why.
    """

    def __init__(self, name: str) -> None:
        global _requested
        if _check_name(name) != "auto" and not _STATUS[name].available:
            raise BackendError(f"backend {name!r} is not available: {_STATUS[name].reason}")
        self._previous = _requested
        _requested = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested
        _requested = self._previous


def _serves(name: str, device: torch.device) -> str | None:
    """None if the backend can work on tensors of this device, else why not."""
    if not _STATUS[name].available:
        return _STATUS[name].reason
    if name in ("cpu", "cuda") and device.type != name:
        return f"it works on {name} tensors, these are on {device}"
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it works on GPU tensors, these are on the CPU (TRITON_INTERPRET=1 runs them in the interpreter)"
    return None


def _order(op: str, device: torch.device) -> tuple[str, ...]:
    """The backends to try before the reference, the fastest first. No cache: torch.compile traces this."""
    if device.type != "cuda":
        return (device.type,) if device.type == "cpu" else ()
    major, minor = torch.cuda.get_device_capability(device)
    return tuning.fastest(op, f"sm_{10 * major + minor}")


def choose(op: str, device: torch.device, supported: Callable[[str], str | None]) -> str:
    """The backend that runs ``op`` on tensors of ``device``.

    Args:
        op: name for the error message.
        device: where the tensors are.
        supported: backend name to None, or to the reason why it cannot take these arguments.

    Raises:
        BackendError: if a backend was asked for by name and cannot serve.
    """
    if _requested != "auto":
        why = _serves(_requested, device) or supported(_requested)
        if why is not None:
            raise BackendError(f"{op}: backend {_requested!r} cannot serve: {why}")
        return _requested
    for name in _order(op, device):
        if _STATUS[name].available and supported(name) is None:
            return name
    return "reference"


def prefers_compiled_cpu() -> bool:
    """Whether :func:`choose` takes the compiled kernels for what they can do with CPU tensors."""
    return _requested in ("auto", "cpu") and _STATUS["cpu"].available
