"""What all fuzzers share: a case is made from its number alone, so that each one can be run again by itself."""

from __future__ import annotations

import importlib
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["FUZZERS", "MODULES", "Fuzzer", "find", "fuzzer", "run_cases"]

_ROOT = f"{Path(__file__).parents[2]}{os.sep}"  # results tell no paths of a machine
Case = Callable[[np.random.Generator], str]

# One file each in this folder; its fuzzers register themselves when it is imported.
MODULES = tuple(
    path.stem
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "__main__", "harness") and not path.stem.startswith("test_")
)


class Fuzzer(NamedTuple):
    """A kind of random case.

    name: on the command line and in the results.
    case: makes one case from a generator and judges it. It returns what came out, in a word or two ("right",
        "refused": the results count them), and raises where flexkern was wrong: AssertionError, or whatever
        flexkern raised that it should not have.
    quick: how many cases the test suite runs.
    full: how many the full run has.
    """

    name: str
    case: Case
    quick: int
    full: int


FUZZERS: dict[str, Fuzzer] = {}


def fuzzer(name: str, *, quick: int, full: int) -> Callable[[Case], Case]:
    """Registers a function as a fuzzer, see :class:`Fuzzer`."""

    def register(case: Case) -> Case:
        assert name not in FUZZERS or FUZZERS[name].case.__module__ == case.__module__, name
        FUZZERS[name] = Fuzzer(name, case, quick, full)
        return case

    return register


def find() -> dict[str, Fuzzer]:
    """All fuzzers by their names."""
    for module in MODULES:
        importlib.import_module(f"fuzz.{module}")
    return FUZZERS


def run_cases(
    fuzz: Fuzzer, first: int, count: int, *, seed: int = 0, journal: Path | None = None
) -> dict[str, object]:
    """Runs the cases from number ``first`` on; counts what came out, and keeps the traceback of each fault.

    Args:
        journal: a file that has the number of the case that is running, for whoever finds the process dead.
    """
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, object]] = []
    start = time.perf_counter()
    for number in range(first, first + count):
        if journal is not None:
            journal.write_text(json.dumps({"case": number, "outcomes": outcomes, "faults": faults}))
        try:
            outcomes[fuzz.case(np.random.default_rng([seed, number]))] += 1
        except Exception:
            faults.append({"case": number, "error": traceback.format_exc().replace(_ROOT, "")})
    return {"outcomes": dict(outcomes), "faults": faults, "seconds": time.perf_counter() - start}
