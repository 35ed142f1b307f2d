"""``flexkern run class-incremental``: mistakes, tables, the picture and the command."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from flexkern.runs.incremental.config import (
    DataConfig,
    MethodConfig,
)
from flexkern.runs.incremental.run import run
from helpers.incremental import LEARNERS, configuration


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(configuration(tmp_path_factory.mktemp("whole"), seeds=(3, 4)), learners=LEARNERS)


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": (MethodConfig("x", "magic"),)}, "'x' has method 'magic'; allowed are global, local"),
        ({"methods": (MethodConfig("x", "local", {"speed": 1}),)}, r"methods: 'x' \(local\): .*speed"),
        (
            {"methods": (MethodConfig("x", "local", {"lr": -1.0}),)},
            r"methods: 'x' \(local\): lr must be positive",
        ),
        ({"device": "gpu"}, "device must be auto, cpu, cuda"),
        ({"data": DataConfig()}, "data.path: this configuration needs the archive .* --data PATH"),
        ({"data": DataConfig(kind="digits", train_per_class=500)}, "train_per_class is 500, but class"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(configuration(tmp_path / "out", **changes), learners=LEARNERS)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------- report, picture, command


def test_tables_and_notes(whole: dict[str, Any]) -> None:
    rich = pytest.importorskip("rich.console")
    from flexkern.runs.incremental import tables as report

    config = configuration(Path("unused"), seeds=(3, 4))
    console = rich.Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.task_table(whole["runs"][0]))
    console.print(report.method_table(config, whole))
    text = console.export_text()
    last = whole["runs"][0]["tasks"][-1]
    each = " ".join(f"{100 * a:.0f}" for a in last["accuracies"])
    row = next(line for line in text.splitlines() if each in line)
    cells = row.split()
    assert cells[:6] == ["3", "10", f"{100 * last['seen']:.1f}", f"{100 * last['average']:.1f}",
                         f"{100 * last['forgetting']:.1f}", "0.33"]  # fmt: skip
    summary = whole["summary"]["Local rows"]
    assert f"{100 * summary['average']['mean']:.2f} ± {100 * summary['average']['std']:.2f}" in text
    assert "Local rows, a paper" in text
    assert "90.00" in text
    (note,) = report.notes(config, whole)
    for part in ("backbone small (there vit)", "20 training images a class", "10 test images a class"):
        assert part in note
    assert "epochs" not in note  # the learner's default is what the paper had
    report_of = whole["summary"]["Local rows"]["report"] | {"keeps_data": {"mean": [0.0, 1.0, 1.0]}}
    keeps = whole | {"summary": {"Local rows": summary | {"report": report_of}}}
    assert "Local rows: keeps features of training images." in report.notes(config, keeps)
    twice = whole | {"environments": [{"torch": "1"}, {"torch": "2"}]}
    assert "other versions" in report.notes(config, twice)[-1]


def test_the_picture(whole: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flexkern.runs.incremental.pictures import draw

    draw(whole, tmp_path / "picture.png")
    header = (tmp_path / "picture.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width > 1800  # two panels: one method has gates
    assert height > 700
    with pytest.raises(ValueError, match="no run has ended"):
        draw(whole | {"summary": {}}, tmp_path / "none.png")


@pytest.mark.parametrize("tasks", [5, 14, 1])
@pytest.mark.parametrize("grows", [True, False])
def test_the_picture_can_be_read(whole: dict[str, Any], tasks: int, grows: bool) -> None:
    """At half size too: letters of 14 points; ticks where tasks are; nothing over anything else."""
    pytest.importorskip("matplotlib")
    from flexkern.runs.incremental.pictures import figure
    from helpers.pictures import check_can_be_read

    results = json.loads(json.dumps(whole))
    results["configuration"]["title"] = (
        "A title of a run that is longer than what there is room for in one line of it"
    )
    for summary in results["summary"].values():
        summary["classes"] = [3 * (i + 1) if grows else 10 for i in range(tasks)]
        of_tasks = [summary["seen"], *(v for k, v in summary["report"].items() if k == "open_rate")]
        for value in of_tasks:
            value |= {key: [0.5] * tasks for key in ("mean", "std")}
    drawing = figure(results)
    check_can_be_read(drawing)
    # Of one task it cannot be told whether each brings classes.
    places = list(range(1, tasks + 1))
    if grows or tasks == 1:
        places = next(iter(results["summary"].values()))["classes"]
    for axes in drawing.axes:
        ticks = list(axes.get_xticks())
        assert set(ticks) <= set(places)
        assert ticks[-1] == places[-1]
        assert len(ticks) == (tasks if tasks <= 10 else 7)


def invoke(*arguments: str) -> Any:
    testing = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    return testing.CliRunner().invoke(app, ["run", "class-incremental", *arguments])


TOML = """
[data]
kind = "digits"
train_per_class = 20
test_per_class = 10
[stream]
increment = 5
[[methods]]
name = "Mine"
method = "local"
lr = 0.3
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexkern.runs.incremental import run as class_incremental

    monkeypatch.setattr(class_incremental, "_shipped_learners", lambda: LEARNERS)
    (tmp_path / "mine.toml").write_text(TOML)
    options = [str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--device", "cpu", "--seeds", "1,2"]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["configuration"]["seeds"] == [1, 2]
    assert f"{100 * results['summary']['Mine']['last']['mean']:.2f}" in result.output
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000
    assert invoke(*options).exit_code == 0  # nothing left to do
    more = invoke(*options[:-1], "3")
    assert more.exit_code == 0
    assert f"added to {tmp_path / 'out'}: seed 3" in "".join(more.output.splitlines())
    assert json.loads((tmp_path / "out" / "results.json").read_text())["configuration"]["seeds"] == [1, 2, 3]
    assert invoke(*options[:-1], "3", "--restart").exit_code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["configuration"]["seeds"] == [3]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name a TOML file"),
        (["digit"], 1, "no configuration at 'digit'; did you mean 'digits'?"),
        (["digits", "--seeds", "1;2"], 2, "must be numbers and ranges"),
        (["digits", "--data", "x.npz"], 1, "the digits are bundled"),
    ],
)
def test_the_command_explains_mistakes(arguments: list[str], code: int, message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_shipped_configurations_are_listed() -> None:
    result = invoke("--list")
    assert result.exit_code == 0
    for name in ("cifar100_b0_inc10", "cifar100_b0_inc5", "digits", "tinyimagenet_5steps"):
        assert name in result.output
