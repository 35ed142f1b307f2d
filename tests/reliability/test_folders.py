"""A folder is one run's: two processes in it, and a folder that cannot be written into."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flexkern.learners import MetaplasticMLP, load_mlp
from flexkern.runs.folder import FolderInUseError, claim
from flexkern.runs.incremental.run import run
from flexkern.runs.metaplasticity import runner
from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from helpers.incremental import LEARNERS, configuration
from helpers.memory_tiny import TINY

pytest.importorskip("typer")
from typer.testing import CliRunner


def test_a_second_run_is_kept_out_and_told_who_is_in(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("as it was")
    with claim(tmp_path):
        for second in (
            lambda: run(configuration(tmp_path), learners=LEARNERS),
            lambda: run(configuration(tmp_path), learners=LEARNERS, restart=True),
            lambda: runner.run(SerialPosition(longer=0), protocol_for(**TINY), out=tmp_path, restart=True),
        ):
            with pytest.raises(
                FolderInUseError, match=rf"out: .*in use by another run \(process {os.getpid()} on "
            ):
                second()
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "as it was"


@pytest.mark.parametrize("command", ["demo --no-artsy", "run serial-position", "run class-incremental digits"])
def test_commands_end_with_a_code_of_their_own(command: str, tmp_path: Path) -> None:
    from flexkern.cli.app import app

    with claim(tmp_path):
        result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path)])
    assert result.exit_code == 75
    assert f"process {os.getpid()}" in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from flexkern.runs.folder import claim\n"
        "with claim(Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(FolderInUseError, match=f"process {process.pid} on "), claim(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists()  # it could not remove it, and that keeps nobody out
    with claim(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_one_of_many_at_once_gets_the_folder(tmp_path: Path) -> None:
    inside, most, refused = 0, 0, 0
    barrier, counting = threading.Barrier(8), threading.Lock()

    def one() -> None:
        nonlocal inside, most, refused
        barrier.wait()
        for _ in range(50):
            try:
                with claim(tmp_path):
                    with counting:
                        inside += 1
                        most = max(most, inside)
                    with counting:
                        inside -= 1
            except FolderInUseError:
                refused += 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert refused


def test_without_locks_it_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"):
        results = run(configuration(tmp_path), learners=LEARNERS)
    assert results["finished"]


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such data"), claim(tmp_path / "a" / "b"):
        raise RuntimeError("no such data")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(OSError, match=f"out: nothing can be written there: .*{re.escape(str(path))}"):
        run(configuration(path), learners=LEARNERS)


def test_two_learners_saved_to_one_path_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    learners = [MetaplasticMLP((20,), 6, widths=(64, 32), seed=seed) for seed in (0, 1)]
    files = []
    for number, learner in enumerate(learners):
        learner.save(tmp_path / f"{number}")
        files.append((tmp_path / f"{number}").read_bytes())
    path = tmp_path / "both.safetensors"
    learners[0].save(path)
    stop = threading.Event()

    def keep_saving(learner: MetaplasticMLP) -> None:
        while not stop.is_set():
            learner.save(path)

    threads = [threading.Thread(target=keep_saving, args=(learner,)) for learner in learners]
    for thread in threads:
        thread.start()
    try:
        seen = {files.index(path.read_bytes()) for _ in range(200)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen <= {0, 1}
    assert load_mlp(path).seed in (0, 1)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_lock_that_is_a_link_does_not_reach_its_target(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="out"), claim(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
