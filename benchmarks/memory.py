"""How much memory a call needs beside its operands."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from flexkern.benchmarks.case import GPU

__all__ = ["peak_mb"]

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
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    try:
        with ThreadPoolExecutor(1) as new_thread:
            return max(_resident_peak(call), _resident_peak(lambda: new_thread.submit(call).result()))
    except (OSError, AttributeError):  # not Linux, or another C library
        return None


def _resident_peak(call: Callable[[], object]) -> float:
    # Otherwise the call would be served from memory that an earlier one freed and that still counts.
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # counts the peak anew
    call()
    return max(0.0, _resident("VmHWM") - before)


def _resident(key: str) -> float:
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found.group(1)) / 1024
