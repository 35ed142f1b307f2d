"""The metaplasticity paper's experiments: exact resuming, results, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flexkern.learners import MetaplasticMLP
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.metaplasticity.flexibility_distribution import FlexibilityDistribution
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.items import load_items
from flexkern.runs.metaplasticity.learning_frequency import LearningFrequency
from flexkern.runs.metaplasticity.poisoning import Poisoning
from flexkern.runs.metaplasticity.protocol import Network, protocol_for
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.runner import run, units
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from flexkern.runs.metaplasticity.unit import Unit, make_learner
from flexkern.streams import TwoDigitItems
from helpers.memory_tiny import TINY
from studies import scale_study
from studies.scale_study import ScaleStudy

SMALL: dict[str, Any] = {
    "serial-position": SerialPosition(longer=6),
    "hebb-repetition": HebbRepetition(passes=3),
    "poisoning": Poisoning(passes=2),
    "learning-frequency": LearningFrequency(),
    "flexibility-distribution": FlexibilityDistribution(),
    "rivals": Rivals(pilot=1, scales=(1e3,), ewc=(1.0, 100.0), si=(1.0,), memory=20),
    "scale-study": ScaleStudy(lengths=(3, 4), scales=(1e2, 1e4)),
}


@pytest.fixture(scope="module")
def items(cache: Path) -> TwoDigitItems:
    return load_items(protocol_for(**TINY), 0, cache, items=9)


# ----------------------------------------------------------------- running


@pytest.mark.usefixtures("few_random_features")
@pytest.mark.parametrize("name", SMALL)
def test_every_experiment_runs_and_judges_the_claims(name: str, tmp_path: Path, cache: Path) -> None:
    results = run(SMALL[name], protocol_for(**TINY), out=tmp_path / name, cache=cache, jobs=1)
    assert json.loads((tmp_path / name / "results.json").read_text()) == results
    assert not (tmp_path / name / "units").exists()
    experiment, protocol, runs = SMALL[name], protocol_for(**TINY), results["runs"]
    todo = units(experiment, protocol, tmp_path, cache)
    wanted = [(u.name, u.seed) for u in todo if experiment.wanted(u.name, u.seed, runs, protocol)]
    assert [(r["network"], r["seed"]) for r in runs] == wanted
    assert len(wanted) == experiment.count(protocol) <= len(todo)
    assert (len(wanted) < len(todo)) == (
        name == "rivals"
    )  # what was not chosen is tried on the pilot seed alone
    for record in results["runs"]:
        for part in record["parts"].values():
            assert len(part["items"]) == len(part["accuracy"]) == len(part["memorised"]) == len(part["losses"])
            assert np.array(part["accuracy"]).min() >= 0
    claims = results["summary"]["claims"]
    assert claims
    assert all(c["verdict"] and all(np.isfinite(check["mean"]) for check in c["checks"]) for c in claims)


def test_a_record_is_what_the_learner_does(tmp_path: Path, cache: Path, items: TwoDigitItems) -> None:
    """The engine adds nothing: the same learner, shown the same items by hand, answers alike."""
    protocol = protocol_for(**TINY)
    results = run(SerialPosition(longer=0), protocol, out=tmp_path, cache=cache, jobs=1)
    (record,) = (r for r in results["runs"] if r["network"] == "hybrid" and r["seed"] == 0)
    stream = load_items(protocol, 0, cache).stream()
    learner = MetaplasticMLP(
        stream.input_shape, 4, widths=(12, 12), lr=protocol.lr, scale="auto", batch_size=20, seed=0
    )
    for item, row, epochs in zip(
        stream, record["parts"]["stream"]["accuracy"], record["parts"]["stream"]["epochs"], strict=True
    ):
        learner.learn(item, epochs=2)
        assert row == [round(a, 4) for a in learner.evaluate(stream).accuracies.tolist()]
        assert len(epochs) == 2
        assert epochs[-1] == row
    assert record["scale"] == float(f"{float(learner.optimizer.scales()[0]):.6g}")


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("experiment", "network"),
    [
        (Poisoning(passes=2), Network()),
        (SerialPosition(longer=6), Network(flexibility="beta 2, 2")),
        (SerialPosition(longer=0), Network("si", options=(("strength", 10.0),))),
        (SerialPosition(longer=0), Network("replay", options=(("memory", 20),))),
    ],
    ids=["branches", "stored flexibility", "si", "replay"],
)
def test_a_stopped_unit_goes_on_to_the_same_record(
    experiment: Any, network: Network, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every presentation in turn, with and without a checkpoint of it."""
    protocol = protocol_for(**TINY)

    def unit(folder: str) -> Unit:
        return Unit(experiment, protocol, "network", network, 0, tmp_path / folder, cache)

    def plain(record: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in record.items() if k != "seconds"}

    whole = plain(unit("whole").run())

    def stop_after(count: int) -> Callable[[float, str], None]:
        def notify(share: float, what: str) -> None:
            nonlocal count
            count -= "/" in what
            if count == 0:
                raise _StoppedError

        return notify

    for every in (
        0.0,
        1e9,
    ):  # seconds between checkpoints: one after each presentation, or at a part's end only
        monkeypatch.setattr("flexkern.runs.metaplasticity.unit._SAVE_EVERY", every)
        stops = 0
        interrupted = unit(f"stopped {every:g}")
        for count in (1, 2, 3, 5, 7, 1000):
            try:
                again = interrupted.run(stop_after(count))
            except _StoppedError:
                stops += 1
            else:
                break
        assert stops >= 2
        assert plain(again) == whole
        assert not list((tmp_path / f"stopped {every:g}").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("experiment", "part"),
    [(HebbRepetition(passes=2), "repetition"), (SerialPosition(longer=6), "stream")],
    ids=["one part", "a part that others begin with"],
)
def test_a_record_ahead_of_its_checkpoint_is_cut_back(
    experiment: Any, part: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the record was written and before the learner was saved, in turn at every presentation."""
    monkeypatch.setattr("flexkern.runs.metaplasticity.unit._SAVE_EVERY", 0.0)
    protocol = protocol_for(**TINY)
    network = Network()
    whole = Unit(experiment, protocol, "network", network, 0, tmp_path / "whole", cache).run()
    save = MetaplasticMLP.save
    shown = len(whole["parts"][part]["items"])
    for stopped_at in range(1, shown + 1):
        unit = Unit(experiment, protocol, "network", network, 0, tmp_path / str(stopped_at), cache)
        saves = 0

        def stop_before(learner: MetaplasticMLP, path: Path, last: int = stopped_at) -> None:
            nonlocal saves
            saves += 1
            if saves == last:
                raise _StoppedError
            save(learner, path)

        with monkeypatch.context() as patch:
            patch.setattr(MetaplasticMLP, "save", stop_before)
            with pytest.raises(_StoppedError):
                unit.run()
        assert len(unit.record()["parts"][part]["items"]) == stopped_at
        assert unit.run() | {"seconds": 0} == whole | {"seconds": 0}


def test_networks_have_the_precision_that_the_protocol_names() -> None:
    low = protocol_for(**TINY, precision="bfloat16")
    for name, method in (("hybrid", "metaplastic"), ("EWC", "ewc"), ("ridge", "ridge")):
        (built,) = {p.dtype for p in make_learner(Network(method), low, (8,), 4, 0).model.parameters()} or {
            None
        }
        assert built in (torch.bfloat16, None), name
    assert low.asdict()["precision"] == "bfloat16"
    assert "precision" not in protocol_for(**TINY).asdict()  # nor in the results of before it could be chosen
    with pytest.raises(ValueError, match=r"precision must be one of .*'half'"):
        protocol_for(**TINY, precision="half")


def test_a_unit_that_was_done_before_counts_as_done(tmp_path: Path, cache: Path) -> None:
    unit = Unit(SerialPosition(longer=0), protocol_for(**TINY), "network", Network(), 0, tmp_path, cache)
    record, said = unit.run(), []
    assert unit.run(lambda share, what: said.append((share, what))) == record
    assert said == [(1.0, "network, seed 0, done before")]


def test_jobs_do_not_change_a_bit(tmp_path: Path, cache: Path) -> None:
    protocol = protocol_for(**TINY)
    said: list[float] = []
    one = run(HebbRepetition(passes=2), protocol, out=tmp_path / "one", cache=cache, jobs=1)
    two = run(
        HebbRepetition(passes=2), protocol, out=tmp_path / "two", cache=cache, jobs=2,
        observe=lambda share, _: said.append(share),
    )  # fmt: skip
    for a, b in zip(one["runs"], two["runs"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert one["summary"] == two["summary"]
    assert said[-1] == pytest.approx(1)
    assert all(0 < share <= 1 + 1e-9 for share in said)


def test_a_finished_folder_is_read_and_more_seeds_are_added(tmp_path: Path, cache: Path) -> None:
    experiment, said = HebbRepetition(passes=2), []

    def go(seeds: tuple[int, ...], **options: Any) -> dict[str, Any]:
        said.clear()
        return run(
            experiment, protocol_for(**TINY | {"seeds": seeds}), out=tmp_path, cache=cache, jobs=1,
            observe=lambda _, what: said.append(what), **options,
        )  # fmt: skip

    two = go((0, 1))
    assert go((0, 1)) == two
    assert not said
    three = go((2,))
    assert three["runs"] != two["runs"]
    assert all("seed 2" in what for what in said)
    assert [r for r in three["runs"] if r["seed"] < 2] == two["runs"]
    assert three == go((0, 1, 2))
    assert not said
    go((0, 1), restart=True)
    assert said


def test_another_run_is_not_overwritten(tmp_path: Path, cache: Path) -> None:
    run(HebbRepetition(passes=2), protocol_for(**TINY), out=tmp_path, cache=cache, jobs=1)
    before = (tmp_path / "results.json").read_bytes()
    for experiment, changes, message in (
        (HebbRepetition(passes=3), {}, "passes was 2, is 3.*, of seeds 0,1"),
        (HebbRepetition(passes=2), {"width": 13}, "width was 12, is 13"),
        (LearningFrequency(), {}, "it is of hebb-repetition"),
    ):
        with pytest.raises(ValueError, match=message):
            run(experiment, protocol_for(**TINY | changes), out=tmp_path, cache=cache, jobs=1)  # type: ignore[arg-type]
    assert (tmp_path / "results.json").read_bytes() == before
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="not of this version"):
        run(HebbRepetition(passes=2), protocol_for(**TINY), out=tmp_path, cache=cache, jobs=1)


# ----------------------------------------------------------------- the command


def _invoke(*arguments: str) -> Any:
    from flexkern.cli.app import app

    return CliRunner().invoke(app, ["run", *arguments], env={"COLUMNS": "200"})


def _invoke_study(*arguments: str) -> Any:
    return CliRunner().invoke(scale_study.application(), arguments, env={"COLUMNS": "200"})


def test_every_experiment_is_a_command_with_its_own_options() -> None:
    for name, kind in EXPERIMENTS.items():
        shown = _invoke(name, "--help")
        assert shown.exit_code == 0, shown.output
        options = [f.name for f in dataclasses.fields(kind)] + ["seeds", "lr", "features", "jobs", "restart"]
        for option in options:
            assert f"--{option.replace('_', '-')}" in shown.output


def test_the_command_runs_shows_and_resumes(tmp_path: Path) -> None:
    tiny = [f"--{k.replace('_', '-')}={v}" for k, v in (TINY | {"seeds": "0-1"}).items()]
    out = tmp_path / "out"
    arguments = (*tiny, "--lengths=3,4", "--scales=100,1e4", f"--out={out}", "--jobs=1")
    first = _invoke_study(*arguments)
    assert first.exit_code == 0, first.output
    assert "3 items, width 12, lr 0.02" in first.output
    assert "one fixed scale" in first.output
    assert (out / "picture.png").stat().st_size > 10_000
    results = json.loads((out / "results.json").read_text())
    assert results["configuration"]["options"]["lengths"] == [3, 4]
    assert results["configuration"]["scale"] == "auto"
    assert list((tmp_path / "features").glob("*.safetensors"))
    assert _invoke_study(*arguments).exit_code == 0
    wrong = _invoke_study(*arguments, "--scale=fast")
    assert wrong.exit_code == 1
    assert "scale must be a number or 'auto', got 'fast'" in wrong.output
    wrong = _invoke_study(*arguments[:-4], "--lengths=a,b", f"--out={out}")
    assert "lengths must be numbers with commas between them" in wrong.output


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_the_command_goes_on(tmp_path: Path) -> None:
    tiny = TINY | {"seeds": "0,1", "train_per_item": 150, "batch_size": 20, "epochs": 2}
    command = [sys.executable, "-m", "flexkern", "run", "hebb-repetition", "--passes=3", "--jobs=2"]
    command += [f"--{k.replace('_', '-')}={v}" for k, v in tiny.items()]
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [*command, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((out / "units").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the command and its workers
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"the same command goes on where it was" in said
    done = len(list((out / "units").glob("*.json")))
    assert 0 < done < 6
    results = {}
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, f"--out={folder}"], check=True, capture_output=True)
        results[folder] = json.loads((folder / "results.json").read_text())
    stopped, whole = results.values()
    for a, b in zip(stopped["runs"], whole["runs"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
