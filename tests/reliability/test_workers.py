"""Networks that are trained in processes of their own end with their command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.runner import run
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from helpers.memory_tiny import TINY

pytest.importorskip("typer")


def children(pid: int) -> set[int]:
    """Of a process, and theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


def running(pids: set[int]) -> set[int]:
    left = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        left |= {pid} if state != "Z" else set()
    return left


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_their_command(tmp_path: Path) -> None:
    """SIGTERM and SIGKILL to the command alone, whose networks would take minutes."""
    command = [sys.executable, "-m", "flexkern", "run", "serial-position", "--jobs=2", "--width=8"]
    command += [
        "--seeds=0,1",
        "--items=4",
        "--train-per-item=400",
        "--epochs=2000",
        f"--cache={tmp_path / 'features'}",
    ]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        out = tmp_path / number.name
        with (tmp_path / "said").open("w+") as said:
            process = subprocess.Popen([*command, f"--out={out}"], stdout=said, stderr=said)
            deadline = time.monotonic() + 120
            while len(workers := children(process.pid)) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert len(workers) >= 3  # two, and multiprocessing's own
            while not (tmp_path / "features").exists() and time.monotonic() < deadline:
                time.sleep(0.2)
            os.kill(process.pid, number)
            assert process.wait(60) == code
            said.seek(0)
            text = said.read()
        assert (number != signal.SIGTERM) or "the same command goes on where it was" in text
        assert "Traceback" not in text
        deadline = time.monotonic() + 30
        while (left := running(workers)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
        assert not json.loads((out / "results.json").read_text())["finished"]


@pytest.mark.slow
def test_an_exception_out_of_the_observer_stops_the_workers(tmp_path: Path) -> None:
    def observe(share: float, what: str) -> None:
        raise InterruptedError(what)

    protocol, cache = protocol_for(**TINY | {"epochs": 500}), tmp_path / "features"
    start = time.monotonic()
    with pytest.raises(InterruptedError, match="seed"):
        run(SerialPosition(longer=0), protocol, out=tmp_path / "out", cache=cache, jobs=2, observe=observe)
    assert time.monotonic() - start < 60
