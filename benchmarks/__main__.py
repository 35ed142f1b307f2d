"""``python -m flexkern.benchmarks``: ``flexkern bench`` with nothing but torch installed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flexkern.benchmarks import record, worker
from flexkern.benchmarks.case import CPU, GPU, Case, Series, Setting, cases
from flexkern.benchmarks.ceilings import Calm, measure_ceilings
from flexkern.benchmarks.machine import huge_pages, machine
from flexkern.benchmarks.run import forget, measure_case, measure_series
from flexkern.benchmarks.tables import heading, row_lines
from flexkern.benchmarks.worker import Options

PATIENCE = "seconds to wait before a case, at most, where others take the memory's bandwidth"
LATE = {"skipped": "the time given was used up", "late": True}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flexkern.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="cases with this in their name; repeatable")
    parser.add_argument("--device", choices=(CPU, GPU), default=GPU if torch.cuda.is_available() else CPU)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that everything runs")
    parser.add_argument("--seconds", type=float, default=12.0, help="for the rounds of each case")
    parser.add_argument("--budget-seconds", type=float, help="begin no case after this many seconds")
    parser.add_argument("--patience", type=float, default=20.0, help=PATIENCE)
    parser.add_argument("--results", type=Path, help="folder for the results file")
    parser.add_argument("--stream", action="store_true", help="measure in this process, and print JSON lines")
    parser.add_argument("--small-pages", action="store_true", help="only what is measured with small pages too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a case failed, 2 if the arguments do not fit."""
    given = parse(arguments)
    if given.device == GPU and not torch.cuda.is_available():
        print("--device cuda needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False here.")
        return 2
    options = Options(
        given.device, given.only, given.quick, given.seconds, given.budget_seconds, given.patience
    )
    try:
        chosen = [entry for entry in cases(options.only) if options.device in entry.devices]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if given.small_pages:
        chosen = [entry for entry in chosen if isinstance(entry, Case) and entry.small_pages]
    if given.stream:
        if chosen:
            for part in measure(chosen, options):
                print(json.dumps(part), flush=True)
        return 0
    print(heading())
    folder = given.results or record.default_folder()
    run = worker.collect(_shown(worker.run(options)), options, lambda run: record.keep_draft(run, folder))
    print(f"written: {record.write(run, folder)}")
    return int(any("failed" in part for part in run["rows"] + run["series"]))


def measure(chosen: Sequence[Case | Series], options: Options) -> Iterator[dict[str, Any]]:
    """What the machine is and can do, then a dict for each row and series."""
    begun = time.perf_counter()
    ceilings = measure_ceilings(Setting(options.device, quick=options.quick))
    yield {"machine": machine(), "ceilings": ceilings.as_dict(), "huge_pages": huge_pages()}
    calm = Calm(ceilings, options.patience) if options.device == CPU and not options.quick else None
    for entry in chosen:
        late = options.budget is not None and time.perf_counter() - begun > options.budget
        if isinstance(entry, Series):
            name = {"series": entry.name, "device": options.device}
            setting = Setting(options.device, quick=options.quick)
            yield {**name, **LATE} if late else _guarded(name, lambda e=entry, s=setting: measure_series(e, s))
        else:
            for setting in entry.settings(options.device, options.quick):
                name = {
                    "case": entry.name, "device": options.device, "backend": setting.backend,
                    "pages": "huge" if huge_pages() else "small", "budget": entry.budget,
                }  # fmt: skip
                if calm is not None and not late:
                    name["calm"] = calm.wait()
                row = LATE if late else _guarded(
                    name, lambda e=entry, s=setting: measure_case(e, s, ceilings, options.seconds)
                )  # fmt: skip
                yield {**name, **row}
        forget()


def _guarded(name: dict[str, Any], measured: Any) -> dict[str, Any]:
    """One case that fails must not cost the others theirs."""
    try:
        return measured()
    except Exception as error:
        return {**name, "failed": f"{type(error).__name__}: {error}"}


def _shown(parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Passes parts on, and prints each as it comes."""
    for part in parts:
        for line in row_lines(part):
            print(line, flush=True)
        yield part


if __name__ == "__main__":
    sys.exit(main())
