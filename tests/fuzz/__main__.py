"""Runs fuzzers: ``python -m fuzz operators --cases 100000 --processes 2``; see ``python -m fuzz --help``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flexkern.files import write_json
from fuzz.harness import Fuzzer, find, run_cases
from helpers.machine import machine_line

_CHUNK = 50_000  # cases per process, at most


def main() -> int:
    fuzzers = find()
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Random cases, each one judged.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(fuzzers)}; default: all")
    parser.add_argument("--cases", type=int, help="of each; default: what its full run has")
    parser.add_argument("--quick", action="store_true", help="as many cases of each as the tests run")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--here", action="store_true", help="in this process, stopping at a fault: to debug")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(fuzzers))
    if unknown:
        parser.error(f"no fuzzer is called {', '.join(unknown)}; there are {', '.join(fuzzers)}")
    results: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():  # of fuzzers that are not run now, what there is stays
        results = json.loads(arguments.json.read_text())["fuzzers"]
    for name in arguments.names or fuzzers:
        fuzz = fuzzers[name]
        count = fuzz.quick if arguments.quick else arguments.cases or fuzz.full
        if arguments.here:
            found = run_cases(fuzz, arguments.first, count, seed=arguments.seed)
        else:
            found = in_processes(fuzz, arguments.first, count, arguments.seed, arguments.processes)
        results[name] = {"cases": count, **found}
        outcomes = ", ".join(f"{n} {what}" for what, n in sorted(found["outcomes"].items()))
        print(f"{name}: {count} cases in {found['seconds']:.0f} s: {outcomes}; {len(found['faults'])} faults")
        for fault in found["faults"][:5]:
            print(f"--- {name}, case {fault['case']}\n{fault['error']}")
        sys.stdout.flush()
        if arguments.json:
            counts = {"fuzzers": results, "cases": sum(found["cases"] for found in results.values())}
            write_json(arguments.json, machine_line() | counts)
    return int(any(found["faults"] for found in results.values()))


def in_processes(fuzz: Fuzzer, first: int, count: int, seed: int, processes: int) -> dict[str, Any]:
    """The cases in chunks, each in a process of its own; one that dies is a fault, and the rest goes on."""
    start = time.perf_counter()
    size = max(1, min(_CHUNK, -(-count // processes)))
    chunks = [(n, min(size, first + count - n)) for n in range(first, first + count, size)]
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    with ThreadPoolExecutor(processes) as pool:
        for parts in pool.map(lambda chunk: list(_chunk(fuzz.name, *chunk, seed)), chunks):
            for part in parts:
                outcomes.update(part["outcomes"])
                faults += part["faults"]
    return {"outcomes": dict(outcomes), "faults": faults, "seconds": time.perf_counter() - start}


def _chunk(name: str, first: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    end = first + count
    with tempfile.TemporaryDirectory() as folder:
        journal, result = Path(folder) / "journal.json", Path(folder) / "result.json"
        while first < end:
            journal.unlink(missing_ok=True)
            text = (
                "import json, sys; from pathlib import Path; from fuzz.harness import find, run_cases\n"
                "name, first, count, seed, journal, result = sys.argv[1:]\n"
                "fuzz, seed, journal = find()[name], int(seed), Path(journal)\n"
                "found = run_cases(fuzz, int(first), int(count), seed=seed, journal=journal)\n"
                "Path(result).write_text(json.dumps(found))"
            )
            command = [sys.executable, "-c", text, name, str(first), str(end - first), str(seed)]
            ended = subprocess.run(
                [*command, str(journal), str(result)],
                cwd=Path(__file__).parents[1],
                env={"OMP_NUM_THREADS": "1", **os.environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if ended.returncode == 0:
                yield json.loads(result.read_text())
                return
            if not journal.exists():
                raise RuntimeError(f"{name}: the process ended before its first case:\n{ended.stderr}")
            known = json.loads(journal.read_text())
            error = f"the process ended with {ended.returncode}:\n{ended.stderr[-2000:]}"
            yield {
                "outcomes": known["outcomes"],
                "faults": [*known["faults"], {"case": known["case"], "error": error}],
            }
            first = known["case"] + 1


if __name__ == "__main__":
    sys.exit(main())
