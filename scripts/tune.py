"""Races configurations of the Triton kernels, and backends, on the GPU that is here.

The candidates stand beside the kernels (CANDIDATES in the modules of flexkern.triton_kernels), the work that is
timed beside the benchmarks (flexkern.benchmarks.workloads).
A candidate is compiled (in parallel), dropped if it spills, held against the reference and against the present
configuration, and then timed in turns with the others: replays of CUDA graphs between device events, over
buffers larger than the L2 cache. Prints a table, and the entries of the tuning table that would change; writes
all measurements to a JSON.

    python scripts/tune.py --json out.json                    # about four minutes; changes nothing
    python scripts/tune.py --json out.json --table tuned.toml # and the table with what was measured
    python scripts/tune.py --update                           # the same, in flexkern/backends/tuning.toml
    python scripts/tune.py --only "linear half" --only backends
    python scripts/tune.py --from out.json --update           # enters what was measured before, without a GPU

It stops at --budget-seconds, the most important kernels first, and says what it has not reached. Needs torch
and Triton, and flexkern installed or on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flexkern import backends, use_backend
from flexkern.backends import tuning
from flexkern.benchmarks import workloads
from flexkern.benchmarks.workloads import Workload
from flexkern.triton_kernels import aot
from flexkern.triton_kernels.catalogue import candidates

TABLE = Path(__file__).resolve().parent.parent / "flexkern" / "backends" / "tuning.toml"
ROUNDS = 15
WORTH = 0.98  # a candidate takes the place of what is there if it takes at most this share of its time


class Stopwatch(NamedTuple):
    """How calls are timed; tests have one without a GPU."""

    prepare: Callable[[Sequence[Callable[[], object]]], Callable[[], object]]  # calls to what makes them all
    seconds: Callable[[Callable[[], object]], float]


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    for call in calls:  # compiles, and copies tables of tensors
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _between_events(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


CUDA_GRAPHS = Stopwatch(_captured, _between_events)


class Racer:
    """Runs races until its time is used up.

    Args:
        device: where.
        shapes: "full" or "tiny", as the cases have them.
        stopwatch: how calls are timed.
        deadline: of time.monotonic().
        jobs: processes that compile; 0: kernels are compiled when they are first called.
    """

    def __init__(
        self, device: torch.device, shapes: str, stopwatch: Stopwatch, deadline: float, jobs: int = 0
    ) -> None:
        self.device, self.shapes, self.stopwatch, self.deadline = device, shapes, stopwatch, deadline
        self.architecture = tuning.architecture(device)
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs else None
        self._compiled: dict[tuple[str, str], list[list[Future]]] = {}

    def compile(self, cases: Sequence[Workload]) -> None:
        """Begins to compile all candidates, those of the first cases first."""
        for case in cases if self._pool is not None else ():
            assert self._pool is not None
            self._compiled[case.kernel, case.variant] = [
                [self._pool.submit(aot.report, name, self.architecture, c) for name in case.compiles]
                for c in self._candidates(case)
            ]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _candidates(self, case: Workload) -> list[dict[str, int]]:
        return candidates(
            case.kernel, case.variant, tuning.config(case.kernel, case.variant, self.architecture)
        )

    def _wait_compiled(self, case: Workload, i: int) -> str | None:
        """Why candidate ``i`` cannot take part."""
        futures = self._compiled.get((case.kernel, case.variant))
        for future in futures[i] if futures else ():
            try:
                report = future.result(timeout=max(0.0, self.deadline - time.monotonic()))
            except Exception as error:  # whatever the compiler raises
                return f"{type(error).__name__}: {str(error)[:200]}"
            if report["spills"] or report["stack"] > 16:  # some bytes of stack are not worth a word
                return f"spills {report['spills']} bytes, stack {report['stack']}"
        return None

    def kernel(self, case: Workload) -> dict[str, Any]:
        """Races the configurations of a kernel's variant."""
        configurations = self._candidates(case)
        runs: list[list[Callable[[], object]] | None] = []
        skipped: list[str | None] = []
        judge = Judge(case, self.device)
        with use_backend("triton"), workloads.precision(case.variant):
            for i, configuration in enumerate(configurations):
                why = None if i == 0 else "not reached" if time.monotonic() > self.deadline else None
                why = why or self._wait_compiled(case, i)
                run = None
                if why is None:
                    with tuning.trial(case.kernel, case.variant, configuration):
                        try:
                            why = judge.fault(case.result(self.device))
                            if why is None:
                                calls = case.calls(self.device, self.shapes)
                                run = [self.stopwatch.prepare(of_shape) for of_shape in calls]
                        except Exception as error:  # out of shared memory, registers, ...
                            why = f"{type(error).__name__}: {str(error)[:200]}"
                runs.append(run)
                skipped.append(why)
            times = self._race(runs, case.sets)
        entries = [
            {"config": c, "us": t, "skipped": why}
            for c, t, why in zip(configurations, times, skipped, strict=True)
        ]
        return {"kernel": case.kernel, "variant": case.variant, "what": case.what, **_verdict(entries)}

    def backends(self, case: Workload) -> dict[str, Any]:
        """Races the backends of an operator."""
        entries: list[dict[str, Any]] = []
        runs: list[list[Callable[[], object]] | None] = []
        judge = Judge(case, self.device)
        for name in ("cuda", "triton"):
            why, run = None, None
            if not backends()[name].available:
                why = backends()[name].reason
            else:
                with use_backend(name):
                    try:
                        why = judge.off_reference(case.result(self.device))
                        if why is None:
                            calls = case.calls(self.device, self.shapes)
                            run = [self.stopwatch.prepare(of_shape) for of_shape in calls]
                    except Exception as error:  # whatever a backend raises: the other one is timed all the same
                        why = f"{type(error).__name__}: {str(error)[:200]}"
            runs.append(run)
            entries.append({"config": name, "skipped": why})
        for entry, times in zip(entries, self._race(runs, case.sets), strict=True):
            entry["us"] = times
        return {"operator": case.kernel, "what": case.what, **_verdict(entries, worth=1.0)}

    def _race(self, runs: Sequence[list[Callable[[], object]] | None], calls: int) -> list[list[float] | None]:
        """Median microseconds of a call on each shape, for each run, in turns; a run makes ``calls`` calls."""
        taken: list[list[list[float]]] = [[[] for _ in run or ()] for run in runs]
        for _ in range(ROUNDS):
            for run, into in zip(runs, taken, strict=True):
                for one, seconds in zip(run or (), into, strict=True):
                    seconds.append(1e6 / calls * self.stopwatch.seconds(one))
        return [
            [round(statistics.median(s[2:]), 3) for s in into] if run is not None else None
            for run, into in zip(runs, taken, strict=True)
        ]


class Judge:
    """Says whether results of a workload's small shape are right.

    All are held against the reference, whatever runs first; those of Triton's configurations also against each
    other: a configuration must not change results by more than the workload allows, mostly by nothing.
    """

    def __init__(self, case: Workload, device: torch.device) -> None:
        self.case = case
        with use_backend("reference"), workloads.precision("ieee"):
            self.reference = [t.clone() for t in case.result(device)]
        self.first: list[torch.Tensor] | None = (
            None  # of the first configuration that is right: the present one
        )

    def off_reference(self, got: Sequence[torch.Tensor]) -> str | None:
        return _difference(got, self.reference, self.case.judged, "the reference")

    def fault(self, got: Sequence[torch.Tensor]) -> str | None:
        """What is wrong with the results of a configuration; None: nothing."""
        why = self.off_reference(got)
        if why is None and self.first is not None:
            why = _difference(got, self.first, self.case.tolerance, "the present configuration")
        if why is None and self.first is None:
            self.first = [t.clone() for t in got]
        return why


def _difference(
    got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float, whose: str
) -> str | None:
    """What is wrong with results that should be as expected, relative in the Euclidean norm; 0: to the bit.

    Integers, as words of a mask, are right to the bit or not at all.
    """
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype} {list(a.shape)} where {whose} has {b.dtype} {list(b.shape)}"
        if tolerance == 0 or not b.is_floating_point():
            if not torch.equal(a, b):
                return f"other bits than {whose}"
            continue
        norm = b.double().norm()
        error = (a.double() - b.double()).norm() / norm if norm else (a.double() - b.double()).norm()
        if not float(error) <= tolerance:  # NaN too
            return f"off by {float(error):.2g} of {whose}'s result, {tolerance:g} is allowed"
    return None


def _verdict(entries: list[dict[str, Any]], worth: float = WORTH) -> dict[str, Any]:
    """Which entry wins, by the geometric mean over shapes; the first one where none is worth it."""
    scores = [math.prod(e["us"]) ** (1 / len(e["us"])) if e["us"] else math.inf for e in entries]
    best = min(range(len(entries)), key=scores.__getitem__)
    if scores[best] > worth * scores[0]:
        best = 0
    chosen = None if scores[best] == math.inf else entries[best]["config"]
    return {"candidates": entries, "chosen": chosen}


# --------------------------------------------------------------------------- what comes of it


def machine(device: torch.device) -> dict[str, Any]:
    """What the measurements were made with."""
    import triton

    here: dict[str, Any] = {
        "device": platform.processor() or platform.machine(), "architecture": tuning.architecture(device),
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        here |= {"device": name, "cuda": torch.version.cuda, "driver": _driver()}
    return here


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.exists() else "unknown"


def _us(times: Sequence[float]) -> str:
    return " and ".join(f"{t:.1f}" for t in times)


def entered(measured: dict[str, Any]) -> tuple[tuning.Table, list[str]]:
    """The table with what was measured, and a line for each row that has another configuration now."""
    present = copy.deepcopy(tuning.table())
    changes: list[str] = []
    here = measured["machine"]
    where = f"{here['device']}, torch {here['torch']}, Triton {here['triton']}, {here['date']}"
    for race in (*measured["kernels"], *measured["backends"]):
        timed = [e for e in race["candidates"] if e["us"]]
        if race["chosen"] is None or len(timed) < 2:
            continue
        won = next(e for e in timed if e["config"] == race["chosen"])
        others = sorted((e for e in timed if e is not won), key=lambda e: math.prod(e["us"]))
        second = f"{_short(others[0]['config'], won['config'])} {_us(others[0]['us'])}"
        reason = f"measured: {_us(won['us'])} us for {race['what']}; {second} ({where})"
        rows: dict[str, Any]
        value: Any
        if "operator" in race:
            name, value = race["operator"], (won["config"], others[0]["config"])
            rows = present.backends.setdefault(name, {})
        else:
            name, value = f"{race['kernel']} {race['variant']}", won["config"]
            rows = present.configurations.setdefault(race["kernel"], {}).setdefault(race["variant"], {})
        known = next((n for n in tuning.known_as(here["architecture"]) if n in rows), None)
        before = rows[known][0] if known else None
        if before != value:
            changes.append(f"{name}: {before} -> {value}, {reason}")
        rest: dict[str, Any] = {target: row for target, row in rows.items() if target != here["architecture"]}
        rows.clear()
        rows.update({here["architecture"]: (value, reason), **rest})  # what was measured comes first
    return present, changes


def _short(config: Any, like: Any) -> str:
    """What is other in ``config``."""
    if isinstance(config, str):
        return config
    return ", ".join(f"{k} {config.get(k, 'free')}" for k in {**like, **config} if config.get(k) != like.get(k))


def table(measured: dict[str, Any]) -> str:
    """All that was measured, as text."""
    lines = []
    for race in (*measured["kernels"], *measured["backends"]):
        name = race.get("operator") or f"{race['kernel']} {race['variant']}"
        lines.append(f"{name}: {race['what']}")
        for e in race["candidates"]:
            mark = "*" if e["config"] == race["chosen"] else " "
            config = (
                e["config"]
                if isinstance(e["config"], str)
                else " ".join(f"{k}={v}" for k, v in e["config"].items())
            )
            lines.append(f" {mark} {config:<72} {_us(e['us']) + ' us' if e['us'] else e['skipped']}")
    lines += [f"not reached: {name}" for name in measured["not_reached"]]
    return "\n".join(lines)


def measure(
    device: torch.device,
    *,
    only: Sequence[str] = (),
    budget: float = 240.0,
    shapes: str = "full",
    stopwatch: Stopwatch = CUDA_GRAPHS,
    jobs: int = 0,
    after_each: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Races all cases, the most important first; ``after_each`` gets what there is after each race."""
    wanted = [c for c in workloads.of_kernels() if not only or f"{c.kernel} {c.variant}" in only]
    operators = workloads.of_backends() if not only or "backends" in only else []
    deadline = time.monotonic() + budget
    racer = Racer(device, shapes, stopwatch, deadline, jobs)
    measured: dict[str, Any] = {"machine": machine(device), "kernels": [], "backends": [], "not_reached": []}
    try:
        racer.compile(wanted)
        races = [(c, racer.kernel, "kernels") for c in wanted]
        races += [(c, racer.backends, "backends") for c in operators]
        for case, race, into in races:
            if time.monotonic() > deadline:
                measured["not_reached"].append(f"{case.kernel} {case.variant}".strip())
                continue
            measured[into].append(race(case))
            after_each(measured)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        racer.close()
    return measured


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"{c.kernel} {c.variant}" for c in workloads.of_kernels()] + ["backends"]
    parser.add_argument("--only", action="append", choices=names, default=[], help="may be repeated")
    parser.add_argument("--budget-seconds", type=float, default=240.0)
    parser.add_argument("--json", type=Path, help="where the measurements go, after each race")
    parser.add_argument("--from", dest="source", type=Path, help="take the measurements from this JSON instead")
    parser.add_argument("--table", type=Path, help="where the new table goes; nowhere by default")
    parser.add_argument("--update", action="store_true", help="put it in place of the present one")
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="compiling processes"
    )
    options = parser.parse_args(arguments)

    def write(measured: dict[str, Any]) -> None:
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(measured, indent=1) + "\n")

    if options.source is not None:
        measured = json.loads(options.source.read_text())
    elif not torch.cuda.is_available():
        print("tune.py needs a GPU that torch sees, or --from with what one measured.")
        return 2
    else:
        measured = measure(
            torch.device("cuda", torch.cuda.current_device()), only=options.only, budget=options.budget_seconds,
            jobs=options.jobs, after_each=write,
        )  # fmt: skip
        write(measured)
    print(table(measured))
    rows, changes = entered(measured)
    print("\n".join(changes) or "every configuration stays as it is")
    for path in (options.table, TABLE if options.update else None):
        if path is not None:
            path.write_text(tuning.as_toml(rows), encoding="utf-8")
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
