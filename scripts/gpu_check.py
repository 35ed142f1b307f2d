"""Everything that only an NVIDIA GPU can tell, in one command of eight minutes: ``make gpu-check``.

Its steps, the most valuable first, so that whatever ends it early costs the least:

    build    flexkern for the GPU that is here, into build/gpu-site; nothing else is touched
    load     what the machine is, which backends load, and an update on each (scripts/gpu_load.py)
    tests    the GPU tests in parallel; each is written down as it ends
    rows     the benchmarks that are promised for a GPU, and the predictions of benchmarks/PREDICTIONS.md
    tune     races of the Triton kernels' configurations, the most important kernels first
    memory   compute-sanitizer's memory checker over the small tests
    more     the other GPU benchmarks, where time is left

Each step has its share of --budget-seconds; what it leaves goes to those after it. At its end it is
interrupted, so that it says what it has found, and then killed. After each step gpu_check.json has all that was
found so far, and what was cut; gpu_check.log is what the steps said. Works from a bare checkout without a
network: it takes the torch, Triton, pytest, cmake, ninja and nvcc that are installed, and says what
is left out where one is missing. To take what the tuner found, put tuned.toml in place of
flexkern/backends/tuning.toml.

The build takes a minute or two of the eight. It can be made beforehand on a machine with nvcc and no GPU, of
the same kind of processor, and carried along in build/gpu-site::

    python scripts/gpu_check.py --only build --architecture 90

    python scripts/gpu_check.py --results out            # and then on the machine with the GPU
    python scripts/gpu_check.py --results out --only tune --select "linear half"     # a part of a step
    python scripts/gpu_check.py --results out --only more --budget-seconds 300

A call with --only adds its steps to the gpu_check.json that it finds in the folder of results. The commit is
read from git, or from FLEXKERN_COMMIT where that is not there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import limited
from gpu_findings import collect, summary

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu-site"
RESULTS = ROOT / "benchmarks" / "results"

# Seconds of the budget that each step may take; scaled where another budget is given.
SHARES = {
    "build": 110.0,
    "load": 30.0,
    "tests": 120.0,
    "rows": 125.0,
    "tune": 50.0,
    "memory": 45.0,
    "more": 0.0,
}
STEPS = tuple(SHARES)
BUDGET = sum(SHARES.values())
LEAST = 12.0  # seconds under which no step is begun
GRACE = 8.0  # seconds from its interruption to its end, of the step's own time
# The benchmarks and the tuner are told to begin nothing new this long before they would be interrupted: a case
# with torch.compile takes as long.
MARGIN = 15.0
NOT_BEGUN = 125
# The rows that are promised for a GPU, by the names of their cases: see benchmarks/PREDICTIONS.md.
ROWS = (
    "metaplastic/step", "metaplastic/small-tensors", "metaplastic/procedural-step",
    "metaplastic/procedural-uniform", "synapse/*pack_mask", "linear/step-*", "adapter/vit-b-bf16-*",
    "artsy/inference-10", "artsy/inference-50",
)  # fmt: skip
# Of each GPU row, instead of 12: what is timed takes milliseconds.
SECONDS_A_CASE = 2.0
SANITIZERS = ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer")  # below the toolkit's folder


class Step(NamedTuple):
    """A command: its name, what it sees, the folder that it runs in, and why it cannot run here, if so."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    missing: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 where a step failed, was cut or not begun; 2 where there is no GPU."""
    options = parse(arguments)
    if not torch.cuda.is_available() and options.architecture is None:
        print("gpu-check needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False here.")
        return 2
    # Where it runs in the background of a shell, interruptions would be ignored, by its programs too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.results = options.results.resolve()
    options.results.mkdir(parents=True, exist_ok=True)
    earlier = before(options.results) if options.only else {}
    chosen = steps(options, len(os.sched_getaffinity(0)))
    names = {step.name for step in chosen}
    record: dict[str, Any] = {
        **earlier, "device": device_name(), "torch": torch.__version__,
        "steps": [s for s in earlier.get("steps", []) if s["step"] not in names],
    }  # fmt: skip
    begun, since = time.perf_counter(), time.time()
    interrupted = False
    for step, end in zip(chosen, ends([step.name for step in chosen], options.budget_seconds), strict=True):
        done = {"step": step.name, "exit_code": NOT_BEGUN, "seconds": 0.0}
        left = end - (time.perf_counter() - begun)
        if interrupted or (step.name != "build" and nothing_to_run(record["steps"])):
            done["why"] = "interrupted" if interrupted else "nothing was built"
        elif step.missing is not None:
            done |= {"exit_code": 0, "skipped": step.missing}
        elif left < LEAST:
            done["why"] = "no time was left"
        else:
            try:
                done |= perform(step, left - GRACE, options.results)
            except KeyboardInterrupt:
                interrupted = True
                done |= {"exit_code": limited.CUT, "why": "interrupted"}
        if "skipped" in done or "why" in done:
            print(f"\n=== {step.name}: {done.get('skipped') or done['why']}", flush=True)
        record["steps"].append(done)
        collect(record, options.results, since)
    print(summary(record))
    print(f"written: {options.results / 'gpu_check.json'}")
    return int(any(step["exit_code"] != 0 for step in record["steps"]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=STEPS, help="may be repeated; without build, what was built is used"
    )
    parser.add_argument(
        "--select", help="a part of each step: of the tests as pytest's -k, of the others as their --only"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the files")
    parser.add_argument("--budget-seconds", type=float, default=BUDGET, help="for all steps together")
    parser.add_argument("--architecture", help='build for this GPU ("90") without one; with --only build')
    options = parser.parse_args(arguments)
    if options.architecture is not None and options.only != ["build"]:
        parser.error("--architecture is for a build without a GPU: add --only build")
    return options


def ends(names: list[str], budget: float) -> list[float]:
    """When each step has to end, in seconds from the first one's begin. What one leaves goes to the next."""
    whole = sum(SHARES[name] for name in names)
    if whole == 0:
        return [budget for _ in names]
    reached, found = 0.0, []
    for name in names:
        reached += SHARES[name]
        found.append(budget * reached / whole)
    return found


def nothing_to_run(done: list[dict[str, Any]]) -> bool:
    """Whether the build failed so early that not even Triton's kernels are there."""
    failed = any(step["step"] == "build" and step["exit_code"] != 0 for step in done)
    return failed and not (SITE / "flexkern" / "__init__.py").exists()


def perform(step: Step, limit: float, results: Path) -> dict[str, Any]:
    """One step, its output shown as it comes."""
    command = step.command
    if step.name in ("rows", "tune", "more"):
        command = [*command, "--budget-seconds", f"{max(1.0, limit - MARGIN):.0f}"]
    print(f"\n=== {step.name} ({limit:.0f} s at most): {' '.join(command)}", flush=True)
    done = limited.run(
        command, limit=limit, grace=GRACE, folder=step.folder, environment=step.environment,
        log=results / "gpu_check.log",
    )  # fmt: skip
    found: dict[str, Any] = {"exit_code": done.exit_code, "seconds": done.seconds}
    if done.exit_code == limited.CUT:
        found["why"] = "killed at its limit" if done.killed else "interrupted at its limit"
    return found


# ------------------------------------------------------------------ the steps


def steps(options: argparse.Namespace, processors: int) -> list[Step]:
    """Those that are wanted, in their order."""
    python, results = sys.executable, options.results
    select = ["-k", options.select] if options.select else []
    only = ["--only", options.select] if options.select else []
    rows = only or [word for name in ROWS for word in ("--only", name)]
    benchmarks = [python, "-m", "flexkern.benchmarks", "--device", "cuda", "--results", str(results)]
    # The memory checker slows every kernel: the small tests only.
    small = f"not large and not graph{f' and ({options.select})' if options.select else ''}"
    sanitizer = find_sanitizer()
    commands = {
        "build": [
            python, str(ROOT / "scripts" / "gpu_build.py"), str(SITE), options.architecture or architecture()
        ],
        "load": [python, str(ROOT / "scripts" / "gpu_load.py"), "--json", str(results / "load.json")],
        "tests": [*pytest(results / "tests.jsonl"), *in_parallel(processors), *select],
        "rows": [*benchmarks, "--seconds", str(SECONDS_A_CASE), *rows],
        "tune": [
            python, str(ROOT / "scripts" / "tune.py"), "--json", str(results / "tune.json"), "--table",
            str(results / "tuned.toml"), "--jobs", str(max(1, processors - 2)), *only,
        ],
        "memory": [
            sanitizer or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9",
            *pytest(results / "memory.jsonl"), "-k", small,
        ],
        "more": [*benchmarks, "--seconds", str(SECONDS_A_CASE), *only],
    }  # fmt: skip
    has_pytest = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    missing = {
        "tests": has_pytest,
        "tune": None if importlib.util.find_spec("triton") else "Triton is not installed",
        "memory": has_pytest
        if sanitizer
        else "compute-sanitizer is not on PATH or in CUDA_HOME: it comes with the CUDA toolkit",
    }
    base = environment(processors)
    # Of flexkern and of the tests; python -m would import flexkern from the checkout, without its library.
    path = [str(SITE), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    with_site = {**base, "PYTHONPATH": os.pathsep.join(path).rstrip(os.pathsep)}
    one_thread = {**with_site, "OMP_NUM_THREADS": "1"}
    environments = {
        "build": base,
        "tests": one_thread,
        # Torch's allocator keeps freed memory, and an access past the end of a tensor would mostly hit it. And
        # torch.profiler cannot run beside this tool: see tests/helpers/gpu.py.
        "memory": {**one_thread, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "FLEXKERN_NO_PROFILER": "1"},
    }
    wanted = options.only or STEPS
    return [
        Step(name, commands[name], environments.get(name, with_site), ROOT if name == "build" else SITE,
             missing.get(name))
        for name in STEPS if name in wanted
    ]  # fmt: skip


def pytest(record: Path) -> list[str]:
    """The GPU tests, on the flexkern that was built: pyproject.toml would put the checkout before it."""
    command = [
        sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
        "-o", "pythonpath=tests", "-p", "no:cacheprovider", "-p", "helpers.record_tests",
        "--record", str(record), "-m", "gpu",
    ]  # fmt: skip
    if importlib.util.find_spec("pytest_timeout"):
        # A thread can also end a test that waits for the GPU, with its process; pytest-xdist starts another.
        command += ["--timeout", "60", "--timeout-method", "thread"]
    # Only the files that need a GPU: the others import what may not be installed here.
    return [*command, *sorted(map(str, ROOT.glob("tests/gpu/test_*.py")))]


def in_parallel(processors: int) -> list[str]:
    """Most of the time of the tests is Triton's compiler, which has one thread; each process holds a context of
    the GPU, and the judges of the results need processors too."""
    if not importlib.util.find_spec("xdist") or processors < 4:
        return []
    return ["-n", str(min(8, processors // 2)), "--dist", "load", "--maxschedchunk", "4"]


def find_sanitizer() -> str | None:
    found = shutil.which("compute-sanitizer")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / name for home in homes if home for name in SANITIZERS]
    return found or next((str(place) for place in places if place.exists()), None)


def environment(processors: int) -> dict[str, str]:
    """What all steps see: all processors for the build, real kernels, the commit."""
    seen = dict(
        os.environ,
        CMAKE_BUILD_PARALLEL_LEVEL=str(processors),
        MAX_JOBS=str(processors),
        PYTHONUNBUFFERED="1",
        FLEXKERN_COMMIT=os.environ.get("FLEXKERN_COMMIT") or commit(),
    )
    seen.pop("TRITON_INTERPRET", None)
    return seen


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def before(folder: Path) -> dict[str, Any]:
    """What an earlier call has written, so that calls with --only add up."""
    path = folder / "gpu_check.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
