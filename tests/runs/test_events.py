"""results.csv and events.jsonl of a run say what results.json says, each thing once, whatever happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexkern.runs.events import EVENTS, ROWS, EventLog, Learned
from flexkern.runs.incremental.config import StreamConfig
from flexkern.runs.incremental.run import Event, run
from flexkern.runs.metaplasticity import runner
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.protocol import protocol_for
from helpers.incremental import LEARNERS, configuration
from helpers.logged_runs import check_against, events, rows, tasks
from helpers.memory_tiny import TINY


def stop_after(count: int) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        nonlocal count
        count -= event.kind in ("epoch", "task")
        if not count:
            raise InterruptedError

    return observe


# ----------------------------------------------------------------- class-incremental runs


def test_a_run_notes_what_happens(tmp_path: Path) -> None:
    seen_while_it_ran = []

    def observe(event: Event) -> None:
        if event.kind == "task":
            seen_while_it_ran.append(len(tasks(tmp_path)))

    results = run(configuration(tmp_path), learners=LEARNERS, observe=observe)
    assert seen_while_it_ran == [1, 2, 3, 4, 5, 6]
    check_against(results, tmp_path)
    first, *_, last = events(tmp_path)
    assert first["event"] == "began"
    assert first["configuration"] == results["configuration"]
    assert first["environment"] == results["environments"][0]
    assert first["time"] < last["time"] or first["time"] == last["time"]
    assert last["event"] == "ended"
    assert last["summary"]["All rows"]["last"] == results["summary"]["All rows"]["last"]["mean"]
    row = rows(tmp_path)[0]
    assert (row["method"], row["open_rate"], row["anytime"]) == ("Local rows", "1.0", "")


def test_the_same_command_again_writes_nothing(tmp_path: Path) -> None:
    run(configuration(tmp_path), learners=LEARNERS)
    before = {name: (tmp_path / name).read_bytes() for name in (EVENTS, ROWS)}
    run(configuration(tmp_path), learners=LEARNERS)
    assert {name: (tmp_path / name).read_bytes() for name in (EVENTS, ROWS)} == before


def test_a_run_that_is_stopped_again_and_again_has_no_line_twice(tmp_path: Path) -> None:
    for count in (1, 2, 3, 4, 2, 3):
        with pytest.raises(InterruptedError):
            run(configuration(tmp_path), learners=LEARNERS, observe=stop_after(count))
    results = run(configuration(tmp_path), learners=LEARNERS)
    check_against(results, tmp_path)
    kinds = [e["event"] for e in events(tmp_path)]
    assert (kinds.count("began"), kinds.count("ended")) == (7, 1)
    assert len({e["id"] for e in events(tmp_path) if e["event"] == "began"}) == 1


@pytest.mark.parametrize("name", [EVENTS, ROWS])
@pytest.mark.parametrize("left", [0, 3, 200, -1, -30, -400])
def test_a_file_that_was_cut_off_is_mended(name: str, left: int, tmp_path: Path) -> None:
    """Killed while it wrote, or between the results and these files, or without power."""
    with pytest.raises(InterruptedError):
        run(configuration(tmp_path), learners=LEARNERS, observe=stop_after(13))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:left])
    results = run(configuration(tmp_path), learners=LEARNERS)
    check_against(results, tmp_path)


def test_lines_ahead_of_the_results_are_left_out(tmp_path: Path) -> None:
    """As after a power cut that took the newer results: the task is learned again, and has other seconds."""
    with pytest.raises(InterruptedError):
        run(configuration(tmp_path), learners=LEARNERS, observe=stop_after(6))
    old = tmp_path.with_name("old")
    shutil.copytree(tmp_path, old)
    with pytest.raises(InterruptedError):
        run(configuration(tmp_path), learners=LEARNERS, observe=stop_after(5))
    for name in (EVENTS, ROWS):
        shutil.copy(tmp_path / name, old / name)
    check_against(run(configuration(old), learners=LEARNERS), old)


def test_a_run_that_grows_keeps_its_lines_and_adds_others(tmp_path: Path) -> None:
    (local, every) = configuration(tmp_path).methods
    run(configuration(tmp_path, methods=(every,), seeds=(1,)), learners=LEARNERS)
    before = {name: (tmp_path / name).read_bytes() for name in (EVENTS, ROWS)}
    results = run(configuration(tmp_path, methods=(local, every), seeds=(0, 1)), learners=LEARNERS)
    for name, text in before.items():
        assert (tmp_path / name).read_bytes().startswith(text)
    check_against(results, tmp_path)
    assert [e["event"] for e in events(tmp_path)].count("ended") == 2


def test_a_task_that_is_tested_again_has_one_row(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from flexkern.runs.incremental.config import DataConfig, MethodConfig

    def grown(*domains: str) -> dict[str, Any]:
        data = DataConfig(kind="digits", train_per_class=5, test_per_class=3, domains=domains)
        methods = (MethodConfig("Ridge", "ridge", {"features": "pixels", "random_features": 64}),)
        stream = StreamConfig(kind="domain-incremental")
        return run(configuration(tmp_path, data=data, stream=stream, methods=methods), keep=True)

    grown("digits", "digits:inverted")
    results = grown("digits", "digits:inverted", "digits:rotated:2")
    found = rows(tmp_path)
    assert [row["task"] for row in found] == ["0", "1", "2"]
    for row, task in zip(found, results["runs"][0]["tasks"], strict=True):
        assert float(row["forward_transfer"] or "nan") == pytest.approx(
            task["forward_transfer"] if task["forward_transfer"] is not None else float("nan"), nan_ok=True
        )


def test_restart_begins_new_files(tmp_path: Path) -> None:
    run(configuration(tmp_path), learners=LEARNERS)
    was = events(tmp_path)[0]["id"]
    results = run(configuration(tmp_path, seeds=(5,)), learners=LEARNERS, restart=True)
    check_against(results, tmp_path)
    assert [e["event"] for e in events(tmp_path)].count("began") == 1
    assert events(tmp_path)[0]["id"] != was


def test_a_folder_of_before_gets_its_files(tmp_path: Path) -> None:
    results = run(configuration(tmp_path), learners=LEARNERS)
    for name in (EVENTS, ROWS):
        (tmp_path / name).unlink()
    run(configuration(tmp_path), learners=LEARNERS)
    check_against(results, tmp_path)
    assert all(e["time"] is None for e in events(tmp_path) if e["event"] == "task")  # nobody knows when


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("name", "text"), [(ROWS, "mine,too\n1,2\n"), (EVENTS, '{"mine": 1}\n')])
def test_files_of_others_are_left_alone(name: str, text: str, restart: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}' is in the way, and was not written by flexkern"):
        run(configuration(tmp_path), learners=LEARNERS, restart=restart)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


# ----------------------------------------------------------------- the writer itself


def unit(task: int, seen: float, method: str = "a") -> Learned:
    which = {"seed": 0, "method": method, "task": task}
    return Learned({"event": "task", **which, "seen": seen}, [which | {"seen": seen, "each": [0.5, None]}])


def test_names_and_numbers_of_any_kind(tmp_path: Path) -> None:
    log = EventLog(tmp_path, ("seed", "method", "task", "seen", "each"), 3)
    log.open([], anew=True)
    name = 'two\nlines, "quoted" <b>, ü'
    log.learned(unit(0, float("nan"), name))
    assert events(tmp_path)[0] | {"time": ""} == {
        "time": "", "event": "task", "seed": 0, "method": name, "task": 0, "seen": None
    }  # fmt: skip
    (row,) = rows(tmp_path)
    assert row == {"seed": "0", "method": name.replace("\n", " "), "task": "0", "seen": "", "each": "0.5 nan"}
    again = EventLog(tmp_path, log.columns, 3)
    again.open([unit(0, float("nan"), name)])
    again.learned(unit(0, float("nan"), name))
    assert (len(events(tmp_path)), len(rows(tmp_path))) == (1, 1)


def test_a_table_of_other_columns_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text("seed,method,task,old\n0,a,0,1\n")
    log = EventLog(tmp_path, ("seed", "method", "task", "seen"), 3)
    log.check()
    log.open([unit(0, 0.5)])
    log.learned(unit(1, 0.25))
    assert (tmp_path / ROWS).read_text() == "seed,method,task,seen\n0,a,0,0.5\n0,a,1,0.25\n"


# ----------------------------------------------------------------- experiments


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def test_an_experiment_notes_its_networks(tmp_path: Path, cache: Path, one_thread: None) -> None:
    pytest.importorskip("sklearn")

    def go(seeds: tuple[int, ...], **options: Any) -> dict[str, Any]:
        protocol = protocol_for(**TINY | {"seeds": seeds})
        return runner.run(HebbRepetition(passes=2), protocol, out=tmp_path, cache=cache, jobs=1, **options)

    def stop(share: float, what: str) -> None:
        if share > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        go((0,), observe=stop)
    assert [e["event"] for e in events(tmp_path)] == ["began", "network"]
    (tmp_path / EVENTS).write_text((tmp_path / EVENTS).read_text()[:-9])  # killed while it wrote
    results = go((0,))
    before = (tmp_path / ROWS).read_bytes()
    assert go((0,)) == results
    assert (tmp_path / ROWS).read_bytes() == before
    results = go((0, 1))
    assert (tmp_path / ROWS).read_bytes().startswith(before)
    found = rows(tmp_path)
    assert len(found) == sum(len(r["parts"]["repetition"]["items"]) for r in results["runs"])
    assert len({tuple(list(row.values())[:4]) for row in found}) == len(found)
    record = results["runs"][0]
    part = record["parts"]["repetition"]
    first = next(r for r in found if (r["method"], r["seed"]) == (record["network"], "0"))
    assert float(first["own"]) == part["accuracy"][0][part["items"][0]]
    assert int(first["memorised"]) == len(part["memorised"][0])
    networks = [(e["method"], e["seed"]) for e in events(tmp_path) if e["event"] == "network"]
    assert sorted(networks) == sorted((r["network"], r["seed"]) for r in results["runs"])
    last = events(tmp_path)[-1]
    assert last["claims"] == {c["name"]: c["verdict"] for c in results["summary"]["claims"]}
    go((0,), restart=True)
    assert {row["seed"] for row in rows(tmp_path)} == {"0"}
