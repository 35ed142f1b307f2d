"""What runs for long and writes at the end looks at the beginning whether it can."""

from __future__ import annotations

from pathlib import Path

import pytest

COMMANDS = [
    ["demo"],
    ["run", "class-incremental", "digits"],
    ["run", "serial-position"],
    ["bench", "--quick", "--device", "cpu"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_that_cannot_be_made_is_found_before_the_work(command: list[str], tmp_path: Path) -> None:
    typer = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    (tmp_path / "file").write_text("in the way")
    result = typer.CliRunner().invoke(app, [*command, "--out", str(tmp_path / "file" / "deeper")])
    assert result.exit_code in (1, 2)
    said = "".join(result.output.replace("\u2502", "").split())  # of a box, without its sides
    assert "isnofolder" in said or "Notadirectory" in said, result.output
    assert str(tmp_path / "file") in said
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_picture_that_is_a_folder_is_found_before_the_work(tmp_path: Path) -> None:
    typer = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    (tmp_path / "picture.png").mkdir()
    result = typer.CliRunner().invoke(app, ["run", "class-incremental", "digits", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "picture.png" in "".join(result.output.split())
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_the_demo_does_not_write_over_other_results(tmp_path: Path) -> None:
    typer = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    results = tmp_path / "results.json"
    results.write_text('{"experiment": "class-incremental"}')
    result = typer.CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds results of something else" in " ".join(result.output.split())
    assert results.read_text() == '{"experiment": "class-incremental"}'
