"""``flexkern compare``: pairs of seed and method, and what they can and cannot tell."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flexkern.runs.comparing import compare_runs
from flexkern.runs.found import Found, one
from flexkern.runs.incremental.config import MethodConfig, StreamConfig
from flexkern.runs.incremental.run import run
from helpers.commands import invoke
from helpers.incremental import LEARNERS, configuration
from helpers.pages import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a")
    run(configuration(folder, seeds=tuple(range(7))), learners=LEARNERS)
    return folder


def changed(source: Path, folder: Path, change: Any) -> Path:
    """The same results, but for what ``change`` does to them."""
    results = json.loads((source / "results.json").read_text())
    change(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def shifted(by: float, spread: float, method: str = "All rows") -> Any:
    """One method is better by so much, more or less."""
    noise = np.random.default_rng(0).normal(0, spread, 100)

    def change(results: dict[str, Any]) -> None:
        for record in results["runs"]:
            if record["method"] == method:
                for measure in ("seen", "average"):
                    record["tasks"][-1][measure] += by + float(noise[record["seed"]])

    return change


def test_pairs_are_tested_and_corrected_for_all(seven: Path, tmp_path: Path) -> None:
    other = changed(seven, tmp_path / "b", shifted(0.05, 0.01))
    result = compare_runs(one(seven), one(other))
    assert (result.stream, result.how, result.left_out) == ([], [], [])
    rows = {(row.method, row.measure): row for row in result.rows}
    assert len(rows) == 6
    better = rows["All rows", "last"]
    difference = np.subtract(better.b, better.a)
    expected = stats.ttest_1samp(difference, 0)
    assert better.p == pytest.approx(expected.pvalue)
    assert better.low == pytest.approx(expected.confidence_interval(0.95).low, abs=1e-4)
    assert better.p_holm == pytest.approx(min(1, 6 * expected.pvalue), rel=0.25)  # the smallest or the second
    assert better.p_ranks == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert better.told == "B higher"
    assert rows["All rows", "forgetting"].told == rows["Local rows", "last"].told == "same"
    rounded = compare_runs(one(seven), one(changed(seven, tmp_path / "r", shifted(1e-15, 1e-15))))
    assert {row.told for row in rounded.rows} == {"same"}
    back = compare_runs(one(other), one(seven))
    assert {row.told for row in back.rows} == {"same", "B lower"}
    blurred = compare_runs(one(seven), one(changed(seven, tmp_path / "c", shifted(0.0, 0.05))))
    assert {row.told for row in blurred.rows if row.method == "All rows"} == {"open", "same"}


@pytest.mark.parametrize("count", [2, 7])
def test_pairs_that_differ_by_the_same_are_tested_by_ranks(seven: Path, tmp_path: Path, count: int) -> None:
    """They have no spread, of which a t-test would make p = 0 and an interval of no width."""

    def change(results: dict[str, Any]) -> None:
        results["runs"] = [r for r in results["runs"] if r["seed"] < count]
        for record in results["runs"]:
            record["tasks"][-1]["seen"] += 0.025

    result = compare_runs(one(seven), one(changed(seven, tmp_path / "b", change)))
    for row in result.rows:
        if row.measure == "last":
            assert (row.low, row.high) == (None, None)
            assert row.p == row.p_ranks == pytest.approx(2 / 2**count)
            assert row.told == ("too few" if count == 2 else "open")  # of six rows


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_results_from_a_pipe(seven: Path, tmp_path: Path) -> None:
    """`flexkern compare A <(ssh there cat results.json)`"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(one(pipe).results), daemon=True)
    reader.start()
    pipe.write_bytes((seven / "results.json").read_bytes())
    reader.join(30)
    assert found == [one(seven).results]


def test_a_folder_of_runs_names_them(seven: Path, tmp_path: Path) -> None:
    for name in "ab":
        changed(seven, tmp_path / name, lambda _: None)
    said = invoke("compare", tmp_path, seven)
    assert said.exit_code == 1
    words = " ".join(said.output.split())
    assert f"has no results.json; {tmp_path / 'a'} and {tmp_path / 'b'} have" in words


def test_few_pairs_do_not_tell(seven: Path, tmp_path: Path) -> None:
    def few(count: int) -> Any:
        def change(results: dict[str, Any]) -> None:
            shifted(0.05, 0.001)(results)
            results["runs"] = [r for r in results["runs"] if r["seed"] < count]

        return change

    by_count = {
        5: "5 pairs, seeds 0-4: too few to tell (by ranks p is 0.062 at best",
        1: "1 pair, seed 0: too few to tell (one pair says nothing of the spread",
    }
    for count, words in by_count.items():
        other = changed(seven, tmp_path / str(count), few(count))
        said = invoke("compare", seven, other)
        assert said.exit_code == 0, said.output
        assert f"All rows: {words}" in said.output
        assert "Local rows: " + words.partition(":")[0] + "\n" in said.output  # the same, which is told
        assert "only A has seeds" in said.output
        assert "too few" in said.output
        assert "B higher" not in said.output


def test_runs_of_other_streams_are_refused_by_name(seven: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    run(configuration(other, stream=StreamConfig(increment=2)), learners=LEARNERS)
    said = invoke("compare", seven, other)
    assert said.exit_code == 1
    words = " ".join(said.output.split())
    assert "did not learn the same (stream.base is 4 in A and 0 in B; stream.increment is 3 in A" in words
    assert "--anyway" in words
    said = invoke("compare", seven, other, "--anyway")
    assert said.exit_code == 0
    assert "what was learned differs: stream.increment is 3 in A and 2 in B" in said.output

    def images(results: dict[str, Any]) -> None:
        results["runs"][0]["data"] = "0" * 32

    with pytest.raises(ValueError, match="the images of seed 0, or their order, are other ones"):
        compare_runs(one(seven), one(changed(seven, tmp_path / "c", images)))


def test_how_they_learned_may_differ_and_is_said(seven: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    methods = (MethodConfig("Local rows", "local", {"lr": 0.4}), MethodConfig("New", "global"))
    run(configuration(other, methods=methods, seeds=(0, 1)), learners=LEARNERS)
    said = invoke("compare", seven, other)
    assert said.exit_code == 0, said.output
    assert "differs: 'Local rows': options.lr is 0.3 in A and 0.4 in B" in said.output
    assert "left out: only A has 'All rows'" in said.output
    assert "left out: only B has 'New'" in said.output
    assert "left out: Local rows: only A has seeds 2-6" in said.output


def test_methods_of_other_names_are_matched(seven: Path) -> None:
    said = invoke("compare", seven, seven, "--match", "Local rows=All rows")
    assert said.exit_code == 0, said.output
    assert "Local rows and All rows: 7 pairs, seeds 0-6\n" in said.output
    assert "options.lr is 0.3 in A and not set in B" in said.output
    for given, message in (("Local row=All rows", "A has no method 'Local row'; did you mean 'Local rows'?"),
                           ("Local rows", "match must be 'OF A=OF B'")):  # fmt: skip
        wrong = invoke("compare", seven, seven, "--match", given)
        assert wrong.exit_code == 1
        assert message in " ".join(wrong.output.split())

    def renamed(results: dict[str, Any]) -> None:
        for record in results["runs"]:
            record["method"] += " 2"

    other = one(seven)
    results = copy.deepcopy(other.results)
    renamed(results)
    with pytest.raises(
        ValueError, match=r"no method in common: A has 'Local rows', .* B has 'Local rows 2'.*--match"
    ):
        compare_runs(other, Found(other.kind, other.path, results))


def test_json_has_each_value(seven: Path, tmp_path: Path) -> None:
    other = changed(seven, tmp_path / "b", shifted(0.05, 0.01))
    said = invoke("compare", seven, other, "--json")
    found = json.loads(said.output)
    row = next(r for r in found["rows"] if (r["method"], r["measure"]) == ("All rows", "last"))
    record = json.loads((seven / "results.json").read_text())["runs"]
    assert row["a"] == [r["tasks"][-1]["seen"] for r in record if r["method"] == "All rows"]
    assert row["seeds"] == list(range(7))
    assert found["b"] == str(other)


@pytest.mark.parametrize("place", ["demo", "metaplasticity/serial-position", "metaplasticity/rivals"])
def test_other_kinds_of_runs(place: str) -> None:
    result = compare_runs(one(RESULTS / place), one(RESULTS / place))
    assert {row.told for row in result.rows} == {"same"}
    assert max(len(row.seeds) for row in result.rows) >= 5


def test_experiments_of_other_streams() -> None:
    a, b = (one(RESULTS / "metaplasticity" / name) for name in ("serial-position", "serial-position-digits"))
    with pytest.raises(ValueError, match=r"data is mnist.npz in A and digits in B"):
        compare_runs(a, b)
    with pytest.raises(ValueError, match="A is of flexkern run serial-position and B of flexkern demo"):
        compare_runs(a, one(RESULTS / "demo"))


def test_what_cannot_be_compared_gets_a_sentence(seven: Path, tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"experiment": "cla')
    (tmp_path / "lacking.json").write_text(
        '{"experiment": "class-incremental", "format": 1, "configuration": {}}'
    )
    bench = sorted((ROOT / "benchmarks" / "results").glob("*.json"))[-1]
    for place, message in (
        (tmp_path, "has no results.json"),
        (tmp_path / "none", "there is nothing at"),
        (tmp_path / "half.json", "is no whole JSON"),
        (tmp_path / "lacking.json", "is no whole results file"),
        (bench, "use flexkern bench compare A B"),
    ):
        said = invoke("compare", place, seven)
        assert said.exit_code == 1
        assert message in " ".join(said.output.split())
        assert "Traceback" not in said.output

    def empty(results: dict[str, Any]) -> None:
        results["runs"] = results["runs"][:1]
        results["runs"][0]["tasks"].pop()

    said = invoke("compare", seven, changed(seven, tmp_path / "going on", empty))
    assert "has nothing that has ended" in " ".join(said.output.split())


def test_it_fits_a_terminal_and_a_pipe(seven: Path, tmp_path: Path) -> None:
    other = changed(seven, tmp_path / "b", shifted(0.05, 0.01))
    child = subprocess.run(
        [sys.executable, "-m", "flexkern", "compare", str(seven), str(other)],
        capture_output=True, text=True, timeout=240, env={**__import__("os").environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    rows = [line for line in child.stdout.splitlines() if re.search(r"(B higher|same) *$", line)]
    assert len(rows) == 6  # no row is broken
    assert all(len(line) <= 80 for line in rows)
