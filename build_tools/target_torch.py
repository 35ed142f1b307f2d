"""Finds the torch whose headers the build uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

# Older ones lack parts of the stable ABI that the operators are built on.
MINIMUM = (2, 11)
_PROBE = """
import importlib.metadata, importlib.util
print(importlib.util.find_spec("torch").submodule_search_locations[0])
print(importlib.metadata.version("torch"))
"""


def _has_headers(folder: Path) -> bool:
    return (folder / "include/torch/csrc/stable/library.h").exists()


def find_torch() -> Path | None:
    """The folder of a torch that serves, or None.

    First FLEXKERN_TORCH_DIR; then the torch of the interpreter that flexkern is being installed for. pip's
    isolated build runs that interpreter with its packages hidden through PYTHONPATH: asked again in isolated
    mode (-I), it shows them. Last, a torch that is installed in the build environment itself.
    """
    if given := os.environ.get("FLEXKERN_TORCH_DIR"):
        return Path(given) if _has_headers(Path(given)) else None
    for flags in (["-I"], []):
        found = subprocess.run([sys.executable, *flags, "-c", _PROBE], capture_output=True, text=True)
        if found.returncode != 0:
            continue
        folder, version = found.stdout.split()
        number = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        if number >= MINIMUM and _has_headers(Path(folder)):
            return Path(folder)
    return None


def version_of(torch: Path) -> str:
    """The version of an installed torch package, without importing it."""
    return _said(torch, "__version__") or "of an unknown version"


def cuda_of(torch: Path) -> str | None:
    """The CUDA that an installed torch package is built with; None of a build for CPUs or for AMD's GPUs."""
    return _said(torch, "cuda")


def _said(torch: Path, name: str) -> str | None:
    """A text that its version.py assigns."""
    file = torch / "version.py"
    text = file.read_text() if file.exists() else ""
    found = re.search(rf"^{name}\b[^=]*=\s*'([^']*)'", text, re.MULTILINE)
    return None if found is None else found.group(1)
