"""Which parts scripts/sanitize.py runs, and that one that fails is told of."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def sanitize() -> ModuleType:
    return load_file(ROOT / "scripts" / "sanitize.py")


def test_the_parts_are_all_tests_cases_and_launches(sanitize: Any) -> None:
    made = sanitize.parts(5000, 2001)
    for kind in sanitize.KINDS:
        words = [word for part in made if part.kind == kind for word in part.arguments]
        tests = [word for word in words if word.endswith(".py")]
        assert sorted(tests) == [f"ops/{name}.py" for name in sorted(sanitize.TESTS[kind])]
        assert all((ROOT / "tests" / name).exists() for name in tests)
    of_launches = [part.arguments[-2:] for part in made if "launches" in part.name]
    covered = {case for first, count in of_launches for case in range(int(first), int(first) + int(count))}
    assert covered == set(range(2001))
    assert len({(part.kind, part.name) for part in made}) == len(made)


def test_a_part_that_fails_is_told_of_and_ends_the_rest(
    sanitize: Any, monkeypatch: Any, capsys: pytest.CaptureFixture
) -> None:
    begun: list[str] = []

    def run(kind: str, *arguments: str) -> Any:
        begun.append(arguments[0])
        return subprocess.CompletedProcess(arguments, int(arguments[0] == "bad"), f"said by {arguments[0]}\n")

    monkeypatch.setattr(sanitize, "run", run)
    monkeypatch.setattr(sanitize.os, "cpu_count", lambda: 1)
    chosen = [sanitize.Part(name, "cpu", (name,)) for name in ("good", "bad", "later")]
    assert sanitize.run_all(chosen) == ["cpu: bad (exit code 1)"]
    assert begun == ["good", "bad"]
    assert "said by good" in capsys.readouterr().out
    assert sanitize.run_all(chosen[:1]) == []
