"""Calls of compiled operators on the CPU past torch's dispatcher, which takes 2 to 4 microseconds of each.

What the dispatcher does with a call is to look at modes (of tracing, profiling, torch.func), at subclasses of
Tensor and at negative views, and to find the device. Where none of these is there and all tensors are on the CPU,
the same body, with all its checks, is called by the module _core itself (csrc/bindings/direct.h).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.backends import LIBRARY_DIR, backends
from flexkern.spec import Argument

__all__ = ["directly"]

# What csrc/bindings/core_direct.cpp calls the types of a schema.
_TYPES = {"Tensor": "T", "Tensor[]": "L", "int[]": "I", "float[]": "N", "int": "i", "float": "n", "bool": "b"}


def _modes() -> list[Callable[[], Any]]:
    """Functions that tell what looks at calls of operators: each is false where nothing does."""
    c: Any = torch._C
    return [
        c._len_torch_dispatch_stack,
        c._is_torch_function_mode_enabled,
        c._functorch.peek_interpreter_stack,
        c._autograd._profiler_enabled,
    ]


def _connect() -> tuple[Any, Any] | None:
    """The module _core and the CPU library; None where a call cannot pass the dispatcher."""
    if not backends()["cpu"].available:
        return None
    try:
        core: Any = importlib.import_module("flexkern._core")
        library = ctypes.CDLL(str(LIBRARY_DIR / "libflexkern_cpu.so"))
        library.flexkern_direct.argtypes, library.flexkern_direct.restype = [ctypes.c_char_p], ctypes.c_void_p
        # How torch's own compiled models get at tensors: not public, so another torch may lack them.
        handles: Any = torch._C._aoti  # type: ignore[attr-defined]
        core.know_torch(
            Tensor,
            torch.nn.Parameter,
            Tensor.is_neg,
            handles.unsafe_alloc_void_ptrs_from_tensors,
            handles.alloc_tensor_by_stealing_from_void_ptr,
            handles.alloc_tensors_by_stealing_from_void_ptrs,
            _modes(),
        )
    except (ImportError, OSError, AttributeError):
        return None
    return core, library


_connection = _connect()


def directly(name: str, arguments: Sequence[Argument], call: Any) -> Any:
    """A function that calls a compiled operator directly where nothing is unusual, else through ``call``.

    Args:
        name: of the operator, or of its overload, in the CPU library.
        arguments: as declared.
        call: its dispatcher entry; returned itself where the library has no such operator.
    """
    if _connection is None:
        return call
    core, library = _connection
    function = library.flexkern_direct(name.encode())
    if function is None:
        return call
    types = "".join(_TYPES[a.type] for a in arguments)
    defaults = tuple(a.default for a in arguments if not a.required)
    return core.direct(function, types, [a.optional for a in arguments], defaults, call)
