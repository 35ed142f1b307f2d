"""Everything that only a GPU can tell, in one command: ``make gpu-check``.

Builds flexkern for the GPU that is here (into build/gpu-site, nothing else is touched), runs the GPU tests, the
memory checker over them, and the GPU benchmarks; prints a table and writes benchmarks/results/gpu_check.json.
Works from a bare checkout without a network: it takes the torch, pytest, cmake, ninja, pybind11 and nvcc that
are installed. Takes some minutes; ``python scripts/gpu_check.py --only build --only tests`` does a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu-site"
RESULTS = ROOT / "benchmarks" / "results"
BENCH_FILE = "benchmarks_gpu.json"


def run(name: str, command: list[str], environment: dict[str, str], limit: int) -> dict[str, object]:
    """One step, its output shown as it comes; a step that hangs is ended after ``limit`` seconds."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    start = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        code = 124
    except FileNotFoundError:
        code = 127
    return {"step": name, "exit_code": code, "seconds": round(time.perf_counter() - start, 1)}


STEPS = ("build", "tests", "benchmarks", "memory")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=STEPS, help="may be repeated; without build, what was built is used"
    )
    parser.add_argument("--select", help="of the tests and benchmarks only these, as pytest's -k")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    wanted = options.only or STEPS
    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False here.")
        return 2
    major, minor = torch.cuda.get_device_capability()
    environment = dict(os.environ, FLEXKERN_CUDA_ARCHS=f"{major}{minor}", PYTHONUNBUFFERED="1")
    environment.pop("TRITON_INTERPRET", None)
    bench_path = RESULTS / BENCH_FILE
    bench_path.unlink(missing_ok=True)  # so that an old one is not taken for this run's
    python = sys.executable
    steps = []
    if "build" in wanted:
        shutil.rmtree(SITE, ignore_errors=True)
        build = [
            python,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "--target",
            str(SITE),
            ".",
        ]
        steps.append(run("build", build, environment, 300))
    environment["PYTHONPATH"] = os.pathsep.join([str(SITE), environment.get("PYTHONPATH", "")])
    if not steps or steps[0]["exit_code"] == 0:
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu"]
        select = ["-k", options.select] if options.select else []
        bench = [*pytest, *select, "benchmarks", "-o", "python_files=bench_*.py"]
        # The memory checker slows every kernel: the small tests only.
        small = f"not large and not graph{f' and ({options.select})' if options.select else ''}"
        sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
        # Only the files that need a GPU: the others import what may not be installed here.
        tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/ops/test_gpu*.py"))
        # The first run compiles the Triton kernels that it uses, seconds each; the others find them in a cache.
        commands = {
            "tests": ([*pytest, *select, *tests], environment, 420),
            "benchmarks": (bench, {**environment, "FLEXKERN_RESULTS_NAME": BENCH_FILE}, 300),
            "memory": ([*sanitizer, *pytest, *tests, "-k", small], environment, 300),
        }
        steps += [run(name, *commands[name]) for name in commands if name in wanted]
    rows = json.loads(bench_path.read_text()) if bench_path.exists() else {}
    path = RESULTS / "gpu_check.json"
    path.write_text(json.dumps({"steps": steps, "benchmarks": rows}, indent=1) + "\n")
    print(f"\n{'step':<16}{'exit code':>10}{'seconds':>10}")
    for step in steps:
        print(f"{step['step']:<16}{step['exit_code']:>10}{step['seconds']:>10}")
    for row in rows.get("rows", []):
        verdict = "met" if row["met"] else "NOT MET"
        print(f"{row['name']:<44} {row['peer']:<42} {row['ratio']:>7} {row['goal']:<14} {verdict}")
    print(f"written: {path}")
    return max(int(bool(step["exit_code"])) for step in steps)


if __name__ == "__main__":
    sys.exit(main())
