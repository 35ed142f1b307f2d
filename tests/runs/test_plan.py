"""``flexkern run class-incremental --dry-run``: what would be done, and nothing of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from typer.testing import CliRunner

from flexkern.cli.app import app
from flexkern.cli.dry_run import said_time
from flexkern.learners import MetaplasticMLP
from flexkern.runs import pace
from flexkern.runs.incremental.config import DataConfig, MethodConfig, StreamConfig
from flexkern.runs.incremental.plan import plan
from flexkern.runs.incremental.run import run
from flexkern.streams import Experience
from helpers.incremental import configuration

pytestmark = pytest.mark.usefixtures("one_thread")
SI = MethodConfig("SI", "si", {"features": "pixels", "widths": [8, 8], "epochs": 1})
EWC = MethodConfig("EWC", "ewc", {"features": "pixels", "widths": [8, 8], "epochs": 40})


def test_a_plan_counts_measures_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = configuration(out, methods=(SI, EWC), stream=StreamConfig(increment=4))
    first = plan(config)
    assert not list(tmp_path.iterdir())
    assert first.tasks == [(4, 80, 40), (4, 80, 40), (2, 40, 20)]
    assert first.images_mib == pytest.approx(300 * 3 * 8 * 8 / 2**20)
    assert [(m.name, m.epochs, m.tasks) for m in first.methods][1] == ("EWC", 40, 3)
    assert all(m.seconds is not None and m.seconds > 0 for m in first.methods)
    weights = 3 * 64 * 8 + 8 * 8 + 8 * 10 + 8 + 8 + 10
    assert first.methods[1].parameters_mib >= 4 * weights / 2**20
    run(configuration(out, methods=(SI,), stream=StreamConfig(increment=4)))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    then = plan(configuration(out, methods=(SI, EWC), stream=StreamConfig(increment=4), seeds=(0, 1)))
    assert then.added == ["seed 1", "method 'EWC'"]
    assert [m.tasks for m in then.methods] == [3, 6]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match=r"stream.increment was 4, is 5.*--restart"):
        plan(configuration(out, methods=(SI,), stream=StreamConfig(increment=5)))


def test_a_piece_is_measured_and_not_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online each image is learned once: to try methods on a hundred images was to run all of it."""
    learned: list[int] = []

    def counting(_: MetaplasticMLP, experience: Experience, **options: Any) -> None:
        learned.append(len(experience.train_labels))
        time.sleep(0.02)

    monkeypatch.setattr(MetaplasticMLP, "learn", counting)
    monkeypatch.setattr(MetaplasticMLP, "evaluate", lambda *_: None)
    monkeypatch.setattr(pace, "LEAST", 0.1)
    one = MethodConfig("one", "metaplastic", {"features": "pixels", "widths": [8, 8]})
    stream = StreamConfig(kind="blurry", tasks=3, online=2)
    data = DataConfig(kind="digits", train_per_class=40, test_per_class=4)
    found = plan(configuration(tmp_path / "out", methods=(one,), stream=stream, data=data))
    assert sum(learned) <= 0.1 * sum(task.train for task in found.tasks)
    (method,) = found.methods
    assert method.seconds == pytest.approx(200 * 0.02, rel=0.3)


def test_features_that_methods_share_are_counted_once(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    options = EWC.options | {"features": "backbone", "epochs": 1}
    methods = tuple(MethodConfig(name, "ewc", options) for name in ("one", "two"))
    found = plan(configuration(tmp_path / "out", methods=methods, stream=StreamConfig(increment=5)))
    assert not list(tmp_path.iterdir())
    assert found.features == sum(task.train + task.test for task in found.tasks)
    assert found.features_seconds > 0
    assert found.seconds == pytest.approx(found.features_seconds + sum(m.seconds or 0 for m in found.methods))


TOML = """
[data]
kind = "digits"
train_per_class = 5
test_per_class = 2
[stream]
increment = 5
[[methods]]
name = "SI"
method = "si"
features = "pixels"
widths = [8, 8]
"""


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    given = ["run", "class-incremental", str(tmp_path / "mine.toml"), "--dry-run", "--device", "cpu"]
    result = CliRunner().invoke(app, [*given, "--seeds", "0-2", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in (
        "2 tasks, 1 methods, seeds 0-2, on cpu",
        "images: 50 to learn, 20 to test",
        "an estimate: ",
        "nothing was written",
    ):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_times_are_said_as_well_as_they_are_known() -> None:
    assert said_time(None) == "?"
    said = [said_time(s) for s in (0.123, 45.6, 119.0, 130.0, 7300.0, 3600 * 30.0, 86400 * 3.0)]
    assert said == ["0.12 s", "46 s", "119 s", "2.2 min", "2 h", "30 h", "3 d"]
