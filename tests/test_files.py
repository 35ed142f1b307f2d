"""Files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexkern import files
from flexkern.files import check_writable, replace_file, save_figure, write_json


def _fail(*_: Any, **__: Any) -> Any:
    raise OSError("no space left")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"run": 1})
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, function, _fail)
        with pytest.raises(OSError, match="no space left"):
            write_json(path, {"run": 2})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_json_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"run": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"run": float("nan")})
    assert json.loads(path.read_text()) == {"run": 1}


def test_the_file_is_complete_when_it_comes_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "results.json", []
    replace, fsync = os.replace, os.fsync

    def note_fsync(descriptor: int) -> None:
        steps.append("folder on disk" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "on disk")
        fsync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        assert not path.exists()
        assert Path(source).parent == tmp_path  # of the same file system, or it would be no single step
        assert json.loads(Path(source).read_text()) == {"rows": [[1, 2], [3, 4]]}
        steps.append("in place")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    write_json(path, {"rows": [[1, 2], [3, 4]]})
    assert steps == ["on disk", "in place", "folder on disk"]
    assert path.read_text() == '{\n "rows": [\n  [ 1, 2 ],\n  [ 3, 4 ]\n ]\n}\n'


def test_who_reads_while_it_is_written_finds_one_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    contents = [bytes([number]) * 300_000 for number in range(20)]
    replace_file(path, contents[0])
    writers = [
        threading.Thread(target=lambda half=half: [replace_file(path, c) for c in half])  # type: ignore[misc]
        for half in (contents[:10], contents[10:])
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_folders_on_the_way_are_made_and_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "results.json"
    write_json(path, {"text": "[1,  2] \u00b1"})
    assert json.loads(path.read_text()) == {"text": "[1,  2] \u00b1"}
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# ------------------------------------------------------------------ modes and links


def test_the_mode_of_a_file_is_kept_and_a_new_one_gets_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "one"
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            replace_file(path, b"new")
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
            for mode in (0o600, 0o640, 0o664, 0o755):
                path.chmod(mode)
                replace_file(path, b"again")
                assert stat.S_IMODE(path.stat().st_mode) == mode
        finally:
            os.umask(before)
        path.unlink()


def test_a_secret_is_not_readable_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen = []

    def parts() -> Iterator[bytes]:
        yield b"se"
        seen.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir())
        yield b"cret"

    replace_file(path, parts())
    assert path.read_bytes() == b"secret"
    assert seen == [0o600, 0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files to others")
def test_the_owner_and_group_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    replace_file(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_rights_of_a_group_are_not_given_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"old")
    path.chmod(0o660)
    real = os.stat_result
    old = path.stat()
    other = real((old.st_mode, old.st_ino, old.st_dev, 1, old.st_uid, old.st_gid + 1, old.st_size, 0, 0, 0))
    monkeypatch.setattr(files, "_target", lambda _: (path, other))
    monkeypatch.setattr(files.os, "fchown", _fail)
    replace_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_links_stay_and_their_targets_are_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    first, second, dangling = (tmp_path / name for name in ("first", "second", "dangling"))
    target.write_bytes(b"old")
    second.symlink_to("folder/target")
    first.symlink_to(second)
    dangling.symlink_to("folder/new")
    for link, meant in ((first, target), (dangling, tmp_path / "folder" / "new")):
        replace_file(link, b"new")
        assert link.is_symlink()
        assert meant.read_bytes() == b"new"
        assert not meant.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "first", "folder", "second"]
    assert sorted(p.name for p in target.parent.iterdir()) == ["new", "target"]


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.symlink_to(b)
    b.symlink_to(a)
    for write in (check_writable, lambda path: replace_file(path, b"x")):
        with pytest.raises(OSError, match=re.escape(str(a))) as refused:
            write(a)
        assert refused.value.errno == errno.ELOOP


def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_writable(pipe)
    replace_file(pipe, b"through")
    reader.join(10)
    assert got == [b"through"]
    assert pipe.is_fifo()


# ------------------------------------------------------------------ where nothing can be written


@pytest.mark.parametrize(
    "write", [check_writable, lambda path: replace_file(path, b"x")], ids=["check", "write"]
)
def test_the_path_that_was_asked_for_is_named(write: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    missing = tmp_path / "absent" / "deeper" / "one"
    with pytest.raises(FileNotFoundError, match=re.escape(str(missing))) as refused:
        write(missing)
    assert f"there is no folder {str(tmp_path / 'absent')!r}" in str(refused.value)
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write(tmp_path)
    with pytest.raises(NotADirectoryError, match=re.escape(str(tmp_path / "file" / "one"))):
        write(tmp_path / "file" / "one")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        write(tmp_path / "file" / "deeper" / "one")
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("x" * 300))
    write(tmp_path / ("\u00e9" * 125))  # 250 bytes: its temporary's name is cut
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="locked/one"):
            write(tmp_path / "locked" / "one")
        (tmp_path / "kept").write_bytes(b"")
        (tmp_path / "kept").chmod(0o400)
        with pytest.raises(PermissionError, match="kept"):
            write(tmp_path / "kept")
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_folders_that_will_be_made_are_no_hindrance(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "one", folders=True)
    check_writable(tmp_path / "one", folders=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="one"):
        check_writable(tmp_path / "file" / "b" / "one", folders=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """A limit of the size of files stands for it: a process of its own, which the limit ends otherwise."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "one"
    replace_file(path, b"old")
    pid = os.fork()
    if pid == 0:  # no flexkern is imported anew: a fork is enough, and quick
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                replace_file(path, b"x" * 100_000)
            except OSError as error:
                code = 0 if error.errno == errno.EFBIG and str(path) in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_that_cannot_be_made_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "one"
    replace_file(path, b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, parts())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------ temporaries


def _killed_while_writing(path: Path) -> None:
    pid = os.fork()
    if pid == 0:

        def parts() -> Iterator[bytes]:
            yield b"half"
            os.kill(os.getpid(), signal.SIGKILL)

        replace_file(path, parts())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path, other = tmp_path / "one.json", tmp_path / "one.json.old"
    for target in (path, path, other):
        _killed_while_writing(target)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert [re.sub("[0-9a-f]{16}", "N", name) for name in left] == [
        ".one.json.N.tmp", ".one.json.old.N.tmp",  # the second had swept the first one's
    ]  # fmt: skip
    mine = tmp_path / ".one.json.notes.tmp"
    mine.write_bytes(b"of someone else")
    replace_file(path, b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([left[1], mine.name, path.name])
    replace_file(other, b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, path.name, other.name])


def test_what_a_living_writer_writes_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "one"

    def parts() -> Iterator[bytes]:
        yield b"slow"
        replace_file(path, b"quick")  # another writer comes, and goes
        assert path.read_bytes() == b"quick"
        yield b" writer"

    replace_file(path, parts())
    assert path.read_bytes() == b"slow writer"
    assert list(tmp_path.iterdir()) == [path]


def test_many_processes_write_one_file(tmp_path: Path) -> None:
    """Each write succeeds, whoever sweeps meanwhile, and what is there in the end is whole."""
    path, children = tmp_path / "one", []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for _ in range(40):
                    replace_file(path, bytes([n]) * 5000)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    content = path.read_bytes()
    assert content == content[:1] * 5000
    assert list(tmp_path.iterdir()) == [path]


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, left = tmp_path / "one", tmp_path / f".one.{'0' * 16}.tmp"
    left.write_bytes(b"half")

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr(files.fcntl, "flock", flock)
        replace_file(path, b"new")
        assert left.exists()
    replace_file(path, b"new")
    assert not left.exists()


# ------------------------------------------------------------------ pictures


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    class Figure:
        def savefig(self, file: Any, **options: Any) -> None:
            assert options == {"format": "png", "facecolor": "white"}
            file.write(b"half")
            if self.fails:
                raise ValueError("no font")

        fails = False

    figure, path = Figure(), tmp_path / "one.png"
    save_figure(figure, path, facecolor="white")
    figure.fails = True
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="no font"):
        save_figure(figure, path, facecolor="white")
    assert path.read_bytes() == b"old"


def test_nothing_in_the_package_writes_past_this_file() -> None:
    """A file is written by :func:`replace_file`, or it can be half there."""
    package = Path(files.__file__).parent
    past = re.compile(
        r"""open\([^)]*["'][wxa]b?\+?["']|\.write_text\(|\.write_bytes\(|\.savefig\(|np\.savez?\w*\(|torch\.save\("""
    )
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if past.search(line) and path != Path(files.__file__)
    ]
    assert [line for line in found if "/proc/self/clear_refs" not in line] == []
