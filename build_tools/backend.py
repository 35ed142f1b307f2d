"""The build backend: setuptools, with the build requirements that this machine really lacks.

A fixed list would make every isolated build download a second torch (gigabytes) only for its headers, and
a second CMake. So the list depends on what is there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks are setuptools' own
from target_torch import find_torch

CMAKE_MINIMUM = (3, 24)


def _requirements() -> list[str]:
    needed = ["pybind11>=2.13"]
    cmake = shutil.which("cmake")
    if cmake is not None:
        text = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"(\d+)\.(\d+)", text)
        if version is None or tuple(map(int, version.groups())) < CMAKE_MINIMUM:
            cmake = None
    if cmake is None:
        needed.append("cmake>=3.24")
    if shutil.which("ninja") is None:
        needed.append("ninja>=1.10")
    if find_torch() is None:
        needed.append("torch>=2.11")
    return needed


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]
