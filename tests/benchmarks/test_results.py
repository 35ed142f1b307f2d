"""Results files and tables, from a run of numbers that are made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexkern.benchmarks import record, tables
from flexkern.benchmarks.case import Comparison, Peer, Work, at_most, faster, under
from flexkern.benchmarks.ceilings import Ceilings
from flexkern.benchmarks.run import weigh

README = "Before.\n<!-- benchmarks: by a command -->\nold table\n<!-- /benchmarks -->\nAfter.\n"


def nothing() -> None:
    return None


def made_run(date: str = "2026-01-02T03:04:05", device: str = "cpu", **rest: Any) -> dict[str, Any]:
    """A run as ``flexkern bench`` keeps it."""
    peers = [
        Peer("a slow one", nothing, nothing, faster(2.0)),
        Peer("a quick one", nothing, nothing, at_most(0.25)),
        Peer("a yardstick", nothing, "it is no step"),
    ]
    work = Work(bytes=1000, operations=0)
    ceilings = Ceilings(copy=4e9, product={"float32": 123456.789e9})
    times = [[1e-6] * 3, [2e-6, 2e-6, 4e-6], [3e-6] * 3, [1e-6] * 3]
    row = weigh(Comparison("ours, 10 of 10", nothing, peers, work), times, [22.0, 69.0, None, 1.0], ceilings)
    where = {"device": device, "pages": "huge", "backend": "auto"}
    rows = [
        {"case": "made/up", "budget": True, **where, **row},
        {"case": "made/more", "budget": False, **where, **row, "pages": "small"},
        {"case": "made/skipped", "budget": True, **where, "skipped": "peft is not installed"},
    ]
    machine = {
        "cpu": "A Processor", "cores": 2, "gpus": [{"name": "A GPU"}], "build": {"instruction_set": "avx2"},
        "versions": {"torch": "9.9"}, "commit": "0123456789", "changed_files": 0, "date": date,
    }  # fmt: skip
    run = {
        "device": device, "quick": False, "only": [], "complete": True, "machine": machine,
        "ceilings": {"huge": ceilings.as_dict()}, "rows": rows, "series": [],
    }  # fmt: skip
    return run | rest


def test_results_files_are_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    runs = [made_run(note=str(i)) for i in range(3)]
    paths = [record.write(run, folder) for run in runs]
    assert [path.name for path in paths] == [
        "20260102-030405-cpu-0123456.json",
        "20260102-030405-cpu-0123456-2.json",
        "20260102-030405-cpu-0123456-3.json",
    ]
    assert [record.read(path)["note"] for path in paths] == ["0", "1", "2"]
    assert record.write(made_run(complete=False), folder).name.endswith("-part.json")
    assert record.write(made_run(complete=False, quick=True), folder).name.endswith("-quick.json")


def test_the_newest_of_each_case_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no results file"):
        record.newest(tmp_path)
    first = record.write(made_run("2026-01-01T00:00:00"), tmp_path)
    on_gpu = record.write(made_run("2025-05-05T00:00:00", "cuda"), tmp_path)
    part = made_run("2026-01-02T00:00:00", complete=False)
    again, skipped = (
        {**part["rows"][0], "title": "again"},
        {"case": "made/more", "pages": "small", "backend": "auto"},
    )
    part["rows"] = [again, {**skipped, "skipped": "no time"}]
    second = record.write(part, tmp_path)
    quick = {**again, "title": "quick"}
    record.write(made_run("2026-01-03T00:00:00", complete=False, quick=True, rows=[quick]), tmp_path)
    newest = record.newest(tmp_path)
    assert list(newest) == ["cpu", "cuda"]
    assert newest["cuda"]["files"] == [on_gpu.name]
    assert newest["cpu"]["files"] == [first.name, second.name]
    titles = [(row["case"], row.get("title")) for row in newest["cpu"]["rows"]]
    # Measured anew: in its place. Skipped this time: what was measured before. A quick run does not count.
    assert titles == [("made/up", "again"), ("made/more", "ours, 10 of 10"), ("made/skipped", None)]


def test_rows_of_another_machine_are_left_out(tmp_path: Path) -> None:
    record.write(made_run("2026-01-01T00:00:00"), tmp_path)
    other = made_run("2026-01-02T00:00:00", complete=False)
    other["machine"]["cpu"] = "Another Processor"
    del other["rows"][1:]
    path = record.write(other, tmp_path)
    newest = record.newest(tmp_path)["cpu"]
    assert (newest["files"], len(newest["rows"])) == ([path.name], 1)


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", '{"format": 0, "rows": []}', '{"format": 1}'])
def test_what_is_not_a_results_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "20260102-cpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"20260102-cpu\.json is not a results file"):
        record.read(path)


def test_many_goals_that_are_missed_are_left_to_the_page_that_says_why() -> None:
    run = made_run()
    row = next(r for r in run["rows"] if r.get("budget") and any(p["met"] is False for p in r.get("peers", ())))
    missed = next(p for p in row["peers"] if p["met"] is False)
    row["peers"] = [missed] * 3
    assert tables.goals(run).count("where 0.25 was the goal") == 3
    row["peers"] = [missed] * 4
    assert tables.goals(run) == (
        "0 of 4 goals are met; [the others, and why not](docs/tuning.md#goals-that-are-not-met)."
    )


def test_the_table_of_the_readme(tmp_path: Path) -> None:
    path = record.write(made_run(), tmp_path)
    cases = ("made/up", "made/more")
    text = tables.with_table(README, record.newest(tmp_path), cases)
    assert text.startswith("Before.\n<!-- benchmarks: by a command -->\n| what | against | ours |")
    assert text.endswith("\n<!-- /benchmarks -->\nAfter.\n")
    assert "old table" not in text
    # Of each case one row; of one on small pages none.
    rows = [line for line in text.splitlines() if line.startswith("| ours, 10")]
    assert rows == ["| ours, 10 of 10 | a slow one | **2.00 times as fast** (2.00 to 3.00) | met |"]
    assert (
        "1 of 2 goals are met. Not: ours, 10 of 10 against a quick one: 3.00 times as fast (3.00 to 3.00)"
        in text
    )
    for part in ("A Processor", "2 cores", "avx2", "torch 9.9", "2026-01-02", "commit 0123456", path.name):
        assert part in text, part
    # Written over itself it stays as it is.
    assert tables.with_table(text, record.newest(tmp_path), cases) == text


def test_a_row_of_the_page_has_shares_and_memory() -> None:
    rows = tables.table({"rows": made_run()["rows"][:1]}).splitlines()[2:]
    # 1000 bytes in 1 us are a quarter of 4 GB/s; no product, no share of it. Ours needs 22 MB, the peer 69.
    assert rows[:2] == [
        f"| ours, 10 of 10 | {what} | 25% |  | {memory} |"
        for what, memory in (
            ("a slow one | speed-up **2.00** (2.00 to 3.00) | speed-up at least 2, met", "22 / 69"),
            ("a quick one | time **0.33** (0.33 to 0.33) | time at most 0.25, **not met**", ""),
        )
    ]


def test_no_number_of_the_readme_is_inverted() -> None:
    """A step that takes 1.43 times as long is not 0.70 of anything."""
    slower = {"name": "SGD", "goal": "time at most 1.8", "met": True}
    row = {"case": "a", "title": "a step", "ours": {}, "peers": [{**slower, "speedup": 0.7, "speedup_q1": 0.5,
                                                                  "speedup_q3": 0.8}]}  # fmt: skip
    line = tables.headlines({"rows": [row]}, ("a",)).splitlines()[2]
    assert line == "| a step | SGD | takes **1.43 times as long** (1.25 to 2.00) | met |"


def test_the_page_has_all_rows_and_what_is_missing(tmp_path: Path) -> None:
    record.write(made_run(), tmp_path)
    record.write(made_run(device="cuda"), tmp_path)
    page = tables.page(record.newest(tmp_path))
    cpu, gpu = page.split("## GPU")
    assert cpu.count("| ours, 10 of 10 |") == cpu.count("| ours, 10 of 10, small pages |") == 3
    assert gpu.count("| ours, 10 of 10 |") == 6  # a GPU's case has no pages to speak of
    assert "a yardstick" in cpu
    assert "copy 4.0 GB/s, product float32 123,457 GFLOP/s" in cpu
    assert "made/skipped: skipped: peft is not installed" in cpu
    assert "A GPU, 2 cores" in gpu


def test_lines_for_a_terminal() -> None:
    first, second, skipped = made_run()["rows"]
    slow, quick, yardstick = tables.row_lines(first)
    assert "0.0010    0.0020  speed-up 2.00 (2.00 to 3.00)  speed-up at least 2, met" in slow
    assert quick.endswith("time 0.33 (0.33 to 0.33)  time at most 0.25, NOT MET")
    assert yardstick.split()[-4:] == ["1.00", "(1.00", "to", "1.00)"]
    assert len(tables.heading().splitlines()) == 2
    assert tables.row_lines(second)[0].startswith("ours, 10 of 10, small pages ")
    assert tables.row_lines(skipped) == ["made/skipped: skipped: peft is not installed"]
    assert tables.row_lines({"machine": {}}) == []
    points = {"ours": [[1.0, 0.1, 0.25, 0.3], [1000.0, 0.1, 0.5, 0.7]]}
    line = {"series": "s", "title": "Time", "y": "seconds", "lines": points}
    assert tables.row_lines(line) == ["Time: ours, seconds 0.25 at 1, 0.5 at 1000"]


def test_what_is_shown_is_what_the_goal_is_about() -> None:
    """A time of 1.43 under a goal of 1.8 is met; as a speed-up of 0.70 nobody would see that."""
    times = [[1.43e-6] * 3, [1e-6] * 3, [1e-6] * 3, [1e-6] * 3]
    peers = [
        Peer("a quick one", nothing, nothing, at_most(1.8)),
        Peer("a call", nothing, nothing, under(8e-6)),
        Peer("a yardstick", nothing, "it is no step"),
    ]
    row = weigh(Comparison("ours", nothing, peers), times, [None] * 4, None)
    first, call, yardstick = tables.table({"rows": [{"case": "made/up", **row}]}).splitlines()[2:]
    assert first.split(" | ")[2:4] == ["time **1.43** (1.43 to 1.43)", "time at most 1.8, met"]
    assert call.split(" | ")[2:4] == ["ours **1.43** us (1.43 to 1.43)", "at most 8 us, met"]
    assert yardstick.split(" | ")[2:4] == ["speed-up **0.70** (0.70 to 0.70)", ""]
