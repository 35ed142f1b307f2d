"""Which classes are learned together: files of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexkern.runs.fitting.tasks import at_a_time, read_tasks

TASKS = [["cat", "dog"], ["car, old", "#5"]]
FILES = {
    "tasks.txt": '# animals first\ncat, dog,\n\n"car, old" , "#5"\n',
    "tasks.csv": '\ufeffcat,dog\r\n"car, old",#5\r\n',
    "tasks.json": '[["cat", "dog"], ["car, old", "#5"]]',
    "named.json": '{"tasks": [["cat", "dog"], ["car, old", "#5"]]}',
    "tasks.toml": 'tasks = [["cat", "dog"],\n ["car, old", "#5"]]',
}


@pytest.mark.parametrize("name", FILES)
def test_all_forms_say_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode())
    assert read_tasks(tmp_path / name) == TASKS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "names no task; write a line for each"),
        ("a.txt", b"# nothing\n\n", "names no task"),
        ("a.txt", b"cat,,dog\n", "line 1 has a comma with no name before it"),
        ("a.txt", b'"cat, dog\n', "line 1 has a quote that is not closed"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.json", b"{", "cannot be read: Expecting"),
        ("a.json", b'{"tasks": [], "more": 1}', "it must have tasks, and nothing else; it has tasks, more"),
        ("a.json", b'["cat"]', "tasks must be a list of lists of names"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.toml", b"tasks = 3", "tasks must be a list of lists of names"),
        ("a.toml", b"tasks = ", "cannot be read"),
    ],
)
def test_mistakes_name_the_file(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_tasks(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tasks: there is no file"):
        read_tasks(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="give a file with a line for each task"):
        read_tasks(tmp_path)


def test_classes_some_at_a_time() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert at_a_time(names, 2, None) == [["a", "b"], ["c", "d"], ["e"]]
    assert at_a_time(names, None, None) == [names]
    shuffled = at_a_time(names, 2, 1993)
    assert sorted(name for task in shuffled for name in task) == names
    assert shuffled != at_a_time(names, 2, None)
