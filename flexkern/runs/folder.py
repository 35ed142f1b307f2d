"""The folder of a run: made, found to be writable, and kept for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderInUseError", "claim"]

_LOCK = ".lock"


class FolderInUseError(RuntimeError):
    """Another run writes into the folder."""


@contextlib.contextmanager
def claim(folder: Path, *inside: str) -> Iterator[None]:
    """Keeps a folder for this process while the context lasts; makes it where it is missing.

    The kernel holds the lock, so that it ends with the process, however that ends: there are no stale ones. The
    file ``.lock`` only says who has it.

    Args:
        folder: where a run writes.
        inside: names of folders in it that the run will write into, if they are there.

    Raises:
        FolderInUseError: if another run has it; nothing has been read or written then.
        OSError: naming the folder, if nothing can be written into it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take(folder)
        for name in inside:
            _check_writable(folder / name)
    except OSError as error:
        where = error.filename2 or error.filename or folder
        raise type(error)(error.errno, f"out: nothing can be written there: {error.strerror}", where) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # nor does one that could not begin
            for name in inside:
                (folder / name).rmdir()
        raise
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                (folder / _LOCK).unlink()  # before it is released, so that nobody else's is removed
            os.close(lock)
        with contextlib.suppress(OSError):  # a run that was refused leaves no empty folders
            for path in made:
                path.rmdir()


def _take(folder: Path) -> int | None:
    """The open file that holds the lock; None where the file system has none."""
    path = folder / _LOCK
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, "this system has no locks")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "a process that just began"
            os.close(lock)
            raise FolderInUseError(
                f"out: {os.fspath(folder)!r} is in use by another run ({holder}). Wait for its end, or give "
                "another folder with --out"
            ) from None
        except OSError as error:  # some network file systems
            os.close(lock)
            warnings.warn(
                f"out: {os.fspath(folder)!r} cannot be locked ({error.strerror}), so nothing keeps a second "
                "run out of it",
                stacklevel=4,
            )
            return None
        try:
            # Whoever had it may have removed the file between our opening and locking it.
            current = os.path.samestat(os.fstat(lock), os.stat(path))
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(lock)
    with contextlib.suppress(OSError):  # on a full disk it is locked all the same
        os.ftruncate(lock, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode(), 0)
    return lock


def _check_writable(folder: Path) -> None:
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), folder)
