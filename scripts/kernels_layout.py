"""Writes flexkern's operators as a project of Hugging Face's kernel-builder.

    python scripts/kernels_layout.py OUT

What comes of that builder is loaded by `kernels.get_kernel`, under a name that no other version has: so the
operators are registered under the name that the builder gives them, and Python files import each other by their
places. All is made from this checkout's one source: the C++ files with the names of macros changed, a file for
each kernel and instruction set, the headers that CMake would make, and the Python files that `flexkern.ops`
needs. Nothing here builds it: see https://huggingface.co/docs/kernels/builder/writing-kernels.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))

import nvcc  # noqa: E402

NAME = "flexkern"
TORCH = "2.11"  # the first of the stable ABI that the operators use
BEGIN = ("flexkern.ops", "flexkern.ops.null", "flexkern.reference", "flexkern.triton_kernels")
INSTRUCTIONS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c",
        "-mprefer-vector-width=512",
    ),
}  # fmt: skip
CXX = ("-std=c++17", "-ffp-contract=off", "-O3", "-Wno-psabi")
CUDA = ("--fmad=false", "--prec-div=false")
NOT_BINDINGS = ("core.cpp", "core_direct.cpp", "torch_cuda_stub.cpp")  # the module _core, and what only links
INCLUDE = ("csrc", "csrc/include", "csrc/bindings", "csrc/generated", "torch-ext")

# In all C++ files: the builder's names of what is built, and its macro that takes the name of the operators.
MACROS = {
    "STABLE_TORCH_LIBRARY_IMPL(flexkern, ": "STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, ",
    "FLEXKERN_FOR_CUDA": "CUDA_KERNEL",
    "#ifdef FLEXKERN_X86": "#ifdef __x86_64__",
}
BUILD_INFO = """// What the build was made with, as far as it is known before.
#define FLEXKERN_COMPILER __VERSION__
#define FLEXKERN_CUDA_COMPILER "nvcc {toolkit}"
#define FLEXKERN_CUDA_ARCHS "{archs}"
#define FLEXKERN_TORCH_HEADERS "{torch}"
"""
BINDING = """// The module that Python imports; csrc/bindings registers the operators, which Python declares.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""
FLAKE = """{
  description = "flexkern's operators";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""
PACKAGE = '''"""The operators of flexkern: fused kernels for brain-inspired continual learning in PyTorch."""

from . import ops
from .backends import BackendError, backends, use_backend
from .fields import Field, Purpose
from .ops import *  # noqa: F403

__all__ = ["BackendError", "Field", "Purpose", "backends", "ops", "use_backend", *ops.__all__]
'''
# In Python files, where flexkern looks for libraries of its own: here one extension has come with the package.
PYTHON = {
    "backends/built.py": {
        'LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"': (
            "LIBRARY_DIR = Path(__file__).resolve().parent.parent"
        ),
        'path = LIBRARY_DIR / "libflexkern_cpu.so"': (
            'path = next(LIBRARY_DIR.glob("_*.abi3.so"), LIBRARY_DIR / "none")'
        ),
        'NAMESPACE = "flexkern"': (
            "from .._ops import add_op_namespace_prefix  # noqa: E402\n\n"
            'NAMESPACE = add_op_namespace_prefix("").removesuffix("::")'
        ),
    },
}
LOAD = """def _load_library(name: str) -> Status:
    here = "cpu" if torch.version.cuda is None else "cuda"
    if name != here:
        return Status(False, f"this build has the kernels for {here} alone")
    if built.library() is None:
        return Status(False, "the extension of this build is not there")
    return Status(True, "came with the kernel")
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there, or is empty")
    out = parser.parse_args(arguments).out
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"OUT must be a folder that is not there, or is empty, got {str(out)!r}")
    write(out)
    print(f"written: {out}")


def write(out: Path) -> None:
    """The whole project."""
    sources(out / "csrc")
    kernels = {name: list(of_instructions(out, name)) for name in INSTRUCTIONS}
    package = out / "torch-ext" / NAME
    for path in sorted(modules()):
        target = package / place_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(relative(path), encoding="utf-8")
    shutil.copy(ROOT / "flexkern" / "backends" / "tuning.toml", package / "backends")
    for name, text in {
        "torch-ext/torch_binding.cpp": BINDING, f"torch-ext/{NAME}/__init__.py": PACKAGE, "flake.nix": FLAKE,
        "build.toml": build_toml(out, kernels),
    }.items():  # fmt: skip
        (out / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out)


# ------------------------------------------------------------------ C++


def sources(csrc: Path) -> None:
    """The C++ files with the builder's macros, and the headers that CMake would make."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in (".cpp", ".h", ".cu", ".cuh") or path.name in NOT_BINDINGS:
            continue
        target = csrc / path.relative_to(ROOT / "csrc")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(for_the_builder(path.read_text(encoding="utf-8")), encoding="utf-8")
    generated = csrc / "generated"
    subprocess.run([sys.executable, ROOT / "build_tools" / "bindings.py", generated], check=True)
    for path in generated.rglob("*.h"):
        path.write_text(for_the_builder(path.read_text(encoding="utf-8")), encoding="utf-8")
    archs = ";".join(nvcc.ARCHITECTURES)
    info = BUILD_INFO.format(toolkit="12.1", archs=archs, torch=TORCH)
    (generated / "build_info.h").write_text(info, encoding="utf-8")


def for_the_builder(text: str) -> str:
    """A C++ file with the builder's macros, which its header has."""
    for old, new in MACROS.items():
        text = text.replace(old, new)
    return f'#include "registration.h"\n{text}' if "STABLE_TORCH_LIBRARY_IMPL_EXPAND" in text else text


def of_instructions(out: Path, instructions: str) -> Iterator[str]:
    """A file for each CPU kernel, which the builder compiles with flags of its own."""
    folder = out / "kernels" / instructions
    folder.mkdir(parents=True)
    for kernel in sorted((out / "csrc" / "cpu" / "kernels").glob("*.cpp")):
        path = folder / kernel.name
        path.write_text(
            f"#define FLEXKERN_ISA {instructions}\n#define FLEXKERN_VECTORS\n"
            f'#include "../../csrc/cpu/kernels/{kernel.name}"\n',
            encoding="utf-8",
        )
        yield path.relative_to(out).as_posix()


def build_toml(out: Path, kernels: dict[str, list[str]]) -> str:
    """What the builder builds: for CPUs and for CUDA, each an extension of its own."""
    csrc = out / "csrc"
    headers = _names(out, (p for p in csrc.rglob("*") if p.suffix in (".h", ".cuh")))
    cpu = _names(out, [*csrc.glob("bindings/*.cpp"), *csrc.glob("cpu/*.cpp")])
    cuda_kernels = _names(out, csrc.glob("cuda/*.cu"))
    families = {Path(name).stem for name in cuda_kernels} | {"arguments", "build", "direct"}
    cuda = [
        *_names(out, (p for p in csrc.glob("bindings/*.cpp") if p.stem in families)), "csrc/cpu/dispatch.cpp"
    ]  # fmt: skip
    capabilities = [f"{a[:-1]}.{a[-1]}" for a in nvcc.ARCHITECTURES]
    whole = _names(out, (p for p in csrc.glob("cpu/kernels/*.cpp")))
    sections: dict[str, dict[str, object]] = {
        "general": {
            "name": NAME, "version": 0, "edition": 5, "license": "MIT", "backends": ["cpu", "cuda"],
        },
        "torch": {
            "src": ["torch-ext/torch_binding.cpp"], "pyext": ["py", "toml"], "include": list(INCLUDE),
        },
        "torch.stable-abi": {"cpu": TORCH, "cuda": TORCH},
        "kernel.cpu": _kernel("cpu", [*cpu, *headers], **{"cxx-flags": list(CXX)}),
        **{
            f"kernel.cpu_{name}": _kernel(
                "cpu", [*files, *whole, *headers], **{"cxx-flags": [*CXX, *INSTRUCTIONS[name]]}
            )
            for name, files in kernels.items()
        },
        "kernel.cuda": _kernel(
            "cuda", [*cuda, *cuda_kernels, *headers],
            **{"cuda-capabilities": capabilities, "cuda-flags": list(CUDA)},
        ),
    }  # fmt: skip
    return "\n".join(_section(name, values) for name, values in sections.items())


def _kernel(backend: str, files: list[str], **more: list[str]) -> dict[str, object]:
    return {"backend": backend, "depends": ["torch"], "src": files, "include": list(INCLUDE), **more}


def _section(name: str, values: dict[str, object]) -> str:
    # Strings, numbers and lists of strings are written in JSON as in TOML.
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and len(value) > 4:
            lines += [f"{key} = [", *(f"  {json.dumps(one)}," for one in value), "]"]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([f"[{name}]", *lines, ""])


def _names(out: Path, paths: Iterable[Path]) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in paths)


# ------------------------------------------------------------------ Python


def file_of(module: str) -> Path | None:
    """The file of a module of flexkern, as it is installed; None if there is none."""
    parts = module.split(".")[1:]
    base = ROOT.joinpath(*parts) if parts[:1] == ["triton_kernels"] else ROOT.joinpath("flexkern", *parts)
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if parts and p.is_file()), None)


def place_of(path: Path) -> Path:
    """Where a file is in the package."""
    return path.relative_to(ROOT / "flexkern" if path.is_relative_to(ROOT / "flexkern") else ROOT)


def modules() -> set[Path]:
    """The files of the operators, of their families in PyTorch and Triton, and of all that they import."""
    left = [path for name in BEGIN if (path := file_of(name)) is not None]
    # Families are imported by their names, and declarations by looking into their folder.
    families = [path.stem for path in (ROOT / "flexkern" / "reference").glob("*.py")]
    for room in ("reference", "triton_kernels"):
        left += [path for name in families if (path := file_of(f"{NAME}.{room}.{name}")) is not None]
    left += (ROOT / "flexkern" / "spec").glob("*.py")
    found: set[Path] = set()
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        package = path.with_name("__init__.py")
        if package.is_file() and path.parent != ROOT / "flexkern":  # the package has an own one
            left.append(package)
        for node, _ in _imports(path):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if (other := file_of(name or "")) is not None:
                    left.append(other)
    return found


def _imports(path: Path) -> Iterator[tuple[ast.ImportFrom, str]]:
    """Imports from flexkern in a file, and their text."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "flexkern" for alias in node.names):
            raise SystemExit(
                f"{path}, line {node.lineno}: `import flexkern...` has no relative form; use `from`"
            )
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == "flexkern"
        ):
            yield node, ast.get_source_segment(text, node) or ""


def relative(path: Path) -> str:
    """The text of a file that may be imported under any name: its imports from flexkern are by place."""
    text = path.read_text(encoding="utf-8")
    dots = "." * len(place_of(path).parts)
    for node, segment in sorted(_imports(path), key=lambda found: -len(found[1])):
        _, _, module = (node.module or "").partition(".")
        text = text.replace(segment, segment.replace(f"from {node.module} ", f"from {dots}{module} ", 1))
    place = place_of(path).as_posix()
    for old, new in PYTHON.get(place, {}).items():
        if text.count(old) != 1:
            raise SystemExit(f"{path}: {old!r} is not there once: mend PYTHON in scripts/kernels_layout.py")
        text = text.replace(old, new)
    if place == "backends/__init__.py":
        text = _with_own_loading(text)
    return text


def _with_own_loading(text: str) -> str:
    function = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "_load_library"
    )
    segment = ast.get_source_segment(text, function) or ""
    return text.replace(segment, LOAD.rstrip()).replace(
        "from ..backends import gpus, tuning", "from ..backends import built, gpus, tuning"
    )


if __name__ == "__main__":
    main()
