"""Seconds of a piece of work, and the memory that it takes."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Measure", "peak_mb", "used_mb"]

_MIB = 2**20


class Measure:
    """A context that measures what happens in it::

        with Measure(device) as spent:
            learner.learn(item)
        print(spent.seconds, spent.mib)

    On an NVIDIA GPU ``mib`` is the peak of what torch has allocated on it, and seconds end when it is done.
    On a CPU it is the peak of the process's resident memory, where the system can count that anew (Linux),
    else None. Measures must not be nested.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.mib: float | None = None

    def __enter__(self) -> Measure:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._counts = _reset_resident_peak()
        self._start = time.perf_counter()
        return self

    def elapsed(self) -> float:
        """Seconds since the context began, while it lasts (a GPU may still be at work)."""
        return time.perf_counter() - self._start

    def __exit__(
        self, raised: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            if raised is None:  # after an error the device may not answer, and the error must not be covered
                torch.cuda.synchronize(self.device)
            self.mib = torch.cuda.max_memory_allocated(self.device) / _MIB
        elif self._counts:
            self.mib = _resident_mib("VmHWM")
        self.seconds = time.perf_counter() - self._start


def peak_mb(call: Callable[[], object], device: str) -> float | None:
    """How far memory rises over what it was, in MiB, while ``call`` runs once; None where it cannot be told.

    On a GPU it is what torch allocates. On a CPU it is the process's resident memory, after freed memory was
    given back to the system: so it includes what a library takes for itself, and pages that a first write makes
    resident. Huge pages round it up. There the call runs twice, and the larger figure counts: in this thread,
    and in a new one, where memory that a thread keeps for its next call counts too (``linear_step_`` keeps a
    block of the gradient), but not always small pieces, which threads get that others gave back.

    Args:
        call: what is measured.
        device: "cpu" or "cuda".
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = used_mb(device) or 0.0
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / _MIB - before
    with ThreadPoolExecutor(1) as new_thread:
        rises = [_resident_rise(call), _resident_rise(lambda: new_thread.submit(call).result())]
    known = [rise for rise in rises if rise is not None]
    return max(known) if len(known) == len(rises) else None


def used_mb(device: str) -> float | None:
    """Memory in use now, in MiB; None where it cannot be told (Linux and the GNU C library tell it).

    On a GPU it is what torch has allocated, on a CPU the process's resident memory after freed memory was given
    back to the system.

    Args:
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        return torch.cuda.memory_allocated() / _MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return None
    return _resident_mib("VmRSS")


def _resident_rise(call: Callable[[], object]) -> float | None:
    # Otherwise the call would be served from memory that an earlier one freed and that still counts.
    before = used_mb("cpu")
    if before is None or not _reset_resident_peak():
        return None
    call()
    peak = _resident_mib("VmHWM")
    return None if peak is None else max(0.0, peak - before)


def _reset_resident_peak() -> bool:
    """Lets the system count the peak of this process's resident memory anew; whether it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: the peak of resident memory begins anew
        return True
    return False


def _resident_mib(what: str) -> float | None:
    """Resident memory in MiB, now ("VmRSS") or at its peak ("VmHWM"); None where it cannot be told."""
    with suppress(OSError):
        found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else None
    return None
