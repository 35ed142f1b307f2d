"""Tensors whose values lie in a file and are read when they are needed."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["mapped"]


def mapped(file: BinaryIO, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor on the CPU of the values that lie in a file from byte ``offset`` on.

    Pages come into memory when they are read, and leave it again when it is short. It is a tensor as any other:
    indexing gives copies in memory, views stay in the file, and ``copy.deepcopy`` and pickle copy all values.
    What is written into it goes into this tensor's copy of a page and never into the file. One exception: where
    ``ulimit -d`` bounds a process's data, pages that could be written to would all count, so there the tensor
    can be read only, and writing into it ends the process.

    Args:
        file: open for reading; it may be closed, renamed and deleted while the tensor lives, but not cut.
        offset: a multiple of the size of a value.
        dtype, shape: of the tensor.

    Raises:
        OSError: naming the file, if it cannot be mapped, or is shorter than that.
    """
    end = offset + math.prod(shape) * dtype.itemsize
    if end == offset:
        return torch.empty(tuple(shape), dtype=dtype)
    if os.fstat(file.fileno()).st_size < end:
        raise OSError(errno.EINVAL, f"is shorter than the {end:,} bytes that are to be mapped", file.name)
    buffer = _map(file.fileno(), end, file.name)
    return torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape), offset=offset).view(*shape)


def _map(descriptor: int, length: int, name: str) -> Any:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY)
    # Not Python's mmap on the other systems, which keeps the file open: a stream of some hundred experiences
    # would use up the files that a process may have open.
    library = ctypes.CDLL(None, use_errno=True)
    call = library.mmap
    call.restype = ctypes.c_void_p
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    # NORESERVE: else the system wants memory for a copy of all of it, and refuses files larger than that.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    limited = resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    address = call(None, length, mmap.PROT_READ | (0 if limited else mmap.PROT_WRITE), flags, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot be mapped: {os.strerror(code)}", name)
    buffer = (ctypes.c_char * length).from_address(address)
    unmap = library.munmap
    unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    # Not at the interpreter's exit, where a tensor may outlive it; the system gives it back then.
    weakref.finalize(buffer, unmap, address, length).atexit = False
    return buffer
