"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Measure", "reset_resident_peak", "resident_mib"]

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
            self._counts = reset_resident_peak()
        self._start = time.perf_counter()
        return self

    def elapsed(self) -> float:
        """Seconds since the context began, while it lasts (a GPU may still be at work)."""
        return time.perf_counter() - self._start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            if kind is None:  # after an error the device may not answer, and the error must not be covered
                torch.cuda.synchronize(self.device)
            self.mib = torch.cuda.max_memory_allocated(self.device) / _MIB
        elif self._counts:
            self.mib = resident_mib("VmHWM")
        self.seconds = time.perf_counter() - self._start


def reset_resident_peak() -> bool:
    """Lets the system count the peak of this process's resident memory anew; whether it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: the peak of resident memory begins anew
        return True
    return False


def resident_mib(what: str) -> float | None:
    """Resident memory in MiB, now ("VmRSS") or at its peak ("VmHWM"); None where it cannot be told."""
    with suppress(OSError):
        found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else None
    return None
