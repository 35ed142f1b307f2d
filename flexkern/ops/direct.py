"""Calls of compiled operators on the CPU past torch's dispatcher, which takes 2 to 4 microseconds of each.

What the dispatcher does with a call is to look at modes (of tracing, profiling, torch.func), at subclasses
of Tensor and at negative views, and to find the device. Where none of these is there and all tensors are on the
CPU, the module _core calls the same body, with all its checks (csrc/bindings/direct.h).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.backends import installed
from flexkern.backends.built import REINSTALL, library
from flexkern.spec import Argument

__all__ = ["directly", "lacks"]

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


def _connect() -> tuple[Any, Any] | str:
    """The module _core and the CPU library, or why a call cannot pass the dispatcher."""
    cpu = library()
    if cpu is None or not installed("cpu"):
        return "flexkern's CPU library is not there"
    try:
        core: Any = importlib.import_module(f"{__name__.removesuffix('.ops.direct')}._core")
    except ImportError as error:
        return f"flexkern._core does not load ({error}); reinstall with `{REINSTALL}"
    try:
        cpu.flexkern_direct.argtypes, cpu.flexkern_direct.restype = [ctypes.c_char_p], ctypes.c_void_p
        # How torch's own compiled models get at tensors: not public, so another torch may lack them.
        handles: Any = torch._C._aoti  # type: ignore[attr-defined]
        core.know_torch(
            Tensor,
            torch.nn.Parameter,
            Tensor.is_neg,
            Tensor.is_inference,
            getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version),
            handles.unsafe_alloc_void_ptrs_from_tensors,
            handles.alloc_tensors_by_stealing_from_void_ptrs,
            _modes(),
            ctypes.cast(cpu.flexkern_elements, ctypes.c_void_p).value,
        )
    except AttributeError as error:
        return f"torch {torch.__version__} or the CPU library is another than is known ({error})"
    return core, cpu


_connection = _connect()


def lacks() -> str | None:
    """None where calls on the CPU pass the dispatcher; else why not: each call takes longer then."""
    return _connection if isinstance(_connection, str) else None


def directly(name: str, arguments: Sequence[Argument]) -> Callable[..., Any] | None:
    """A function that calls a compiled operator of the CPU by position, and tells autograd what it wrote.

    It returns NotImplemented, with nothing done, where anything is unusual: a number or a tensor of another
    type than the schema's own (True is no number), a negative view, an inference tensor that would be written,
    or a mode that looks at calls.

    Args:
        name: of the operator, or of its overload.
        arguments: as declared.

    Returns:
        The function; None where there is none.
    """
    if isinstance(_connection, str):
        return None
    core, cpu = _connection
    function = cpu.flexkern_direct(name.encode())
    if function is None:
        return None
    place = {a.name: i for i, a in enumerate(arguments)}
    rows = []
    for a in arguments:
        if_given = [] if isinstance(a.written, bool) else [place[n] for n in a.written]
        rows.append((_TYPES[a.type], a.optional, bool(a.written), if_given))
    made: Callable[..., Any] = core.direct(
        function, rows, tuple(a.default for a in arguments if not a.required)
    )
    return made
