"""What of scripts/gpu_check.py is left by programs that are cut: nothing that runs, and all that they found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
limited: Any = load_file(ROOT / "scripts" / "limited.py")
findings: Any = load_file(ROOT / "scripts" / "gpu_findings.py")


def alive(stat: Path) -> bool:
    """Whether the process of this /proc file runs, or could."""
    try:
        return stat.read_text().split()[2] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("ends_itself", [False, True])
def test_a_step_that_hangs_is_ended_with_its_children(tmp_path: Path, ends_itself: bool) -> None:
    pid = tmp_path / "pid"
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    child = f"{ignore}; import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start = f"import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}])"
    rest = f"while not (os.path.exists({str(pid)!r}) and os.path.getsize({str(pid)!r})): time.sleep(0.01)"
    parent = f"{start}\n{rest}\n{'' if ends_itself else 'p.wait()'}"
    done = limited.run(
        [sys.executable, "-c", parent], limit=1.5, grace=0.2, folder=tmp_path, environment={"PATH": "/usr/bin"}
    )
    assert done.exit_code == (0 if ends_itself else 124)
    state = Path(f"/proc/{pid.read_text()}/stat")
    end = time.monotonic() + 10  # a process that was killed may still be on its way
    while alive(state) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(state)


KILLED = """
import os, signal, pytest

@pytest.mark.parametrize("i", range(3))
def test_many(i):
    assert i != 1, f"{i} is wrong"

@pytest.fixture
def left():
    yield
    assert False, "left behind"

def test_skipped():
    pytest.skip("no reason")

def test_left(left):
    pass

@pytest.mark.parametrize("gpu_backend", ["triton", "cuda"])
@pytest.mark.parametrize("i", range(2))
def test_backends(gpu_backend, i):
    if i == 1 and gpu_backend == "cuda":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_test_is_written_down_as_it_ends(tmp_path: Path) -> None:
    """Also where the process is killed: the failures, what was left out and what did not end."""
    (tmp_path / "test_killed.py").write_text(KILLED)
    record = tmp_path / "tests.jsonl"
    command = [
        sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "no:cacheprovider",
        "-p", "helpers.record_tests", "--record", str(record), str(tmp_path / "test_killed.py"),
    ]  # fmt: skip
    environment = {"PYTHONPATH": f"{ROOT / 'tests'}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True).returncode == -9
    lines = record.read_text().splitlines()
    begun = [json.loads(line)["test"].split("::")[1] for line in lines if '"began"' in line]
    first = ["test_many[0]", "test_skipped", "test_left", "test_backends[0-triton]", "test_backends[0-cuda]"]
    assert begun == [*first, "test_many[1]", "test_backends[1-triton]", "test_backends[1-cuda]"]
    found = findings.tests(record.read_text() + '\n{"test": "cut o')
    assert found["counts"] == {"passed": 4, "skipped": 1, "failed": 2}
    texts = {name.split("::")[1]: text for name, text in found["failed"].items()}
    assert "1 is wrong" in texts["test_many[1]"]
    assert "left behind" in texts["test_left"]
    assert [why.endswith("no reason") for why in found["skipped"]] == [True]
    assert [name.split("::")[1] for name in found["not_ended"]] == ["test_backends[1-cuda]"]


def test_the_end_of_the_output_tells_of_failures() -> None:
    failed = {f"t{i}": f"long\nE   assert {i}" for i in range(20)}
    found = {"counts": {"failed": 20}, "failed": failed, "skipped": {"cuda: no nvcc": 3}, "not_ended": ["u"]}
    rows = [{"case": "a", "backend": "cuda", "failed": "no memory"}, {"case": "b", "late": True}]
    steps = [{"step": "tests", "exit_code": 124, "seconds": 9.0, "why": "killed at its limit"}]
    said = findings.summary({"steps": steps, "tests": found, "benchmarks": {"rows": rows}})
    expected = (
        "killed at its limit", "20 failed", "skipped 3: cuda: no nvcc", "did not end: u", "E   assert 11",
        "and 8 more failures", "a cuda: failed: no memory", "b: no time was left",
    )  # fmt: skip
    assert [words for words in expected if words not in said] == []
    assert len(said) < 6000, "the end of the output may be all that is kept"
