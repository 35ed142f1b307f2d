"""A run of the benchmarks in a process of its own: nothing but the cases is in memory, and pages can be chosen,
because torch decides once whether it asks for huge ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexkern.benchmarks.case import CPU
from flexkern.benchmarks.machine import HUGE_PAGES

__all__ = ["Options", "collect", "run", "stream"]

# From this level on torch's profiler says nothing: it tells stderr of each start and stop, in the middle of the
# table.
_NO_WORDS_OF_THE_PROFILER = {"KINETO_LOG_LEVEL": "6"}


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        device: "cpu" or "cuda".
        only: see :func:`flexkern.benchmarks.case.cases`; empty: all.
        quick: small sizes, to see that everything runs.
        seconds: for the rounds of each case.
        budget: begin no case after this many seconds; None: no limit.
        patience: see :class:`flexkern.benchmarks.ceilings.Calm`; on a CPU.
    """

    device: str = CPU
    only: Sequence[str] = field(default=())
    quick: bool = False
    seconds: float = 12.0
    budget: float | None = None
    patience: float = 20.0

    def arguments(self) -> list[str]:
        """For ``python -m flexkern.benchmarks``."""
        arguments = ["--device", self.device, "--seconds", str(self.seconds)]
        arguments += ["--patience", str(self.patience)]
        arguments += [word for pattern in self.only for word in ("--only", pattern)]
        arguments += ["--quick"] * self.quick
        return arguments + ([] if self.budget is None else ["--budget-seconds", str(self.budget)])


def stream(
    options: Options,
    *,
    small_pages: bool = False,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> Iterator[dict[str, Any]]:
    """What ``python -m flexkern.benchmarks --stream`` prints, as it comes.

    Args:
        small_pages: with torch's default pages, and only the cases that are measured so too.
        environment: variables beside this process's own.
        folder: where it runs.

    Raises:
        RuntimeError: if it ends with an error.
    """
    command = [sys.executable, "-m", "flexkern.benchmarks", "--stream", *options.arguments()]
    pages = {HUGE_PAGES: "0" if small_pages else "1"}
    process = subprocess.Popen(
        [*command, "--small-pages"] if small_pages else command,
        env={**_NO_WORDS_OF_THE_PROFILER, **os.environ, **pages, **(environment or {})},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("{"):  # a library's own words are not ours
                yield json.loads(line)
        code = process.wait()
    finally:  # also when the reader stops
        process.kill()
        process.wait()
    if code:
        raise RuntimeError(f"the benchmark process ended with exit code {code}; what it said stands above")


def run(options: Options) -> Iterator[dict[str, Any]]:
    """All cases; on a CPU some of them once more with small pages."""
    yield from stream(options)
    if options.device == CPU:
        yield from stream(options, small_pages=True)


def collect(
    parts: Iterator[dict[str, Any]],
    options: Options,
    keep: Callable[[dict[str, Any]], object] = lambda run: None,
) -> dict[str, Any]:
    """A run as its results file has it; ``keep`` is given what there is of it after each part."""
    kept: dict[str, Any] = {
        "device": options.device, "quick": options.quick, "only": list(options.only), "complete": False,
        "rows": [], "series": [],
    }  # fmt: skip
    for part in parts:
        if "machine" in part:
            kept.setdefault("machine", part["machine"])
            kept.setdefault("ceilings", {})["huge" if part["huge_pages"] else "small"] = part["ceilings"]
        else:
            kept["series" if "series" in part else "rows"].append(part)
        keep(kept)
    missing = any("failed" in p or "late" in p for p in kept["rows"] + kept["series"])
    kept["complete"] = not (options.quick or options.only or missing)
    return kept
