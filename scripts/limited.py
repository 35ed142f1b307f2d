"""Programs that may take only so long: interrupted, so that they say what they have found, and then killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["CUT", "MISSING", "Ended", "run"]

CUT, MISSING = 124, 127  # exit codes, as timeout(1) and the shell have them


class Ended(NamedTuple):
    """How a program ended: its exit code (CUT where it ran past its limit, MISSING where there is no such
    program), how many seconds it took, and whether it had to be killed."""

    exit_code: int
    seconds: float
    killed: bool = False


def run(
    command: Sequence[str],
    *,
    limit: float,
    grace: float,
    folder: Path,
    environment: Mapping[str, str],
    log: Path | None = None,
) -> Ended:
    """Runs a program, and shows what it says as it comes.

    Args:
        limit: seconds after which it and all that it has started get SIGINT. pytest then tells of the failures
            that there were; other programs of Python end as at Ctrl-C.
        grace: seconds after that to its SIGKILL. Also what it leaves behind at any other end is killed: it
            would go on using the GPU.
        folder: that it runs in.
        environment: all of it.
        log: a file that what it says is added to.
    """
    begun = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (FileNotFoundError, PermissionError) as error:
        print(error, flush=True)
        return Ended(MISSING, 0.0)
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, log), daemon=True)
    reader.start()
    code, killed = None, False
    try:
        code = _wait(process, limit)
        if code is None:
            _signal(process, signal.SIGINT)
            killed = _wait(process, grace) is None
            code = CUT
    finally:  # also where this program is interrupted itself
        _signal(process, signal.SIGKILL)
        process.wait()
        reader.join(2.0)  # one that has left the group may hold the pipe open
    return Ended(code, round(time.perf_counter() - begun, 1), killed)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To it and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _pass_on(source: IO[bytes], log: Path | None) -> None:
    kept = log.open("ab") if log is not None else None
    try:
        while part := os.read(source.fileno(), 1 << 16):
            sys.stdout.write(part.decode(errors="replace"))
            sys.stdout.flush()
            if kept is not None:
                kept.write(part)
                kept.flush()
    finally:
        if kept is not None:
            kept.close()
