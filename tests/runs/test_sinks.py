"""TensorBoard and Weights & Biases, by modules that stand in for theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flexkern.runs.events import EventLog, Learned
from flexkern.runs.incremental.run import Event, run
from flexkern.runs.sinks import sinks_named
from helpers.commands import invoke
from helpers.incremental import LEARNERS, configuration


class Writer:
    """As ``torch.utils.tensorboard.SummaryWriter``."""

    made: dict[str, Writer]

    def __init__(self, log_dir: str) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        (Path(log_dir) / f"events.out.tfevents.{len(self.made)}").touch()
        self.made[f"{len(self.made)} {Path(log_dir).name}"] = self

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((tag, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    made: dict[str, Writer] = {}
    monkeypatch.setattr(Writer, "made", made, raising=False)
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    module: Any = ModuleType("wandb")
    runs: list[Any] = []

    def init(**given: Any) -> Any:
        assert all(one.ended for one in runs)
        (Path(given["dir"]) / "wandb").mkdir(exist_ok=True)
        one = SimpleNamespace(given=given, logged=[], ended=False)
        one.log = lambda values, step: one.logged.append((step, values))
        one.finish = lambda: setattr(one, "ended", True)
        runs.append(one)
        return one

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def stop(event: Event) -> None:
    if event.kind == "task" and (event.method, event.task) == ("All rows", 0):
        raise InterruptedError


def test_tensorboard_is_told_each_task_once(tmp_path: Path, writers: dict[str, Writer]) -> None:
    with pytest.raises(InterruptedError):
        run(configuration(tmp_path), learners=LEARNERS, observe=stop, sinks=sinks_named(["tensorboard"]))
    assert list(writers) == ["0 Local rows, seed 0", "1 All rows, seed 0"]
    results = run(configuration(tmp_path), learners=LEARNERS, sinks=sinks_named(["tensorboard"] * 2))
    assert list(writers)[2:] == ["2 All rows, seed 0"]
    assert all(writer.closed for writer in writers.values())
    said = [scalar for name, writer in writers.items() if "All" in name for scalar in writer.scalars]
    record = results["runs"][1]
    assert [(v, s) for tag, v, s in said if tag == "seen"] == [
        (task["seen"], i + 1) for i, task in enumerate(record["tasks"])
    ]
    assert [v for tag, v, _ in said if tag == "accuracies/task 1"] == [
        t["accuracies"][0] for t in record["tasks"]
    ]
    assert {"forgetting", "learn_seconds", "memory_bytes"} <= {tag for tag, *_ in said}
    assert "anytime" not in {tag for tag, *_ in said}  # not measured here


def test_a_run_that_has_ended_is_told_whole(tmp_path: Path, writers: dict[str, Writer]) -> None:
    run(configuration(tmp_path), learners=LEARNERS)
    run(configuration(tmp_path), learners=LEARNERS, sinks=sinks_named(["tensorboard"]))
    assert [len([s for s in w.scalars if s[0] == "seen"]) for w in writers.values()] == [3, 3]
    files = list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(files) == 2
    run(configuration(tmp_path), learners=LEARNERS, restart=True)
    assert not list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))  # they were of another run


def test_methods_that_differ_in_what_a_folder_cannot_have(tmp_path: Path, writers: dict[str, Writer]) -> None:
    log = EventLog(tmp_path, ("seed", "method", "task", "x"), 3, sinks=sinks_named(["tensorboard"]))
    log.open([], anew=True)
    for method in ("a/b", "a:b", "../../up", "a_b"):
        row = {"seed": 0, "method": method, "task": 0, "x": 1}
        log.learned(Learned({"event": "task"} | row, [row]))
    folders = {path.name for path in (tmp_path / "tensorboard").iterdir()}
    assert len(folders) == 4
    assert "a_b, seed 0" in folders


def test_wandb_has_a_run_for_each_method_that_goes_on(tmp_path: Path, wandb: list[Any]) -> None:
    with pytest.raises(InterruptedError):
        run(configuration(tmp_path), learners=LEARNERS, observe=stop, sinks=sinks_named(["wandb"]))
    run(configuration(tmp_path), learners=LEARNERS, sinks=sinks_named(["wandb"]))
    local, every, again = wandb
    assert all(one.ended for one in wandb)
    assert local.given["id"] != every.given["id"] == again.given["id"]
    assert len({one.given["group"] for one in wandb}) == 1
    assert every.given["name"] == "All rows, seed 0"
    assert every.given["config"]["configuration"]["stream"]["increment"] == 3
    assert [step for step, _ in local.logged] == [1, 2, 3]
    assert [step for one in (every, again) for step, _ in one.logged] == [1, 2, 3]
    was = every.given["group"]
    run(configuration(tmp_path), learners=LEARNERS, sinks=sinks_named(["wandb"]), restart=True)
    assert wandb[-1].given["group"] != was


def test_a_place_that_fails_does_not_end_the_run(tmp_path: Path, wandb: list[Any]) -> None:
    def fail(**_: Any) -> Any:
        raise ConnectionError("no network")

    sys.modules["wandb"].init = fail  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"wandb has failed .ConnectionError: no network.. The run goes on"):
        results = run(configuration(tmp_path), learners=LEARNERS, sinks=sinks_named(["wandb"]))
    assert results["finished"]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
@pytest.mark.parametrize("command", ["run class-incremental digits", "run serial-position", "fit photos"])
def test_what_is_not_installed_is_refused_at_the_door(
    name: str, module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    result = invoke(*command.split(), "--out", tmp_path / "out", "--log", name)
    assert result.exit_code == 1
    assert f"log: {name} is not installed: pip install {name}" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_other_names_are_refused(tmp_path: Path, wandb: list[Any]) -> None:
    result = invoke("run", "class-incremental", "digits", "--out", tmp_path / "out", "--log", "tensorbord")
    assert result.exit_code == 1
    assert "did you mean 'tensorboard'?" in " ".join(result.output.split())
    module: Any = ModuleType("wandb")  # a folder of the results of others, found as a package
    sys.modules["wandb"] = module
    with pytest.raises(ImportError, match="pip install wandb"):
        sinks_named(["wandb"])
