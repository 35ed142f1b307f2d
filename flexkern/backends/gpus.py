"""Whether kernels run on a GPU: by what they were built for, the GPU's compute capability, and the driver.

A binary of sm_80 runs on sm_80 and on later GPUs of that generation (sm_86, sm_89), on no other; PTX runs on
all that are newer, where the driver is at least as new as the nvcc that made it. The CUDA runtime, which is
part of the library, needs a driver of its own major version.

Nothing here initialises CUDA: a process that has imported flexkern may still fork, or choose its GPUs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
from typing import NamedTuple

import torch

__all__ = [
    "Built",
    "Capability",
    "Version",
    "built",
    "cuda_lacks",
    "driver",
    "no_gpu",
    "triton_lacks",
    "triton_starts",
]

Capability = tuple[int, int]  # (9, 0) is sm_90
Version = tuple[int, int]  # of CUDA

# CUDA of the first driver that takes the kernels' arguments, which are up to 32 KB.
LEAST_DRIVER: Version = (12, 1)
# Of boards for cars and robots (Xavier, Orin, Thor as it was first called): they run no binary of other GPUs.
_OF_THEIR_OWN: tuple[Capability, ...] = ((7, 2), (8, 7), (10, 1))
_LEAST_OF_TRITON: Capability = (7, 0)


class Built(NamedTuple):
    """What the CUDA library was built for.

    Attributes:
        architectures: the GPU of each binary, and the letter behind its number ("a": only that GPU runs it;
            "f": only its generation; mostly ""). The last one's PTX is in the library, too.
        toolkit: the CUDA of nvcc and of the runtime.
    """

    architectures: tuple[tuple[Capability, str], ...]
    toolkit: Version


def built(info: dict[str, str]) -> Built | None:
    """That of a build, by what ``flexkern._core.build_info()`` says; None if it has no CUDA kernels."""
    version = re.match(r"(\d+)\.(\d+)", info["cuda_compiler"])
    found = re.findall(r"(\d+)(\d)([af]?)(?:;|$)", info["cuda_architectures"])
    if version is None or not found:
        return None
    architectures = tuple([((int(major), int(minor)), letter) for major, minor, letter in found])
    return Built(architectures, (int(version.group(1)), int(version.group(2))))


@functools.cache
def driver() -> Version | None:
    """The newest CUDA that the NVIDIA driver serves; None where there is none, or it does not say."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _sm(capability: Capability, letter: str = "") -> str:
    return f"sm_{capability[0]}{capability[1]}{letter}"


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def cuda_lacks(made: Built, capability: Capability, of_driver: Version | None) -> str | None:
    """None if the library's kernels run on a GPU, else why not and what to do. torch.compile traces this.

    Args:
        made: the library.
        capability: of the GPU.
        of_driver: what the driver serves; None: it is taken to serve all.
    """
    needed = max((made.toolkit[0], 0), LEAST_DRIVER)
    if of_driver is not None and of_driver < needed:
        cure = "update the driver"
        if of_driver >= LEAST_DRIVER:
            cure += f", or build flexkern with CUDA {of_driver[0]}"
        return (
            f"the NVIDIA driver serves CUDA {_dotted(of_driver)}, and flexkern's CUDA kernels, built by nvcc "
            f"{_dotted(made.toolkit)}, need {_dotted(needed)}: {cure}"
        )
    for architecture, letter in made.architectures:
        if capability == architecture:
            return None
        same = capability[0] == architecture[0] and capability[1] > architecture[1]
        if same and letter != "a" and capability not in _OF_THEIR_OWN and architecture not in _OF_THEIR_OWN:
            return None
    highest, letter = made.architectures[-1]
    number = f"{capability[0]}{capability[1]}"
    if letter == "" and capability > highest:
        if of_driver is None or of_driver >= made.toolkit:
            return None
        return (
            f"the GPU is sm_{number}, for which the driver would have to compile {_sm(highest)}'s PTX; but "
            f"it serves CUDA {_dotted(of_driver)}, and the PTX is of nvcc {_dotted(made.toolkit)}: update the "
            f"driver, or build flexkern with FLEXKERN_CUDA_ARCHS={number}"
        )
    names = ", ".join([_sm(*architecture) for architecture in made.architectures])
    return (
        f"flexkern's CUDA kernels are built for {names}, and the GPU is sm_{number}: build flexkern with "
        f"FLEXKERN_CUDA_ARCHS={number}"
    )


def triton_lacks(capability: Capability) -> str | None:
    """None if Triton compiles for an NVIDIA GPU, else why not."""
    if capability < _LEAST_OF_TRITON:
        return f"Triton compiles for {_sm(_LEAST_OF_TRITON)} and newer, and the GPU is {_sm(capability)}"
    return None


@functools.cache
def triton_starts() -> str | None:
    """None if Triton's part that talks to the driver can be made, else why not. It needs a C compiler and
    Python's headers, unless Triton's cache has it from an earlier process. Initialises CUDA.
    """
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # of the compiler, of the file system, of Triton itself
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return f"Triton does not start ({said}); it needs a C compiler and Python's headers"
    return None


def no_gpu() -> str:
    """Why torch sees no GPU, as far as it can be told."""
    if torch.version.hip is not None:
        return "torch sees no GPU (torch.cuda.is_available() is False)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    serves, visible = driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = int(torch.version.cuda.split(".")[0])
    why = "torch.cuda.is_available() is False"
    if serves is None:
        why += ": there is no NVIDIA driver"
    elif serves[0] < wanted:
        why += f": the driver serves CUDA {_dotted(serves)}, and torch is built with {torch.version.cuda}"
    elif visible is not None:
        why += f" with CUDA_VISIBLE_DEVICES={visible!r}"
    return f"torch sees no NVIDIA GPU ({why})"
