"""``flexkern run EXPERIMENT --dry-run``: what would be done, and nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flexkern.cli.app import app
from flexkern.runs import pace
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.learning_frequency import LearningFrequency
from flexkern.runs.metaplasticity.plan import plan
from flexkern.runs.metaplasticity.protocol import Protocol, protocol_for
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.runner import run
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from helpers.memory_tiny import TINY


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LEAST", 0.05)


def tiny(**changes: Any) -> Protocol:
    return protocol_for(**(TINY | changes))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("experiment", "presentations"),
    [
        (HebbRepetition(passes=3), 2 * 3 * 4),  # two seeds of each network
        (SerialPosition(longer=6), 2 * 6),
        (LearningFrequency(), 2 * (1 + 2 + 3 + 4)),
    ],
)
def test_a_plan_counts_measures_and_writes_nothing(experiment: Any, presentations: int, tmp_path: Path) -> None:
    found = plan(experiment, tiny(), out=tmp_path / "out", jobs=2)
    assert not list(tmp_path.iterdir())
    assert [n.name for n in found.networks] == ["conventional", "hybrid", "stable"]
    for network in found.networks:
        assert (network.times, network.presentations) == (2, presentations)
        assert network.seconds is not None
        assert network.seconds > 0
        weights = found.width * 12 + 12 * 12 + 12 * 4 + 12 + 12 + 4
        assert network.mib == pytest.approx(4 * weights / 2**20, rel=0.01)
    items = experiment.items(tiny())
    assert found.inputs == 2 * items * (30 + 20)
    assert found.features_seconds > 0
    of_all = found.features_seconds + sum(n.seconds or 0 for n in found.networks)
    assert found.seconds >= of_all / 2


def test_what_the_folder_has_is_not_planned_again(tmp_path: Path, cache: Path) -> None:
    experiment, out = HebbRepetition(passes=2), tmp_path / "out"
    run(experiment, tiny(seeds=(0,)), out=out, cache=cache, jobs=1)
    before = files(tmp_path)
    again = plan(experiment, tiny(seeds=(0,)), out=out, cache=cache)
    assert (again.networks, again.added, again.seconds) == ([], (), 0)
    more = plan(experiment, tiny(seeds=(0, 3)), out=out, cache=cache)
    assert more.added == (3,)
    assert [n.times for n in more.networks] == [1, 1, 1]
    anew = plan(experiment, tiny(seeds=(0,)), out=out, cache=cache, restart=True)
    assert [n.times for n in anew.networks] == [1, 1, 1]
    assert anew.features_seconds == 0  # they are in the cache
    with pytest.raises(ValueError, match=r"passes was 2, is 3.*--restart"):
        plan(HebbRepetition(passes=3), tiny(seeds=(0,)), out=out, cache=cache)
    assert files(tmp_path) == before


def test_a_network_that_was_stopped_has_less_left(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexkern.runs.metaplasticity.unit._SAVE_EVERY", 0.0)

    class StopError(Exception):
        pass

    def stop(share: float, _: str) -> None:
        if share > 0.5 / 3:
            raise StopError

    experiment, out = HebbRepetition(passes=4), tmp_path / "out"
    whole = plan(experiment, tiny(seeds=(0,)), out=out, cache=cache).networks
    with pytest.raises(StopError):
        run(experiment, tiny(seeds=(0,)), out=out, cache=cache, jobs=1, observe=stop)
    left = plan(experiment, tiny(seeds=(0,)), out=out, cache=cache).networks
    assert 0 < left[0].presentations < whole[0].presentations
    assert left[1].presentations == whole[1].presentations == 16


@pytest.mark.usefixtures("few_random_features")
def test_what_is_chosen_later_is_counted(tmp_path: Path) -> None:
    experiment = Rivals(pilot=1, scales=(1e3, 1e4), ewc=(1.0, 100.0), si=(1.0,), memory=20)
    found = plan(experiment, tiny(), out=tmp_path / "out")
    assert sum(n.times for n in found.networks) + found.later == experiment.count(tiny())
    assert found.later == 4  # of the second seed: hybrid, all alike, EWC, SI
    assert found.later_seconds > 0
    assert {n.times for n in found.networks if "tuned" in n.name} == {1}


def test_joint_training_takes_longer_by_what_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexkern.runs.metaplasticity import plan as module

    monkeypatch.setattr(module, "pace", lambda *_: pace.Pace(epoch=1.0))
    experiment = Rivals(pilot=1, scales=(1e3,), ewc=(1.0,), si=(1.0,), memory=20)
    found = {n.name: n.seconds for n in plan(experiment, tiny(), out=tmp_path / "out").networks}
    joint, plain = found["joint"], found["plain SGD"]
    assert joint is not None
    assert plain is not None
    assert joint / plain == pytest.approx((1 + 2 + 3 + 4) / 4)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_has_it(name: str) -> None:
    shown = CliRunner().invoke(app, ["run", name, "--help"], env={"COLUMNS": "200"})
    assert "--dry-run" in shown.output


def test_the_command(tmp_path: Path) -> None:
    given = [f"--{k.replace('_', '-')}={v}" for k, v in (TINY | {"seeds": "0-1"}).items()]
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["run", "hebb-repetition", *given, "--passes=2", f"--out={out}", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in (
        "seeds 0,1, on cpu",
        "6 networks to train",
        "features: of 400 images",
        "conventional 2 16 ",
        "an estimate: ",
        "nothing was written",
    ):
        assert part in text
    assert not list(tmp_path.iterdir())
    wrong = CliRunner().invoke(app, ["run", "hebb-repetition", "--lr=-1", f"--out={out}", "--dry-run"])
    assert wrong.exit_code == 1
    assert not list(tmp_path.iterdir())
