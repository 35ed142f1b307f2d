"""A short run of kills and of long streams; the full ones are ``make reliability``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexkern.files import replace_file
from reliability import soak
from reliability.forks import Moment, run_child
from reliability.kills import _Known, _one_run

pytest.importorskip("transformers")
pytest.importorskip("sklearn")


def run(path: Path, *arguments: str) -> dict[str, Any]:
    """In a process of its own, which has run nothing else when it forks."""
    command = [sys.executable, "-m", "reliability", f"--json={path}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return json.loads(path.read_text())


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path / "found.json", "kills", "--count=40", "--processes=1")
    with capsys.disabled():
        print(f"\nkills: {found['moments']} in {sum(found['runs'].values())} runs, {found['seconds']} s")
    assert sum(found["kills"].values()) == sum(found["moments"].values()) >= 40
    assert len(found["moments"]) >= 3
    assert not found["faults"]


@pytest.mark.slow
def test_long_streams_stay_flat(tmp_path: Path) -> None:
    found = run(tmp_path / "found.json", "soak", "--quick")
    assert not found["faults"]
    assert len(found["series"]) == len(soak.SUBJECTS)


# ------------------------------------------------------------------ they can fail


class Torn:
    """Writes a counter up to ten, in two steps that a kill can come between."""

    name = "torn"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def work(self, folder: Path, saved: Any) -> None:
        path = folder / "count"
        done = int(path.read_text() or 0) if path.exists() else 0
        for number in range(done + 1, 11):
            if self.fault == "in place":
                path.write_text("")
                path.write_text(str(number))
            else:
                replace_file(path, str(number).encode())
            saved()
        (folder / "result").write_text(str(done > 0) if self.fault == "another result" else "")
        if self.fault == "litter" and done:
            (folder / ".count.0.tmp").write_text("")

    def whole(self, folder: Path, before: int, saves: int) -> int:
        path = folder / "count"
        now = int(path.read_text()) if path.exists() else 0
        assert now >= before + saves
        return now

    def result(self, folder: Path) -> str:
        return (folder / "count").read_text() + (folder / "result").read_text()


@pytest.mark.parametrize("fault", ["in place", "another result", "litter", None])
def test_kills_find_what_is_wrong(fault: str | None, tmp_path: Path) -> None:
    subject = Torn(fault or "")
    known = _Known(subject, tmp_path)
    assert known.steps > 10
    faults, counts = 0, Counter[str]()
    for number in range(12):
        try:
            _one_run(subject, known, tmp_path / str(number), np.random.default_rng(number), 20, counts)
        except (AssertionError, ValueError):
            faults += 1
    assert sum(counts.values()) + faults >= 3
    assert (faults > 0) == (fault is not None)


def test_a_child_that_hangs_on_is_killed_and_counted(tmp_path: Path) -> None:
    def work(folder: Path, saved: Any) -> None:
        saved()
        os.write(1, b"so far\n")
        while True:
            pass

    folder = tmp_path / "run"
    folder.mkdir()
    ended = run_child(work, folder, Moment("time", 0.2))
    assert (ended.code, ended.saves, ended.said) == (-9, 1, "so far\n")


def series(**changes: Any) -> dict[str, list[float]]:
    points = np.arange(1.0, 41) * 250
    flat = {name: np.full(40, 1000.0) for name in soak.COLUMNS} | {"items": points}
    return {name: list(values) for name, values in (flat | {k: v(points) for k, v in changes.items()}).items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"files": lambda n: n // 5000}, "files grew by 1"),
        ({"threads": lambda n: n // 5000}, "threads grew by 1"),
        ({"resident": lambda n: 1000 * n}, "resident memory grew"),
        ({"blocks": lambda n: n}, "blocks grow by 1.00 per item"),
        ({"seconds": lambda n: 1 + n / 1000}, "times as long as before"),
        ({"tensors": lambda n: 4 * n}, "grow by"),
    ],
)
def test_what_grows_is_found(changes: dict[str, Any], message: str | None) -> None:
    found = soak.faults(series(**changes), 0)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_growth_that_a_method_says_is_no_fault() -> None:
    growing = {"tensors": lambda n: 64 * n, "resident": lambda n: 128 * n, "blocks": lambda n: 30 * n}
    assert not soak.faults(series(**growing), 64)
    assert soak.faults(series(**growing | {"tensors": lambda n: 65 * n}), 64)
    assert not soak.faults(series(seconds=lambda n: n**2), 0, square=10_000)
    assert soak.faults(series(seconds=lambda n: n**2), 0, square=1000)
