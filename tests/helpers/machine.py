"""Where and when something was counted: one line for a results file."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

import flexkern
from flexkern.environment import environment

__all__ = ["machine_line"]


def machine_line() -> dict[str, Any]:
    """Date, version and machine, as plain data."""
    build = environment()["build"] or {"instruction_set": "no extension"}
    return {
        "date": datetime.date.today().isoformat(),
        "flexkern": flexkern.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {build['instruction_set']}; Python "
        f"{platform.python_version()}, torch {torch.__version__}",
    }
