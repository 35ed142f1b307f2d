"""Children of a process that has imported everything: each begins at once, and may be killed.

The process that forks must have no other threads, and must not have run a backward pass.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "Moment", "fast_folder", "run_child"]

# What a write consists of, as Python's audit hooks tell of it; fsync is not among their events.
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.chmod")


class Moment(NamedTuple):
    """When a child is ended.

    kind: "never"; "count": never, and steps are counted; "time": after so many seconds; "step": before the n-th
        step of a write (the file is opened, put on disk, renamed, removed) in its folder; "byte": by the kernel
        (SIGXFSZ), in the middle of the first write that would make a file longer than n bytes.
    value: seconds or n.
    signal: what ends it, but for "byte".
    """

    kind: str = "never"
    value: float = 0
    signal: signal.Signals = signal.SIGKILL


class Ended(NamedTuple):
    """How a child ended.

    code: as of subprocess.
    saves: how often it said that it had saved.
    said: what it printed.
    steps: of all its writes, if they were counted.
    """

    code: int
    saves: int
    said: str
    steps: int = 0


def run_child(work: Callable[[Path, Callable[[], None]], None], folder: Path, moment: Moment) -> Ended:
    """Runs ``work(folder, saved)`` in a child until it ends, or its moment comes.

    It calls ``saved`` when it has saved something.
    """
    log = folder.with_name(folder.name + ".log")
    log.write_text("")
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(work, folder, moment, log, writing)
    os.close(writing)
    if moment.kind == "time":
        _wait(pid, moment.value)
        os.kill(pid, moment.signal)  # of a child that has ended already it does nothing: it is not reaped yet
    _, status = os.waitpid(pid, 0)
    told = b""
    while part := os.read(reading, 65536):
        told += part
    os.close(reading)
    code, said = os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
    return Ended(code, told.count(b"."), said, told.count(b"s"))


def _wait(pid: int, seconds: float) -> None:
    """Until then, or until the child has ended."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(min(left, 0.005))


def _child(
    work: Callable[[Path, Callable[[], None]], None], folder: Path, moment: Moment, log: Path, writing: int
) -> None:
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Its length must not count for "byte".
        target = os.devnull if moment.kind == "byte" else log
        out = os.open(target, os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if moment.kind == "step":
            left = itertools.count(int(moment.value) - 1, -1)
            _at_each_step(str(folder), lambda: next(left) or os.kill(os.getpid(), moment.signal))
        elif moment.kind == "count":
            _at_each_step(str(folder), lambda: os.write(writing, b"s"))
        elif moment.kind == "byte":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment.value),) * 2)
        work(folder, lambda: os.write(writing, b"."))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _at_each_step(folder: str, do: Callable[[], object]) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS and str(arguments[0]).startswith(folder):
            do()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        do()
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def fast_folder() -> str | None:
    """Where temporary folders are in memory: a disk that others use would be waited for at every write."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
