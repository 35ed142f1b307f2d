"""The build backend: setuptools, with the build requirements that this machine really lacks.

A fixed list would make every isolated build download a second torch (gigabytes) only for its headers, and
a second CMake. So the list depends on what is there.
"""

from __future__ import annotations

from typing import Any

import needs

needs.must(needs.setuptools_lacks())

from setuptools import build_meta  # noqa: E402
from setuptools.build_meta import *  # noqa: E402, F403 - the other hooks are setuptools' own
from target_torch import find_torch  # noqa: E402


def _requirements() -> list[str]:
    if not needs.wants_extension():
        return []
    needs.must(needs.compiler_lacks())  # before anything is fetched
    needed = []
    if needs.good_cmake() is None:
        needed.append("cmake>=3.24")
    if needs.program("ninja") is None:
        needed.append("ninja>=1.10")
    if find_torch() is None:
        needed.append("torch>=2.11")
    return needed


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _look_first()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _look_first()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _look_first() -> None:
    """Before setuptools copies hundreds of files and says so of each."""
    if needs.wants_extension():
        needs.find_all()
