"""Full disks, read-only folders, and readers that go away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

TESTS = Path(__file__).parents[1]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("disks")
    try:
        able = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if able.returncode:
        pytest.skip(f"no file system can be mounted here: {able.stderr.decode().strip()}")
    command = [*NAMESPACE, sys.executable, str(Path(__file__).with_name("disks.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["class-incremental", "serial-position"])
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(found: dict[str, Any], command: str) -> None:
    for end in found[command]["ends"]:
        if end["code"] == 0:
            continue
        assert end["code"] == 1
        assert "No space left on device" in end["said"]
        named = (".json", ".csv", ".safetensors", ".png", ".lock")
        assert any(name in end["said"] for name in named), end["said"]
        assert ".tmp'" not in end["said"]  # the file is named, and not its temporary
        assert not end["temporaries"]
        assert "Traceback" not in end["said"]
    assert [end["code"] for end in found[command]["ends"]].count(1) >= 2
    assert found[command]["last"]["code"] == 0
    assert found[command]["same"]


@pytest.mark.slow
def test_a_full_disk_keeps_the_learner_that_was_there(found: dict[str, Any]) -> None:
    assert "No space left on device" in found["save"]["said"]
    assert "learner.safetensors" in found["save"]["said"]
    assert found["save"]["seed"] == 0
    assert found["save"]["left"] == ["learner.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["class-incremental", "serial-position", "demo"])
def test_a_read_only_folder_is_refused_before_anything_is_done(found: dict[str, Any], command: str) -> None:
    end = found[f"read-only {command}"]
    assert end["code"] == 1
    assert re.search(r"\bwritten\b.*: Read-only file system", end["said"]), end["said"]
    assert "read_only" in end["said"]
    assert "%" not in end["said"]  # no progress
    assert not end["left"]


# ------------------------------------------------------------------ pipes

RUN = """
import sys
from flexkern.cli.app import app
from flexkern.runs.incremental import run
from helpers.incremental import LEARNERS
run._shipped_learners = lambda: LEARNERS
sys.argv = ["flexkern", "run", "class-incremental", *sys.argv[1:]]
app()
"""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from reliability.disks import TOML

    path = tmp_path_factory.mktemp("pipes") / "mine.toml"
    path.write_text(TOML)
    return path


@pytest.mark.slow
def test_a_reader_that_goes_stops_a_run_which_can_go_on(configuration: Path) -> None:
    out = configuration.parent / "out"
    command = [sys.executable, "-c", RUN, str(configuration), "--device=cpu", f"--out={out}"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert run.stdout is not None
    assert run.stderr is not None
    told = [run.stdout.readline().decode() for _ in range(3)]  # flexkern run ... | head -3
    run.stdout.close()
    said = run.stderr.read().decode()
    run.stderr.close()
    assert run.wait(60) == 141
    assert "task 1 of 5" in told[-1]  # without a terminal there is a line for each task
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    half = json.loads((out / "results.json").read_text())
    assert not half["finished"]
    again = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert again.returncode == 0
    assert json.loads((out / "results.json").read_text())["finished"]
    lines = [line for line in again.stdout.splitlines() if "Mine, seed 0, task" in line]
    assert len(lines) == 5 - len(half["runs"][0]["tasks"]) > 0
    assert "━" not in again.stdout.split("┏")[0]  # no bar


@pytest.mark.slow
def test_a_run_needs_no_output(configuration: Path) -> None:
    out = configuration.parent / "closed"
    command = [sys.executable, "-c", RUN, str(configuration), "--device=cpu", f"--out={out}"]
    closed = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *command]
    assert subprocess.run(closed, env=environment(), timeout=120).returncode == 0
    assert json.loads((out / "results.json").read_text())["finished"]
    assert (out / "picture.png").stat().st_size > 10_000
