"""``flexkern bench`` as a user calls it, on a small case and at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexkern.benchmarks import __main__ as plain
from flexkern.benchmarks import record
from flexkern.benchmarks.case import CPU, Case, cases
from flexkern.benchmarks.worker import Options, collect, stream
from flexkern.cli.app import app

CASE = "metaplastic/gated-step"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


def test_a_run_is_printed_and_kept(tmp_path: Path) -> None:
    code, out, _ = run("--only", CASE, "--quick", "--seconds", "0.1", "--device", "cpu", "--out", str(tmp_path))
    assert code == 0, out
    (path,) = tmp_path.glob("*.json")
    assert str(path) in out.replace("\n", "")
    kept = record.read(path)
    assert not kept["complete"]
    assert kept["machine"]["versions"]["torch"]
    assert kept["ceilings"]["huge"]["copy"] > 0
    huge, small = kept["rows"]  # this case is measured with both pages
    assert (huge["pages"], small["pages"]) == ("huge", "small")
    assert huge["title"] in out
    assert all(peer["median_ms"] > 0 for peer in huge["peers"])
    assert {peer["agreed"] for peer in huge["peers"]} >= {"yes"}


def test_json_is_all_of_standard_output(tmp_path: Path) -> None:
    code, out, _ = run(
        "--only", "metaplastic/gate", "--only", "metaplastic/small", "--quick", "--seconds", "0.1",
        "--device", "cpu", "--json", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    printed = json.loads(out)
    assert [row["case"] for row in printed["rows"]] == ["metaplastic/small-tensors", "metaplastic/gate"]
    (path,) = tmp_path.glob("*.json")
    assert record.read(path)["rows"] == printed["rows"]


def test_the_list_has_every_case() -> None:
    code, out, _ = run("--list", "--device", "cpu")
    assert code == 0
    for entry in cases():
        assert entry.name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "nonsense"), "no case is called 'nonsense'"),
        (("--device", "tpu"), "--device must be cpu or cuda"),
        (("compare", "no-such-file", "HEAD"), "neither a results file nor a git revision"),
    ],
)
def test_what_does_not_fit_is_said(arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in " ".join((out + err).replace("│", " ").split())


def test_without_typer_the_module_does_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "metaplastic/gate", "--quick", "--seconds", "0.1", "--device", "cpu"]
    assert plain.main([*arguments, "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    assert f"written: {path}" in capsys.readouterr().out
    assert plain.main(["--only", "nonsense"]) == 2
    assert "no case is called 'nonsense'" in capsys.readouterr().err


def test_a_case_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: object) -> None:
        raise RuntimeError("out of luck")

    entries = [Case("broken/one", broken), *cases(["metaplastic/gate"])]  # type: ignore[arg-type]
    options = Options(CPU, quick=True, seconds=0.1)
    kept = collect(plain.measure(entries, options), options)
    failed, measured = kept["rows"][0], kept["rows"][-1]
    assert failed["failed"] == "RuntimeError: out of luck"
    assert measured["ours"]["median_ms"] > 0
    assert not kept["complete"]


def test_when_the_time_is_used_up_the_rest_is_named() -> None:
    options = Options(CPU, quick=True, seconds=0.1, budget=0.0)
    kept = collect(plain.measure(cases(["metaplastic"]), options), options)
    assert {row["skipped"] for row in kept["rows"]} == {"the time given was used up"}
    assert not kept["complete"]


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 2"):
        list(stream(Options("cpu", only=("nonsense",))))


def test_the_profiler_does_not_speak_into_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    """It writes to the process's own stderr."""
    parts = list(stream(Options("cpu", only=("causes/mlp-item",), quick=True, seconds=0.1, patience=0)))
    assert any("profile" in part for part in parts)
    assert "profiler_start" not in capfd.readouterr().err
