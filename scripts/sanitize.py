"""Builds the compiled code with AddressSanitizer and UBSan, and runs tests and random calls on it.

    python scripts/sanitize.py [cpu] [cuda] [--cases 10000]

``cpu``: the CPU library and the module _core, under the operators' tests and fuzzers. ``cuda``: the CUDA
kernels and their bindings, compiled for the host (tests/native/cuda_on_host), under some of these tests and
random launches. Each has a package of its own in build/asan, which PYTHONPATH puts before the installed one. A
report of a sanitizer ends the process that makes it; no other is begun after that, and this program fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "asan"
EMULATOR = ROOT / "tests" / "native" / "cuda_on_host"
FLAGS = (
    "-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
KINDS = ("cpu", "cuda")
sys.path.insert(0, str(ROOT / "build_tools"))

from backend import get_requires_for_build_wheel  # noqa: E402
from target_torch import find_torch  # noqa: E402

# Beside flexkern/ in the tree, and inside it where they are installed.
BESIDE = ("triton_kernels", "benchmarks")
# The files of tests/ops that call kernels; those left out are of traces, of messages, and of Triton.
TESTS = {
    "cpu": (
        "test_adamw", "test_adapter", "test_displacement", "test_extremes", "test_field", "test_linear",
        "test_mask", "test_memory", "test_metaplastic", "test_null", "test_sgd", "test_synapse",
    ),
    "cuda": (
        "test_adamw", "test_displacement", "test_field", "test_mask", "test_memory", "test_null", "test_sgd",
        "test_synapse",
    ),
}  # fmt: skip


class Part(NamedTuple):
    """What one process runs: on the package of a kind, with these arguments of Python."""

    name: str
    kind: str
    arguments: tuple[str, ...]


def main() -> None:
    """Builds and runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="cpu|cuda", help="default: both")
    parser.add_argument("--cases", type=int, default=10_000, help="random calls of each fuzzer (10,000)")
    parser.add_argument("--launches", type=int, default=2_000, help="random launches of CUDA kernels (2,000)")
    given = parser.parse_args()
    kinds = given.kinds or KINDS
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"{kind!r} is none of {', '.join(KINDS)}")
    tools = with_tools()
    # Together, as each ends with a file or two that take longest.
    with timed("build"), ThreadPoolExecutor(len(kinds)) as pool:
        list(pool.map(lambda kind: build(kind, tools), kinds))
    with timed("tests, random calls and launches"):
        failed = run_all([part for part in parts(given.cases, given.launches) if part.kind in kinds])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def parts(cases: int, launches: int) -> list[Part]:
    """All that is run, about as long each, the longest first: a process of its own each, as many at a time as
    there are processors. Importing torch takes long under AddressSanitizer, and pytest-xdist would do it once
    more than it has processes."""
    made = []
    for i in range(2):
        half = ("native.cuda_on_host.launches", str(i * launches // 2), str(-(-launches // 2)))
        made.append(Part(f"random launches, {i + 1} of 2", "cuda", ("-m", *half)))
    for kind in KINDS:
        for i in range(2):
            files = [f"ops/{name}.py" for name in TESTS[kind][i::2]]
            pytest = ("-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow and not gpu", *files)
            made.append(Part(f"tests, {i + 1} of 2", kind, pytest))
    for name in ("operators", "raw_operators"):
        fuzz = ("-m", "fuzz", name, "--processes", "1", "--cases", str(cases))
        made.append(Part(f"random calls of {name}", "cpu", fuzz))
    foreign = ("-m", "helpers.foreign", str(BUILD / "journal"), "-triton", "-reference")
    return [*made, Part("foreign tensors", "cpu", foreign)]


def run_all(chosen: Sequence[Part]) -> list[str]:
    """Runs parts, and shows what each said at its end; the names of those that failed. After one that failed no
    other is begun."""
    failed: list[str] = []
    showing = Lock()

    def one(part: Part) -> None:
        if failed:
            return
        start = time.perf_counter()
        ended = run(part.kind, *part.arguments)
        with showing:
            print(f"--- {part.kind}: {part.name}\n{ended.stdout}", end="")
            print(f"{part.kind}: {part.name}: {time.perf_counter() - start:.0f} s", flush=True)
            if ended.returncode != 0:
                failed.append(f"{part.kind}: {part.name} (exit code {ended.returncode})")

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # each waits for a process
        list(pool.map(one, chosen))
    return failed


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Says how long it took."""
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


# ------------------------------------------------------------------ building


def with_tools() -> dict[str, str]:
    """The environment of a build, with what pip would install for one: what is missing here."""
    folder = BUILD / "tools"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
    if needed := get_requires_for_build_wheel():
        subprocess.run([*pip, *needed], check=True)
    path = os.pathsep.join((str(folder / "bin"), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}


def build(kind: str, tools: dict[str, str]) -> None:
    """The package of a kind, with its library; ``tools``: the environment of the build."""
    torch = find_torch()
    assert torch is not None, "torch is not installed"
    package = BUILD / kind / "site" / "flexkern"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "lib", "*.so")
    shutil.copytree(ROOT / "flexkern", package, ignore=ignored)
    for folder in BESIDE:
        shutil.copytree(ROOT / folder, package / folder, ignore=ignored)
    work = BUILD / kind / "cmake"
    configure = [
        "cmake", "-GNinja", f"-S{ROOT if kind == 'cpu' else EMULATOR}", f"-B{work}",
        "-DCMAKE_BUILD_TYPE=Sanitized", f"-DCMAKE_CXX_FLAGS={' '.join(FLAGS)}", "-DFLEXKERN_CUDA=OFF",
        f"-DFLEXKERN_TORCH_DIR={torch}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_INSTALL_PREFIX={package}",
    ]  # fmt: skip
    subprocess.run([*configure, "--log-level=WARNING"], check=True, env=tools)
    subprocess.run(["cmake", "--build", work, "--target", "install", "--", "--quiet"], check=True, env=tools)
    if kind == "cuda":  # the module has no CUDA in it: the installed one serves
        for module in (ROOT / "flexkern").glob("_core*.so"):
            shutil.copy(module, package)


# ------------------------------------------------------------------ running


def environment(kind: str | None = None) -> dict[str, str]:
    """Of a process whose libraries have sanitizers; ``kind``: with the package that was built so."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True)
        for name in ("asan", "ubsan")
    ]
    path = [] if kind is None else [str(BUILD / kind / "site"), str(ROOT / "tests")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(found.stdout.strip() for found in libraries),
        # Python leaves memory to the end of the process; huge sizes are for torch to refuse. Memory is not 0
        # when it is given out: what a kernel leaves unwritten is no result.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:protect_shadow_gap=0:"
        "max_malloc_fill_size=268435456",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }


def run(kind: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the package of a kind, from tests/."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT / "tests", env=environment(kind), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


if __name__ == "__main__":
    main()
