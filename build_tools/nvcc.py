"""Whether this build makes the CUDA kernels, with which nvcc, and for which GPUs.

    python build_tools/nvcc.py FILE --torch FOLDER [--cuda 1] [--archs "80;90"]

CMake runs it when it configures, and includes FILE, which has what was decided. nvcc itself is asked for the
architectures that it knows, so that one of any age serves; and it makes a small library, as one that was found
may still be of no use: for a host compiler that is too new for it, or headers that are missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from target_torch import cuda_of, version_of

# Binaries for these, and PTX of the highest, which a driver compiles for newer GPUs.
ARCHITECTURES = ("80", "90", "100")
# From here on a kernel takes 32 KB of arguments, which hold the tables of many tensors (before: 4 KB).
OLDEST = (12, 1)
INSTALLED = "/usr/local/cuda/bin"
_SWITCH = {"": None, "1": True, "on": True, "0": False, "off": False}  # the words are CMake's
_TRIAL = """
#include <cuda_runtime.h>
#include <optional>
__global__ void kernel(float* x) { *x = 1; }
extern "C" void launch(float* x) { kernel<<<1, 1>>>(x); }
"""


class RefusedError(Exception):
    """What was asked for cannot be built; the message is one sentence with the cure."""


class UselessError(Exception):
    """Why nvcc is of no use here."""


class Plan(NamedTuple):
    """What is built.

    Attributes:
        nvcc: the compiler; None where no CUDA kernels are built.
        architectures: of GPUs, as nvcc numbers them, the lowest first.
        version: of nvcc, and what it does not know, or "none: " and why; `flexkern info` shows it.
        note: for who builds; "" where all is as usual.
    """

    nvcc: Path | None
    architectures: tuple[str, ...]
    version: str
    note: str = ""


def switch(value: str, name: str = "FLEXKERN_CUDA") -> bool | None:
    """A variable that is on, off, or undecided.

    Raises:
        RefusedError: if it is something else.
    """
    if value.lower() not in _SWITCH:
        raise RefusedError(f"{name} must be 1, 0 or unset, got {value!r}")
    return _SWITCH[value.lower()]


def plan(cuda: str, archs: str, torch: Path, environment: Mapping[str, str] | None = None) -> Plan:
    """What to build.

    Args:
        cuda: "1", "0", or "": where torch has CUDA and nvcc can.
        archs: of GPUs, like "80;90"; "" for those that are usual, as far as nvcc knows them.
        torch: the folder of the package.
        environment: instead of ``os.environ``; says where nvcc is.

    Raises:
        RefusedError: if CUDA or an architecture was asked for and cannot be built.
    """
    wanted = switch(cuda)
    if wanted is False:
        return _none("switched off by FLEXKERN_CUDA=0")
    if wanted is None and cuda_of(torch) is None:
        return _none(f"torch {version_of(torch)} has no CUDA (FLEXKERN_CUDA=1 builds them all the same)")
    asked = _parsed(archs)
    environment = os.environ if environment is None else environment
    try:
        nvcc = find(environment)
        version, known = _ask(nvcc)
        if unknown := [a for a in asked if _base(a) not in known]:
            raise RefusedError(
                f"FLEXKERN_CUDA_ARCHS names {', '.join(unknown)}, which nvcc {version} ({nvcc}) does not know: "
                f"it knows {', '.join(known)}"
            )
        architectures = asked or tuple(a for a in ARCHITECTURES if a in known)
        if not architectures:
            raise UselessError(f"nvcc {version} ({nvcc}) knows none of sm_{', sm_'.join(ARCHITECTURES)}")
        _try(nvcc, architectures, environment)
    except UselessError as useless:
        if wanted:
            raise RefusedError(
                f"FLEXKERN_CUDA=1, but {useless}: install CUDA >= 12.1, or set CUDA_HOME"
            ) from None
        return _none(str(useless))
    lacking = [a for a in ARCHITECTURES if not asked and a not in known]
    if not lacking:
        return Plan(nvcc, architectures, version)
    unknown_here = f"does not know sm_{', sm_'.join(lacking)}"
    return Plan(
        nvcc, architectures, f"{version} ({unknown_here})",
        f"nvcc {version} ({nvcc}) {unknown_here}: the CUDA kernels are built for sm_"
        f"{', sm_'.join(architectures)}, and newer GPUs take the PTX of sm_{architectures[-1]}",
    )  # fmt: skip


def _none(why: str) -> Plan:
    return Plan(None, (), f"none: {why}", f"no CUDA kernels are built: {why}")


def _parsed(archs: str) -> tuple[str, ...]:
    """The architectures of a list, once each, the lowest first; "9.0" and "sm_90" are "90"."""
    found = set()
    for given in re.split(r"[;,\s]+", archs.strip()):
        if not given:
            continue
        match = re.fullmatch(r"(?:sm_|compute_)?(\d{1,2})\.?(\d)([af]?)", given)
        if match is None:
            raise RefusedError(f'FLEXKERN_CUDA_ARCHS must be architectures of GPUs like "80;90", got {archs!r}')
        found.add("".join(match.groups()))
    return tuple(sorted(found, key=lambda a: (int(_base(a)), a)))


def _base(architecture: str) -> str:
    """Without the letter of what its own GPU alone runs."""
    return architecture.rstrip("af")


def find(environment: Mapping[str, str]) -> Path:
    """nvcc: CUDACXX, or under CUDA_HOME or CUDA_PATH, on PATH, or where NVIDIA's installer puts it.

    Raises:
        UselessError: if it is nowhere.
    """
    given = environment.get("CUDACXX")
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    folders = [*(f"{home}/bin" for home in homes), environment.get("PATH", ""), INSTALLED]
    found = shutil.which(given or "nvcc", path=os.pathsep.join(filter(None, folders)))
    if found is None:
        where = "there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
        raise UselessError(f"CUDACXX names {given}, which is no program" if given else where)
    return Path(found)


def _ask(nvcc: Path) -> tuple[str, tuple[str, ...]]:
    """Its version, and the architectures that it knows."""
    said = _run([str(nvcc), "--version"])
    match = re.search(r"release (\d+)\.(\d+)(?:, V([\d.]+))?", said.stdout)
    if said.returncode or match is None:
        raise UselessError(f"{nvcc} --version does not say which CUDA it is of")
    version = match.group(3) or f"{match.group(1)}.{match.group(2)}"
    if (int(match.group(1)), int(match.group(2))) < OLDEST:
        raise UselessError(
            f"nvcc {version} ({nvcc}) is older than 12.1, before which kernels take 4 KB of arguments"
        )
    known = re.findall(r"^\s*compute_(\d+)\s*$", _run([str(nvcc), "--list-gpu-arch"]).stdout, re.MULTILINE)
    return version, tuple(sorted(known, key=int))


def _try(nvcc: Path, architectures: Sequence[str], environment: Mapping[str, str]) -> None:
    """Has it make a library."""
    host = environment.get("CUDAHOSTCXX")
    options = ["-std=c++17", "-cudart=static", "-shared", "-Xcompiler=-fPIC", f"-arch=sm_{architectures[-1]}"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "trial.cu"), Path(folder, "trial.so")
        source.write_text(_TRIAL)
        done = _run([str(nvcc), *(["-ccbin", host] if host else []), *options, "-o", str(library), str(source)])
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if re.search("error|fatal", line, re.IGNORECASE)]
        said = next(iter(errors or lines), f"exit code {done.returncode}")
        raise UselessError(f"{nvcc} does not compile here ({said})")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:  # not a program of this machine
        return subprocess.CompletedProcess(command, 126, "", str(error))


def as_cmake(made: Plan) -> str:
    """The plan as lines of CMake."""

    def quoted(text: str) -> str:
        plain = text.replace("\\", "/").replace('"', "'")  # it goes into a string of C++, too
        return f"[==[{plain}]==]"

    lines = [
        f"set(FLEXKERN_NVCC {quoted(str(made.nvcc or ''))})",
        f"set(FLEXKERN_CUDA_ARCHS {quoted(';'.join(made.architectures))})",
        f"set(FLEXKERN_CUDA_VERSION {quoted(made.version)})",
    ]
    if made.note:
        lines.append(f"message(NOTICE {quoted('flexkern: ' + made.note)})")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--torch", type=Path, required=True)
    parser.add_argument("--cuda", default="")
    parser.add_argument("--archs", default="")
    given = parser.parse_args(arguments)
    try:
        made = plan(given.cuda, given.archs, given.torch)
    except RefusedError as refusal:
        raise SystemExit(str(refusal)) from None
    given.file.write_text(as_cmake(made))


if __name__ == "__main__":
    main(sys.argv[1:])
