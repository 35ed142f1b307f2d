"""Everything that only a GPU can tell, in one command: ``make gpu-check``, in under ten minutes.

Builds flexkern for the GPU that is here (into build/gpu-site; nothing else is touched), runs the GPU tests, the
GPU benchmarks, the tuner of the Triton kernels and, last, compute-sanitizer's memory checker over the small
tests. Prints a table, and writes gpu_check.json with all of it after each step, so that what was found before
a step that hangs is kept. Works from a bare checkout without a network: it takes the torch, Triton, pytest,
cmake, ninja, pybind11 and nvcc that are installed.

Where a machine is lent for a short time, or one command may not run for ten minutes: two or three calls on the
same machine, the most valuable first (what was built and compiled is found again)::

    python scripts/gpu_check.py --only build --only tests --only benchmarks --results out
    python scripts/gpu_check.py --only tune --only memory --results out
    python scripts/gpu_check.py --only tune --select "linear half" --results out    # a part of a step

Steps that would begin after --budget-seconds are left out; each has its own limit besides. With --results the
files (gpu_check.json, that of the benchmarks, tune.json, tuned.toml) go to another folder than
benchmarks/results. A call with --only adds its steps to the gpu_check.json that it finds there. To take what
the tuner found, put tuned.toml in place of flexkern/backends/tuning.toml.
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

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu-site"
RESULTS = ROOT / "benchmarks" / "results"


class Step(NamedTuple):
    """One command: its name, what it sees, how many seconds it may take, and the folder that it runs in."""

    name: str
    command: list[str]
    environment: dict[str, str]
    limit: float
    folder: Path = ROOT


# Seconds. The whole is planned for 570: builds and tests take what they need, benchmarks and tuner stop by
# themselves, and the memory checker has the rest.
LIMITS = {"build": 150.0, "tests": 180.0, "benchmarks": 200.0, "tune": 120.0, "memory": 120.0}
STEPS = tuple(LIMITS)
LEAST = 20.0  # seconds under which no step is begun
# The tuner and the benchmarks are told to begin nothing new this long before their limit.
MARGIN = 25.0


def run(step: Step, limit: float) -> dict[str, Any]:
    """One step, its output shown as it comes; a step that hangs is ended, with all that it has started."""
    print(f"\n=== {step.name} ({limit:.0f} s at most): {' '.join(step.command)}", flush=True)
    start = time.perf_counter()
    try:
        process = subprocess.Popen(step.command, cwd=step.folder, env=step.environment, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
    except FileNotFoundError:
        code = 127
    return {"step": step.name, "exit_code": code, "seconds": round(time.perf_counter() - start, 1)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=STEPS, help="may be repeated; without build, what was built is used"
    )
    parser.add_argument(
        "--select", help="a part of each step: of the tests as pytest's -k, of the others as their --only"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the files")
    parser.add_argument("--budget-seconds", type=float, default=570.0, help="for all steps together")
    return parser.parse_args(arguments)


def base_environment(processors: int) -> dict[str, str]:
    """What all steps see: the GPU's architecture, all processors for the build, real kernels."""
    major, minor = torch.cuda.get_device_capability()
    environment = dict(
        os.environ,
        FLEXKERN_CUDA_ARCHS=f"{major}{minor}",
        CMAKE_BUILD_PARALLEL_LEVEL=str(processors),
        MAX_JOBS=str(processors),
        PYTHONUNBUFFERED="1",
        PYTHONPATH=os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    )
    environment.pop("TRITON_INTERPRET", None)
    return environment


def steps(options: argparse.Namespace, environment: dict[str, str], processors: int) -> list[Step]:
    """All steps, in their order; the commands of benchmarks and tuner are completed when they begin."""
    python = sys.executable
    build = [
        python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade", "--target", str(SITE),
    ]  # fmt: skip
    pytest = [
        python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p",
        "no:cacheprovider", "-m", "gpu",
    ]  # fmt: skip
    # Only the files that need a GPU: the others import what may not be installed here.
    files = sorted(map(str, ROOT.glob("tests/gpu/test_*.py")))
    select = ["-k", options.select] if options.select else []
    only = ["--only", options.select] if options.select else []
    # Most of the time of the tests is Triton's compiler, which has one thread.
    spread = ["-n", str(min(8, processors))] if importlib.util.find_spec("xdist") and processors > 1 else []
    # The memory checker slows every kernel: the small tests only.
    small = f"not large and not graph{f' and ({options.select})' if options.select else ''}"
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    results = options.results
    commands = {
        "build": [*build, "."],
        "tests": [*pytest, *spread, *select, *files],
        "benchmarks": [
            python, "-m", "flexkern.benchmarks", "--device", "cuda", "--results", str(results), *only
        ],
        "tune": [
            python, str(ROOT / "scripts" / "tune.py"), "--json", str(results / "tune.json"), "--table",
            str(results / "tuned.toml"), "--jobs", str(max(1, processors - 2)), *only,
        ],
        "memory": [*sanitizer, *pytest, "-x", *files, "-k", small],
    }  # fmt: skip
    # Torch's allocator keeps freed memory, and an access past the end of a tensor would mostly hit it.
    environments = {"memory": environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}}
    wanted = options.only or STEPS
    # Not in the checkout, but for the build: `python -m` would import flexkern from there, without its library.
    return [
        Step(name, commands[name], environments.get(name, environment), LIMITS[name],
             ROOT if name == "build" else SITE)
        for name in STEPS if name in wanted
    ]  # fmt: skip


def newest_benchmarks(folder: Path, since: float) -> dict[str, Any]:
    """The results that the benchmarks wrote in this run, whole or what there was of them; {} if none."""
    files = [p for p in folder.glob("*-cuda*.json") if p.stat().st_mtime >= since]
    return json.loads(max(files, key=lambda p: p.stat().st_mtime).read_text()) if files else {}


def collect(record: dict[str, Any], folder: Path, since: float) -> None:
    """Writes gpu_check.json with what there is so far."""
    found = newest_benchmarks(folder, since)
    if found:
        record["benchmarks"] = found
    tuned = folder / "tune.json"
    if tuned.exists() and tuned.stat().st_mtime >= since:
        record["tune"] = json.loads(tuned.read_text())
    (folder / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")


def before(folder: Path) -> dict[str, Any]:
    """What an earlier call has written, so that calls with --only add up."""
    path = folder / "gpu_check.json"
    return json.loads(path.read_text()) if path.exists() else {}


def summary(record: dict[str, Any]) -> str:
    lines = [f"\n{'step':<16}{'exit code':>10}{'seconds':>10}"]
    lines += [f"{s['step']:<16}{s['exit_code']:>10}{s['seconds']:>10}" for s in record["steps"]]
    for row in record.get("benchmarks", {}).get("rows", []):
        for peer in row.get("peers", []):
            verdict = "" if peer["met"] is None else "met" if peer["met"] else "NOT MET"
            goal = peer["goal"] or ""
            # In the sense of the goal: a time of 1.4 under "time at most 1.8", not a speed-up of 0.7.
            name, figure = (
                ("time", 1 / peer["speedup"]) if goal.startswith("time") else ("speed-up", peer["speedup"])
            )
            against = f"{row['title']:<56} {peer['name']:<42}"
            lines.append(f"{against} {name:>8} {figure:>7.2f} {goal:<24} {verdict}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False here.")
        return 2
    begun, since = time.perf_counter(), time.time()
    processors = len(os.sched_getaffinity(0))
    options.results = options.results.resolve()
    options.results.mkdir(parents=True, exist_ok=True)
    earlier = before(options.results) if options.only else {}
    chosen = steps(options, base_environment(processors), processors)
    names = {step.name for step in chosen}
    record: dict[str, Any] = {
        **earlier, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "steps": [s for s in earlier.get("steps", []) if s["step"] not in names],
    }  # fmt: skip
    if "build" in names:
        shutil.rmtree(SITE, ignore_errors=True)
    failed = False
    for step in chosen:
        left = options.budget_seconds - (time.perf_counter() - begun)
        limit = min(step.limit, left)
        if step.name in ("benchmarks", "tune"):
            step = step._replace(
                command=[*step.command, "--budget-seconds", f"{max(LEAST, limit - MARGIN):.0f}"]
            )
        if limit < LEAST:
            done = {"step": step.name, "exit_code": 125, "seconds": 0.0}
            print(f"\n=== {step.name}: no time is left for it; run it with --only {step.name}")
        else:
            done = run(step, limit)
        record["steps"].append(done)
        collect(record, options.results, since)
        failed = failed or done["exit_code"] != 0
        if step.name == "build" and done["exit_code"] != 0:
            break
    print(summary(record))
    print(f"written: {options.results / 'gpu_check.json'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
