"""Runs code in a Python process of its own, for what is read once, when flexkern is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import flexkern

__all__ = ["PACKAGE", "run_python"]

PACKAGE = Path(flexkern.__file__).parent


def run_python(
    code: str, *arguments: str, path: Path = PACKAGE.parent, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    """Python with one thread that finds the flexkern in ``path``, this one by default.

    What the environment says of flexkern is not passed on, only ``environment`` is.
    """
    ours = ("FLEXKERN_BACKEND", "FLEXKERN_ISA", "TRITON_INTERPRET")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    python_path = os.pathsep.join(p for p in (str(path), env.get("PYTHONPATH")) if p)
    env |= {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", **environment}
    # -c puts the working directory first: it must not be a checkout
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, cwd=path, capture_output=True, text=True, timeout=timeout)
