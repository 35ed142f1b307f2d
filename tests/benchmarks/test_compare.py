"""Two runs side by side: what counts as a difference, and how revisions are found, built and measured."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from flexkern.benchmarks import compare, record
from flexkern.benchmarks.worker import Options

ROOT = Path(__file__).resolve().parents[2]


def make_row(name: str, ours: float, peer: float, spread: float = 0.05, pages: str = "huge") -> dict[str, Any]:
    def times(ms: float) -> dict[str, float]:
        return {"median_ms": ms, "q1_ms": ms * (1 - spread), "q3_ms": ms * (1 + spread)}

    return {
        "case": name, "backend": "auto", "pages": pages, "ours": times(ours),
        "peers": [{"name": "peer", **times(peer)}],
    }  # fmt: skip


def make_run(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows)}


def test_a_faster_kernel_on_the_same_machine() -> None:
    (d,) = compare.compare([make_run(make_row("a", 10.0, 20.0))], [make_run(make_row("a", 8.0, 20.0))])
    assert (d.before, d.after) == (10.0, 8.0)
    assert d.factor == pytest.approx(1.25)
    assert d.yardstick == pytest.approx(1.0)
    assert d.clear


def test_a_machine_that_is_faster_as_a_whole_is_no_difference() -> None:
    (d,) = compare.compare([make_run(make_row("a", 10.0, 20.0))], [make_run(make_row("a", 8.0, 16.0))])
    assert d.factor == pytest.approx(1.25)
    assert d.yardstick == pytest.approx(1.25)
    assert not d.clear


def test_a_difference_within_the_quartiles_is_not_clear() -> None:
    before, after = make_row("a", 10.0, 20.0, spread=0.2), make_row("a", 9.0, 20.0, spread=0.2)
    (d,) = compare.compare([make_run(before)], [make_run(after)])
    assert not d.clear


def test_the_median_of_turns_counts_and_cases_of_one_side_only_do_not() -> None:
    before = [make_run(make_row("a", ms, 20.0), make_row("only before", 1.0, 1.0)) for ms in (10.0, 11.0, 90.0)]
    after = [make_run(make_row("a", ms, 20.0), make_row("only after", 1.0, 1.0)) for ms in (10.0, 11.0, 12.0)]
    (d,) = compare.compare(before, after)
    assert (d.name, d.before, d.after) == ("a", 11.0, 11.0)


def test_rows_with_other_pages_are_other_rows() -> None:
    run = make_run(make_row("a", 10.0, 20.0), make_row("a", 30.0, 20.0, pages="small"))
    first, second = compare.compare([run], [run])
    assert (first.name, first.before) == ("a", 10.0)
    assert (second.name, second.before) == ("a, small pages", 30.0)
    assert first.factor == second.factor == 1.0


def test_what_is_neither_a_file_nor_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="'no-such-thing' is neither a results file nor a git revision"):
        compare.runs_of(("no-such-thing", "HEAD"), Options(), lambda text: None)
    other = tmp_path / "other.json"
    other.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="not a results file of `flexkern bench`"):
        compare.runs_of((str(other), str(other)), Options(), lambda text: None)


def test_files_are_read(tmp_path: Path) -> None:
    machine = {"date": "2026-01-02T03:04:05", "commit": "abcdef0123", "changed_files": 0}
    run = {"machine": machine, "device": "cpu", "quick": False, "complete": True, "series": []}
    paths = [str(record.write({**run, "rows": [make_row("a", ms, 20.0)]}, tmp_path)) for ms in (10.0, 5.0)]
    assert paths[0] != paths[1]
    first, second = compare.runs_of((paths[0], paths[1]), Options(), lambda text: None)
    (d,) = compare.compare(first, second)
    assert d.factor == pytest.approx(2.0)


def test_a_revision_from_before_the_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "--quiet", "-m", "old")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="has no `flexkern bench` yet"):
        compare.runs_of(("HEAD", "HEAD"), Options(), lambda text: None)
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1  # its checkout is gone


@pytest.mark.slow
def test_two_revisions_are_built_and_measured_alternately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CMAKE_BUILD_TYPE", "Sanitized")  # without optimisation: compiled in half of the time
    said: list[str] = []
    options = Options(only=("metaplastic/gate",), quick=True, seconds=0.1)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    first, second = compare.runs_of(("HEAD", "HEAD^0"), options, said.append, repeats=1)
    assert said == [
        f"building {head[:7]}", "measuring HEAD, 1 of 1", "measuring HEAD^0, 1 of 1",
    ]  # fmt: skip
    assert {run["machine"]["commit"] for run in (*first, *second)} == {head}
    assert len(first) == len(second) == 1
    (d,) = compare.compare(first, second)
    assert d.name == "metaplastic/gate"
    assert d.before > 0
    assert d.after > 0
