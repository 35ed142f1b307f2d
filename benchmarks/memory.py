"""How much memory a call needs beside its operands."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from flexkern.benchmarks.case import CPU, GPU
from flexkern.runs.measure import reset_resident_peak, resident_mib

__all__ = ["held_mb", "peak_mb"]

_MIB = 2**20


def peak_mb(call: Callable[[], object], device: str) -> float | None:
    """How far memory rises over what it was, in MiB, while ``call`` runs once; None where it cannot be told.

    On a GPU it is what torch allocates. On a CPU it is the process's resident memory, after freed memory was
    given back to the system: so it includes what a library takes for itself, and pages that a first write makes
    resident. Huge pages round it up. There the call runs twice, and the larger figure counts: in this thread,
    and in a new one, where memory that a thread keeps for its next call counts too (``linear_step_`` keeps a
    block of the gradient), but not always small pieces, which threads get that others gave back.
    """
    gc.collect()
    if device == GPU:
        torch.cuda.synchronize()
        before = held_mb(GPU) or 0.0
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / _MIB - before
    with ThreadPoolExecutor(1) as new_thread:
        rises = [_resident_rise(call), _resident_rise(lambda: new_thread.submit(call).result())]
    known = [rise for rise in rises if rise is not None]
    return max(known) if len(known) == len(rises) else None


def _resident_rise(call: Callable[[], object]) -> float | None:
    # Otherwise the call would be served from memory that an earlier one freed and that still counts.
    before = held_mb(CPU)
    if before is None or not reset_resident_peak():
        return None
    call()
    peak = resident_mib("VmHWM")
    return None if peak is None else max(0.0, peak - before)


def held_mb(device: str) -> float | None:
    """Memory in use now, in MiB; None where it cannot be told (Linux and the GNU C library tell it).

    On a GPU it is what torch has allocated, on a CPU the process's resident memory after freed memory was given
    back to the system.
    """
    if device == GPU:
        return torch.cuda.memory_allocated() / _MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return None
    return resident_mib("VmRSS")
