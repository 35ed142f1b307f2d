"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from flexkern import files
from flexkern.files import replace_file, write_json


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
