"""How the benchmarks measure: ours and its peers in one run, interleaved, on buffers that no cache holds."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
# More than any last-level cache that a few cores can keep to themselves: buffer sets of a case add up to this.
ROTATION_BYTES = 1 << 30


@dataclass
class Row:
    """One line of the table: ours against one peer.

    ``goal`` is a bound on ours / peer in time (``at_most``), or on peer / ours (a speed-up).
    """

    name: str
    peer: str
    goal: float
    at_most: bool
    ours_seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)
    bytes_ours: int = 0
    note: str = ""
    family: str = ""  # of operators: the benchmark file it is from, and the results file it goes to
    peak_mb: tuple[float, float] | None = None  # memory that ours and the peer need beside their operands

    @property
    def ratio(self) -> float:
        """The figure that the goal bounds: median of the ratios of neighbouring measurements."""
        pairs = zip(self.ours_seconds, self.peer_seconds, strict=True)
        return statistics.median(o / p if self.at_most else p / o for o, p in pairs)

    @property
    def met(self) -> bool:
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Plain data: medians and quartiles in milliseconds."""

        def summary(seconds: Sequence[float]) -> dict[str, float]:
            q1, q2, q3 = statistics.quantiles(seconds, n=4)
            return {"median_ms": q2 * 1e3, "q1_ms": q1 * 1e3, "q3_ms": q3 * 1e3, "rounds": len(seconds)}

        return {
            "name": self.name,
            "peer": self.peer,
            "figure": "ours / peer" if self.at_most else "peer / ours",
            "ratio": round(self.ratio, 3),
            "goal": f"{'at most' if self.at_most else 'at least'} {self.goal}",
            "met": self.met,
            "ours": summary(self.ours_seconds),
            "peer_times": summary(self.peer_seconds),
            "ours_gb_per_s": round(self.bytes_ours / statistics.median(self.ours_seconds) / 1e9, 1),
            "note": self.note,
            **({"peak_mb": self.peak_mb[0], "peer_peak_mb": self.peak_mb[1]} if self.peak_mb else {}),
        }


def rotation(bytes_per_set: int) -> int:
    """How many buffer sets a case goes round in, so that no round finds its data in a cache."""
    return max(2, -(-ROTATION_BYTES // bytes_per_set))


class Rotating:
    """Calls one function after the other, each with its own buffers, on and on."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self._calls = calls
        self._next = 0

    def __call__(self) -> None:
        call = self._calls[self._next % len(self._calls)]
        self._next += 1
        call()


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call on the CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def gpu_seconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """Device time of one call, by events around ``repeats`` of them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


_PEAK = """
import os, re, torch
def resident(key):
    with open("/proc/self/status") as status:
        return int(re.search(key + r":\\s+(\\d+) kB", status.read()).group(1)) / 1024
{setup}
torch.mm(torch.ones(512, 512), torch.ones(512, 512))  # the library's own buffers
before = resident("VmRSS")
{call}
print(resident("VmHWM") - before)
"""


def peak_mb(setup: str, call: str) -> float:
    """How far resident memory rises over what it was, in MB, in a process of its own that runs ``call`` once.

    Memory that ``setup`` had and gave back would hide a rise: it should not.
    """
    code = _PEAK.format(setup=setup, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return round(float(done.stdout), 1)


def _command(*args: str) -> str:
    try:
        return subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def machine() -> dict[str, Any]:
    """The machine line of a results file."""
    from flexkern.environment import environment

    here = environment()
    root = Path(__file__).parent.parent
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "gpus": here["gpus"],
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": here["versions"],
        "build": here["build"],
        "commit": _command("git", "-C", str(root), "rev-parse", "HEAD"),
        "changed_files": len(_command("git", "-C", str(root), "status", "--porcelain").splitlines()),
        "date": time.strftime("%Y-%m-%d"),
    }
