"""The fuzzers' harness finds what is wrong: a fault that was planted, and a process that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuzz import __main__ as command
from fuzz.harness import FUZZERS, Fuzzer, fuzzer, run_cases

# Fuzzers that find a wrong answer, a wrong exception, and the end of their process, in one case of 40 each.
PLANTED = """
import os
from fuzz.harness import fuzzer

@fuzzer("planted", quick=40, full=400)
def case(rng):
    number = int(rng.integers(40))
    if number == 0:
        assert 2 + 2 == 5, "a wrong answer"
    if number == 1:
        raise KeyError("another exception")
    if number == 2:
        os._exit(7)
    return "right" if number % 2 else "refused"
"""


def outcome(rng: np.random.Generator) -> str:
    """What PLANTED does with this generator."""
    number = int(rng.integers(40))
    return ("answer", "exception", "death")[number] if number < 3 else "right" if number % 2 else "refused"


def test_cases_are_made_from_their_numbers() -> None:
    seen: list[float] = []

    def case(rng: np.random.Generator) -> str:
        seen.append(rng.random())
        return "right"

    fuzz = Fuzzer("one", case, 1, 1)
    found = run_cases(fuzz, 0, 20)
    run_cases(fuzz, 13, 1)
    run_cases(fuzz, 13, 1, seed=1)
    assert found["outcomes"] == {"right": 20}
    assert seen[20] == seen[13]
    assert len(set(seen)) == 21


def test_a_name_is_taken_once() -> None:
    def case(rng: np.random.Generator) -> str:
        return "right"

    fuzzer("taken once", quick=1, full=1)(case)
    try:
        fuzzer("taken once", quick=1, full=1)(case)  # the same module again

        def other(rng: np.random.Generator) -> str:
            return "right"

        other.__module__ = "another"
        with pytest.raises(AssertionError, match="taken once"):
            fuzzer("taken once", quick=1, full=1)(other)
    finally:
        del FUZZERS["taken once"]


@pytest.mark.slow
def test_planted_faults_are_found_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "fuzz").mkdir()
    for path in Path(command.__file__).parent.glob("*.py"):
        if path.stem in ("__init__", "__main__", "harness"):
            (tmp_path / "fuzz" / path.name).write_text(path.read_text())
    (tmp_path / "fuzz" / "planted.py").write_text(PLANTED)
    (tmp_path / "helpers").symlink_to(Path(command.__file__).parents[1] / "helpers")
    results = tmp_path / "found.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fuzz",
            "planted",
            "--cases=100",
            "--first=3",
            "--processes=1",
            f"--json={results}",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    expected = {n: outcome(np.random.default_rng([0, n])) for n in range(3, 103)}
    wrong = {n: what for n, what in expected.items() if what not in ("right", "refused")}
    assert set(wrong.values()) == {"answer", "exception", "death"}
    assert done.returncode == 1, done.stderr
    written = json.loads(results.read_text())
    assert written["cases"] == 100
    assert {"date", "flexkern", "machine"} <= set(written)
    found = written["fuzzers"]["planted"]
    faults = {fault["case"]: fault["error"] for fault in found["faults"]}
    assert sorted(faults) == sorted(wrong)
    says = {"answer": "a wrong answer", "exception": "KeyError", "death": "the process ended with 7"}
    assert all(says[what] in faults[number] for number, what in wrong.items())
    assert sum(found["outcomes"].values()) == 100 - len(wrong)
    assert found["outcomes"]["right"] == list(expected.values()).count("right")
