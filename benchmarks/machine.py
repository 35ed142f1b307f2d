"""The machine line of a results file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from flexkern.environment import environment

__all__ = ["HUGE_PAGES", "huge_pages", "machine"]

# torch asks for huge pages for large tensors where this is "1" when it allocates first. With pages of 4 KB a
# quarter of the time of every streaming operator goes to address translation, which no kernel can change.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def huge_pages() -> bool:
    return os.environ.get(HUGE_PAGES) == "1"


def machine() -> dict[str, Any]:
    """What a measurement depends on: processor, GPUs, driver, versions, build, pages, commit, date."""
    here = environment()
    root = Path(__file__).parent.parent
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": here["gpus"],
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": here["versions"],
        "build": here["build"],
        "commit": os.environ.get("FLEXKERN_COMMIT") or _command("git", "-C", str(root), "rev-parse", "HEAD"),
        "changed_files": _changed(root),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def _changed(root: Path) -> int:
    """Files of the checkout that are not as committed; results do not count."""
    lines = _command("git", "-C", str(root), "status", "--porcelain").splitlines()
    return len([line for line in lines if "benchmarks/results" not in line])


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
