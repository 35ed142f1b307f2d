"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["append", "check_writable", "replace_file", "save_figure", "sweep", "write_json"]

_LONGEST = (
    200  # bytes of the target's name in that of its temporary: with the rest under the usual limit of 255
)
# What a file system says that does not do what is asked: then there is no lock, or no folder to put on disk.
_UNSUPPORTED = (
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EACCES,
    errno.EPERM,
)


def replace_file(path: str | os.PathLike[str], content: bytes | Iterable[Any]) -> None:
    """Puts the content in place in one step: who reads the file finds the old one or the new one.

    A link is followed, and stays. An existing file's mode is kept, and its owner and group where the system
    allows it; a new one gets the usual mode, ``0666`` less the umask. Hard links, extended attributes and
    access lists are not carried over. What exists and is no regular file (``/dev/stdout``, a pipe) is written
    to.

    While it is written it is named ``.NAME.<16 digits>.tmp``, beside the file, and is locked. What a process
    leaves that was killed has no lock any more: the next write of the same file removes it. On a file system
    without locks nothing is removed.

    Args:
        path: of the file; its folder exists.
        content: bytes, or parts of them (whatever has the buffer protocol) that are written one by one.

    Raises:
        FileNotFoundError, NotADirectoryError: naming the folder that is missing.
        IsADirectoryError: if the path is a folder.
        OSError: naming the file, if it cannot be written; it is then as it was, and no temporary stays.
    """
    path = Path(os.path.abspath(path))
    parts: Iterable[Any] = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
    target, old = _target(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with path.open("wb") as stream:
            for part in parts:
                stream.write(part)
        return
    _sweep(target)
    with _named(path):
        temporary, descriptor = _create(target, 0o666 if old is None else 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if old is not None:
                    _keep_mode(file.fileno(), old)
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()  # Windows does not rename what is open
                # Else before it is closed: with the lock gone another writer might take it for a dead one's.
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file, for logs that know how to mend a last line that is cut off.

    Raises:
        OSError: that names the file.
    """
    with _named(path), path.open("ab") as file:
        file.write(content)


def check_writable(path: str | os.PathLike[str], *, folders: bool = False) -> None:
    """Finds out now whether :func:`replace_file` could write there, for whoever works for hours before it does.

    Args:
        path: of the file.
        folders: whether folders on the way to it will be made.

    Raises:
        OSError: as :func:`replace_file`; nothing was changed.
    """
    path = Path(os.path.abspath(path))
    if folders:
        there = next(p for p in path.parents if p.exists() or p.is_symlink() or p == p.parent)
        if there != path.parent:
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{os.fspath(there)!r} is no folder", os.fspath(path))
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(
                    errno.EACCES, f"no folder can be made in {os.fspath(there)!r}", os.fspath(path)
                )
            _try_folder(there / path.relative_to(there).parts[0])
            return
    target, old = _target(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        return
    with _named(path):
        # Really made: permissions do not tell of read-only file systems and quotas.
        temporary, descriptor = _create(target, 0o600)
        os.close(descriptor)
        temporary.unlink()


def _try_folder(path: Path) -> None:
    """Really makes a folder, and removes it: permissions do not tell of what a mount refuses to root."""
    try:
        path.mkdir()
    except FileExistsError:  # somebody else has made it just now
        return
    except OSError as error:
        raise type(error)(
            error.errno, f"no folder can be made there: {error.strerror}", os.fspath(path)
        ) from error
    with contextlib.suppress(OSError):
        path.rmdir()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Plain data as JSON, by :func:`replace_file`; folders on the way to the file are made.

    A list of numbers is on one line: it is a row of a matrix.

    Raises:
        ValueError: if there is a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(values, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[-\d.e,\s]+\]", lambda row: " ".join(row[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (text + "\n").encode())


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """A figure of matplotlib as the picture that the path's suffix says, by :func:`replace_file`.

    Args:
        figure: has ``savefig``.
        path: of the picture; its folder exists.
        options: of ``savefig``.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix.removeprefix(".") or "png", **options)
    replace_file(path, picture.getbuffer())


# ------------------------------------------------------------------ where it goes


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file that a path means, links followed, and what is there now."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # realpath gives up where links go round in a circle
        raise OSError(errno.ELOOP, "links go round in a circle", os.fspath(path))
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    except NotADirectoryError:
        old = None  # told below, by the name of what is no folder
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", os.fspath(path))
    if old is None and not target.parent.is_dir():
        missing = target.parent
        while not (missing.parent.exists() or missing == missing.parent):
            missing = missing.parent
        if missing.exists() or not missing.parent.is_dir():
            no_folder = missing if missing.exists() else missing.parent
            raise NotADirectoryError(errno.ENOTDIR, f"{os.fspath(no_folder)!r} is no folder", os.fspath(path))
        raise FileNotFoundError(
            errno.ENOENT, f"there is no folder {os.fspath(missing)!r} to write into", os.fspath(path)
        )
    if old is not None and stat.S_ISREG(old.st_mode) and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is there, and may not be written to", os.fspath(path))
    return target, old


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the system name the file that was asked for, not a temporary one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(error.errno, f"cannot be written: {reason}", os.fspath(path)) from error


def _keep_mode(descriptor: int, old: os.stat_result) -> None:
    if not hasattr(os, "fchown"):
        return
    mode, new = stat.S_IMODE(old.st_mode), os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        for owner in (old.st_uid, -1):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner, old.st_gid)
                break
        else:
            # The old group's rights are not for another group.
            mode = (mode & ~0o2070) | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)


# ------------------------------------------------------------------ temporaries


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)[:_LONGEST]
    return f".{os.fsdecode(name)}."


def _create(target: Path, mode: int) -> tuple[Path, int]:
    """A new temporary for this file, open and locked."""
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
        try:
            _lock(descriptor)
            if _is(temporary, descriptor):
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        os.close(descriptor)  # another process swept it before it was locked


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Whether there is a lock now; False where another has it, or there is no such thing."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(folder: Path, names: re.Pattern[str]) -> None:
    """Removes temporaries of all files with such names that nobody is writing. What cannot be removed stays.

    :func:`replace_file` does so for the file that it writes; this is for folders of files that may never be
    written again. On a file system without locks nothing is removed.

    Args:
        folder: of the files.
        names: which the whole name of a file matches.
    """

    def is_one(entry: str) -> bool:
        parts = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", entry, re.DOTALL)
        return parts is not None and names.fullmatch(parts[1]) is not None

    _remove_dead(folder, is_one)


def _sweep(target: Path) -> None:
    """Removes temporaries of this file that nobody is writing. What cannot be removed stays."""
    names = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.tmp")
    _remove_dead(target.parent, lambda name: names.fullmatch(name) is not None)


def _remove_dead(folder: Path, is_one: Callable[[str], bool]) -> None:
    try:
        found = [folder / e.name for e in os.scandir(folder) if is_one(e.name)]
    except OSError:
        return
    for temporary in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(
                temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
            try:
                if _lock(descriptor, wait=False) and _is(temporary, descriptor):
                    temporary.unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Puts the folder's entry on disk, without which a power cut may bring the old file back."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # of a folder that may be written to and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
