"""Runs and fits say what memory they will take, before they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("transformers", reason="transformers is not installed")

from typer.testing import CliRunner

from flexkern.cli.app import app
from flexkern.runs.incremental.config import MethodConfig, StreamConfig
from flexkern.runs.incremental.plan import plan
from flexkern.runs.incremental.run import Event, run
from helpers.incremental import configuration

MEANS = MethodConfig("Means", "simplecil", {"images_per_pass": 30})
RIDGE = MethodConfig("Ridge", "ridge", {"features": "pixels", "random_features": 64})


def given(out: Path, *methods: MethodConfig, **changes: Any) -> Any:
    return configuration(out, methods=methods, stream=StreamConfig(increment=5), **changes)


def test_a_plan_and_a_run_say_the_same(tmp_path: Path) -> None:
    planned = plan(given(tmp_path / "out", MEANS, RIDGE)).methods
    events: list[Event] = []
    run(given(tmp_path / "out", MEANS, RIDGE, seeds=(0, 1)), observe=events.append)
    said = [event for event in events if event.kind == "memory"]
    assert [(event.method, event.seed) for event in said] == [("Means", 0)]
    assert said[0].memory == planned[0].memory
    assert said[0].memory is not None
    assert said[0].memory.during == "answering"
    assert planned[1].memory is None
    kinds = [event.kind for event in events]
    assert kinds.index("memory") < kinds.index("task")


def test_a_limit_is_a_key_and_is_kept_to(tmp_path: Path) -> None:
    free = plan(given(tmp_path / "out", MEANS)).methods[0].memory
    assert free is not None
    limit = 0.8 * free.total / 2**30
    limited = MethodConfig("Means", "simplecil", {"images_per_pass": 30, "memory_limit": limit})
    memory = plan(given(tmp_path / "out", limited)).methods[0].memory
    assert memory is not None
    assert memory.total <= limit * 2**30
    with pytest.raises(ValueError, match=r"'Means' \(simplecil\): memory_limit is 1e-06 GiB, and one image"):
        plan(given(tmp_path / "out", MethodConfig("Means", "simplecil", {"memory_limit": 1e-6})))


TOML = """
[data]
kind = "digits"
train_per_class = 5
test_per_class = 2
[stream]
increment = 5
[[methods]]
name = "Means"
method = "simplecil"
"""


@pytest.mark.parametrize("dry", [True, False])
def test_the_command(dry: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    command = ["run", "class-incremental", str(tmp_path / "mine.toml"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), *["--dry-run"] * dry])
    assert result.exit_code == 0, result.output
    said = [line for line in result.output.splitlines() if line.startswith("Means: ")]
    assert len(said) == 1
    assert " of memory while answering (parameters 4." in said[0]
