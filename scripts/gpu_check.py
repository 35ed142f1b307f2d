"""Everything that only a GPU can tell, in one command: ``make gpu-check``.

Builds flexkern for the GPU that is here (into build/gpu-site, nothing else is touched), runs the GPU tests, the
memory checker over them, and the GPU benchmarks; prints a table and writes benchmarks/results/gpu_check.json.
Works from a bare checkout without a network: it takes the torch, pytest, cmake, ninja, pybind11 and nvcc that
are installed. Takes a few minutes.
"""

from __future__ import annotations

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
BENCH_FILE = "metaplastic_gpu.json"


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


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False here.")
        return 2
    major, minor = torch.cuda.get_device_capability()
    environment = dict(os.environ, FLEXKERN_CUDA_ARCHS=f"{major}{minor}", PYTHONUNBUFFERED="1")
    environment.pop("TRITON_INTERPRET", None)
    shutil.rmtree(SITE, ignore_errors=True)
    bench_path = RESULTS / BENCH_FILE
    bench_path.unlink(missing_ok=True)  # so that an old one is not taken for this run's
    python = sys.executable
    build = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", str(SITE), "."]
    steps = [run("build", build, environment, 300)]
    environment["PYTHONPATH"] = os.pathsep.join([str(SITE), environment.get("PYTHONPATH", "")])
    if steps[0]["exit_code"] == 0:
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu"]
        steps.append(run("tests", [*pytest, "tests"], environment, 240))
        bench = [*pytest, "benchmarks", "-o", "python_files=bench_*.py"]
        steps.append(run("benchmarks", bench, {**environment, "FLEXKERN_RESULTS_NAME": BENCH_FILE}, 240))
        # The tests again under the memory checker, which slows every kernel: the small ones only.
        checked = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *pytest, "tests"]
        steps.append(run("memory check", [*checked, "-k", "not large and not graph"], environment, 240))
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
