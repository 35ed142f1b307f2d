"""How the compiled libraries were built, as libflexkern_cpu.so says it."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path

__all__ = ["LIBRARY_DIR", "NAMESPACE", "REINSTALL", "build_info", "instruction_set", "library"]

LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"
NAMESPACE = "flexkern"
"""Of the operators, in ``torch.ops``."""
REINSTALL = "pip install --no-cache-dir --force-reinstall --no-deps flexkern`"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The CPU library, which finds torch's only after `import torch`; None where it does not load."""
    path = LIBRARY_DIR / "libflexkern_cpu.so"
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:
        return None


def build_info() -> dict[str, str] | None:
    """Compilers, GPU architectures and the torch whose headers were used; None without the library."""
    try:
        ask = library().flexkern_build_info  # type: ignore[union-attr]
    except AttributeError:  # no library, or another one in its place, as in scripts/sanitize.py
        return None
    ask.argtypes, ask.restype = [], ctypes.c_char_p
    info: dict[str, str] = json.loads(ask())
    return info


def instruction_set() -> str:
    """The instructions of the CPU kernels; there must be :func:`build_info`.

    Raises:
        RuntimeError: if FLEXKERN_ISA names what there is not.
    """
    cpu = library()
    assert cpu is not None
    ask = cpu.flexkern_instruction_set
    ask.argtypes, ask.restype = [ctypes.POINTER(ctypes.c_char_p)], ctypes.c_char_p
    why = ctypes.c_char_p()
    name: bytes | None = ask(ctypes.byref(why))
    if name is None:
        raise RuntimeError((why.value or b"").decode())
    return name.decode()
