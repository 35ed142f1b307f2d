"""Which implementations exist on this machine, which one runs, and why one is missing.

Four backends: ``reference`` (plain PyTorch, always there), ``cpu`` and ``cuda`` (the compiled extension) and
``triton``. ``auto``, the default, takes the fastest that serves; an explicit choice that cannot serve raises.

What is installed is found out at import, which asks no GPU: a process may still fork, or set
CUDA_VISIBLE_DEVICES. What runs on a GPU is found out, for each, at the first call with one of its tensors, or
by :func:`backends`.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple

import torch

from flexkern.backends import gpus, tuning
from flexkern.backends.built import LIBRARY_DIR, REINSTALL, build_info

__all__ = [
    "BackendError",
    "Status",
    "backends",
    "choose",
    "installed",
    "prefers_compiled_cpu",
    "requested",
    "requested_in_block",
    "use_backend",
]

NAMES = ("reference", "cpu", "cuda", "triton")


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve; the message says why and what to do."""


class Status(NamedTuple):
    """Whether a backend can be used here, and one line that says why or why not."""

    available: bool
    reason: str


# ------------------------------------------------------------------ what is installed


def _load_library(name: str) -> Status:
    path = LIBRARY_DIR / f"libflexkern_{name}.so"
    if not path.exists():
        info = build_info() if name == "cuda" else None
        if info is not None:
            why = info["cuda_compiler"].removeprefix("none: ")
            cure = f"to build them, reinstall with `FLEXKERN_CUDA=1 {REINSTALL}"
            return Status(False, f"flexkern was built without CUDA kernels ({why}); {cure}")
        why = "flexkern was installed without its compiled extension; install a C++17 compiler"
        return Status(False, f"{why}, then reinstall with `{REINSTALL}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Status(False, f"{path.name} does not load: {error}; reinstall with `{REINSTALL}")
    return Status(True, str(path))


def _cuda_installed() -> tuple[Status, gpus.Built | None]:
    """Whether the CUDA library is there, and what it was built for."""
    if torch.version.cuda is None:
        return Status(False, f"torch {torch.__version__} is built without CUDA"), None
    status = _load_library("cuda")
    if not status.available:
        return status, None
    info = build_info()
    made = None if info is None else gpus.built(info)
    if made is None:
        why = "libflexkern_cpu.so does not say for which GPUs libflexkern_cuda.so was built"
        return Status(False, f"{why}; reinstall with `{REINSTALL}"), None
    return status, made


def _triton_installed() -> Status:
    if importlib.util.find_spec("triton") is None:
        return Status(False, "triton is not installed; `pip install triton`")
    return Status(True, "compiles for the GPU at first use")


# What is installed. Whether it runs on the GPUs that are here, is another question: _status and _lacks.
_cuda, _BUILT = _cuda_installed()
_DRIVER = None if _BUILT is None else gpus.driver()
_STATUS: dict[str, Status] = {
    "reference": Status(True, "plain PyTorch"),
    "cpu": _load_library("cpu"),
    "cuda": _cuda,
    "triton": _triton_installed(),
}
if torch.backends.cuda.is_built():  # which includes those for AMD's GPUs
    tuning.table()  # torch.compile traces `choose`, and could not look into a file


# ------------------------------------------------------------------ what runs on a GPU

# Of a backend and the number of a GPU: None, or why it does not run there.
_lacking: dict[tuple[str, int], str | None] = {}
# Of an operator and the number of a GPU: the backends that may run there, the fastest first.
_orders: dict[tuple[str, int], tuple[str, ...]] = {}


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _find_lacking(name: str, device: torch.device) -> str | None:
    """As :func:`_lacks`, found anew. torch.compile traces this."""
    if name == "cuda":
        return (
            None
            if _BUILT is None
            else gpus.cuda_lacks(_BUILT, torch.cuda.get_device_capability(device), _DRIVER)
        )
    if torch.version.hip is None:
        why = gpus.triton_lacks(torch.cuda.get_device_capability(device))
        if why is not None:
            return why
    # What torch.compile makes needs what Triton needs: it says so itself.
    return None if torch.compiler.is_compiling() else gpus.triton_starts()


def _lacks(name: str, device: torch.device) -> str | None:
    """None if an installed backend, cuda or triton, runs on a GPU; else why not."""
    if torch.compiler.is_compiling():  # which keeps nothing
        return _find_lacking(name, device)
    key = name, _number(device)
    if key not in _lacking:
        _lacking[key] = _find_lacking(name, device)
    return _lacking[key]


def _status(name: str) -> Status:
    """Whether a backend can be used on anything here."""
    status = _STATUS[name]
    if not status.available or name not in ("cuda", "triton"):
        return status
    if name == "triton" and _interprets():
        return Status(True, "interpreter (TRITON_INTERPRET=1): runs on CPU tensors, slowly, for checking")
    if not torch.cuda.is_available():
        hint = "; TRITON_INTERPRET=1 runs the kernels on CPU tensors" if name == "triton" else ""
        return Status(False, gpus.no_gpu() + hint)
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    lacking = {str(device): why for device in devices if (why := _lacks(name, device)) is not None}
    if not lacking:
        return status
    whys = "; ".join(f"not on {device}: {why}" for device, why in lacking.items())
    if len(lacking) == len(devices):
        return Status(False, next(iter(lacking.values())) if len(set(lacking.values())) == 1 else whys)
    return Status(True, f"{status.reason}; {whys}")


def installed(name: str) -> bool:
    """Whether a backend is installed; no GPU is asked, so that modules may look when they are imported."""
    return _STATUS[name].available


def backends() -> dict[str, Status]:
    """What is available here: backend name to :class:`Status`, with the reason for each.

    cuda and triton count as available if they run on one of the GPUs at least; the reason names the others.
    """
    return {name: _status(name) for name in NAMES}


# ------------------------------------------------------------------ what is asked for


def _check_name(name: str, where: str = "backend") -> str:
    if name != "auto" and name not in NAMES:
        raise ValueError(f"{where} must be one of {('auto', *NAMES)}, got {name!r}")
    return name


# What is asked for where no block says otherwise.
_requested = _check_name(
    os.environ.get("FLEXKERN_BACKEND", "auto"), "the environment variable FLEXKERN_BACKEND"
)


class _Block:
    """A choice that holds in a context until it is left; then its name is None, whoever still has it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: str | None = name


_Blocks = tuple[_Block, ...]


class _Traced(threading.local):
    """The blocks of this thread, for code that torch.compile traces: it can look into these and guard on them,
    but not into a context variable. (Changing them is not its to do: it loses what is written here.)"""

    def __init__(self) -> None:  # an attribute of the class would be no guard
        self.blocks: _Blocks = ()


_blocks: ContextVar[_Blocks] = ContextVar("flexkern_backend", default=())
_traced = _Traced()


def _hold(blocks: _Blocks) -> None:
    """From now on these are the blocks of this context, but for those that have been left."""
    blocks = tuple([block for block in blocks if block.name is not None])
    _traced.__dict__.update(blocks=blocks)  # and not by its attribute, which torch.compile would trace
    _blocks.set(blocks)


def _innermost(blocks: _Blocks) -> _Block | None:
    for block in reversed(blocks):
        if block.name is not None:
            return block
    return None


def requested_in_block() -> str | None:
    """The backend asked for in the ``with`` statement around this call; None outside of any."""
    block = _innermost(_traced.blocks if torch.compiler.is_compiling() else _blocks.get())
    return None if block is None else block.name


def requested() -> str:
    """The backend asked for here: by :func:`use_backend`, else by FLEXKERN_BACKEND, else ``auto``."""
    return requested_in_block() or _requested


class use_backend:  # noqa: N801 - it is called like a function, as torch.set_grad_enabled is
    """Chooses the backend of all operators: in a ``with`` statement inside the block, else from here on.

    A block is this thread's, and this asyncio task's, alone: it is a context variable. Its end takes back what
    it chose and nothing else, in whatever order and thread blocks are left. Without ``with``, the choice is the
    whole process's, so also that of threads which have begun or will begin; inside a block it is the
    block's, until that ends.

    An operator's backward pass takes the backend of its forward pass, in whatever thread autograd runs it.
    Inside a function that torch.compile traces, a call of this breaks the graph: call it outside.

    Args:
        name: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Raises:
        ValueError: if there is no backend of that name.
        BackendError: if it is not available here; the message says why.
    """

    _alone: _Block | None = None  # holds in this context until it is known that no ``with`` follows

    def __init__(self, name: str) -> None:
        if _check_name(name) != "auto" and not (status := _status(name)).available:
            raise BackendError(f"backend {name!r} is not available: {status.reason}")
        self._name = name
        self._entered: list[_Block] = []
        blocks = _blocks.get()
        self._around = _innermost(blocks)
        if self._around is not None:
            self._before = self._around.name
            self._around.name = name
        else:
            # If the process's choice changed here, other threads would see that of a ``with`` statement, before
            # it enters its block.
            self._alone = _Block(name)
            _hold((*blocks, self._alone))

    def __enter__(self) -> None:
        self._take_back()
        block = _Block(self._name)
        self._entered.append(block)
        _hold((*_blocks.get(), block))

    def _take_back(self) -> None:
        """What was chosen by the call is chosen for the block."""
        if self._entered:
            return
        if self._around is not None:
            self._around.name, self._around = self._before, None
        elif self._alone is not None:
            self._alone.name, self._alone = None, None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        here = _blocks.get()
        mine = [block for block in self._entered if block in here] or self._entered
        block = mine[-1]
        self._entered.remove(block)
        block.name = None
        _hold(here)

    def __del__(self) -> None:
        """No ``with`` has followed."""
        global _requested
        if self._alone is not None and self._alone.name is not None:
            _requested, self._alone.name = self._alone.name, None
            _hold(_blocks.get())


def _serves(name: str, device: torch.device) -> str | None:
    """None if the backend can work on tensors of this device, else why not."""
    if not _STATUS[name].available:
        return _STATUS[name].reason
    if name in ("cpu", "cuda") and device.type != name:
        return f"it works on {name} tensors, these are on {device}"
    if name == "triton" and device.type == "cpu" and not _interprets():
        return "it works on GPU tensors, these are on the CPU (TRITON_INTERPRET=1 runs them in the interpreter)"
    return _lacks(name, device) if device.type == "cuda" and name in ("cuda", "triton") else None


def _order(op: str, device: torch.device) -> tuple[str, ...]:
    """The backends of an operator that may run on a GPU, the fastest first. torch.compile traces this.

    Triton is among them unasked: to start it takes a second, which few need where CUDA runs.
    """
    if torch.version.hip is not None:
        order = tuning.fastest(op, "gfx")
    else:
        major, minor = torch.cuda.get_device_capability(device)
        order = tuning.fastest(op, f"sm_{10 * major + minor}")
    return tuple([name for name in order if name == "triton" or _serves(name, device) is None])


def _candidates(op: str, device: torch.device) -> tuple[str, ...]:
    """The backends to try before the reference, the fastest first."""
    if device.type == "cpu":
        return ("cpu",) if _STATUS["cpu"].available else ()
    if device.type != "cuda":
        return ()
    if torch.compiler.is_compiling():
        return _order(op, device)
    key = op, _number(device)
    found = _orders.get(key)
    if found is None:
        found = _orders[key] = _order(op, device)
    return found


def choose(op: str, device: torch.device, supported: Callable[[str], str | None]) -> str:
    """The backend that runs ``op`` on tensors of ``device``.

    Args:
        op: name for the error message.
        device: where the tensors are.
        supported: backend name to None, or to the reason why it cannot take these arguments.

    Raises:
        BackendError: if a backend was asked for by name and cannot serve.
    """
    asked = requested()
    if asked != "auto":
        why = _serves(asked, device) or supported(asked)
        if why is not None:
            raise BackendError(f"{op}: backend {asked!r} cannot serve: {why}")
        return asked
    for name in _candidates(op, device):
        if supported(name) is None and (name != "triton" or _serves(name, device) is None):
            return name
    return "reference"


def prefers_compiled_cpu() -> bool:
    """Whether :func:`choose` takes the compiled kernels for what they can do with CPU tensors.

    Not for code that torch.compile traces.
    """
    blocks = _blocks.get()
    name = _requested
    if blocks:
        name = blocks[-1].name or requested()
    return name in ("auto", "cpu") and _STATUS["cpu"].available
