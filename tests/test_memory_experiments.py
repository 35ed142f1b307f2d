"""The metaplasticity paper's experiments: what is shown in which order, exact resuming, and the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flexkern import ops
from flexkern.experiments.memory.figures import EXPERIMENTS
from flexkern.experiments.memory.flexibility import DISTRIBUTIONS, flexibility
from flexkern.experiments.memory.flexibility_distribution import FlexibilityDistribution
from flexkern.experiments.memory.hebb_repetition import HebbRepetition
from flexkern.experiments.memory.learning_frequency import LearningFrequency, order
from flexkern.experiments.memory.poisoning import CLEAN, DERANGED, Poisoning
from flexkern.experiments.memory.protocol import Network, Protocol, protocol_for
from flexkern.experiments.memory.rivals import Rivals
from flexkern.experiments.memory.runner import run, units
from flexkern.experiments.memory.scale_study import ScaleStudy
from flexkern.experiments.memory.serial_position import SerialPosition
from flexkern.experiments.memory.sources import load_items
from flexkern.experiments.memory.statistics import spearman
from flexkern.experiments.memory.unit import Unit
from flexkern.learners import MetaplasticMLP
from flexkern.streams import TwoDigitItems

TINY: dict[str, Any] = {
    "items": 4, "train_per_item": 30, "test_per_item": 20, "epochs": 2, "batch_size": 20, "width": 12,
    "seeds": 2,
}  # fmt: skip
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
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def items(cache: Path) -> TwoDigitItems:
    return load_items(protocol_for(**TINY), 0, cache, items=9)


# ----------------------------------------------------------------- the protocol


def test_defaults_are_the_releases_where_features_are(tmp_path: Path) -> None:
    weights = tmp_path / "squeezenet.npz"
    weights.touch()
    release = protocol_for(features=str(weights))
    assert (release.train_per_item, release.test_per_item, release.epochs) == (2000, 1000, 5)
    assert (release.batch_size, release.lr, release.scale, release.width) == (1024, 1e-4, 4e5, 4096)
    assert protocol_for(features=str(weights), items=30).scale == 2e5
    assert protocol_for(features=str(weights), scale=1.0).scale == 1.0
    ours = protocol_for(lr=None)
    assert (ours.train_per_item, ours.batch_size, ours.scale) == (2000, 1024, "auto")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"items": 2}, r"items must be in \[3, 45\], got 2"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number > 0"),
        ({"scale": -1.0}, "scale must be a number > 0 or 'auto', got -1.0"),
        ({"data": "nowhere.npz"}, "data must be 'digits' or the path of an archive; there is no 'nowhere.npz'"),
        ({"first_seed": -1}, "first_seed must not be negative"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol_for(**given)


def test_features_are_computed_once(cache: Path, items: TwoDigitItems, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("flexkern.experiments.memory.sources.extract_from", never)
    again = load_items(protocol_for(**TINY), 0, cache, items=9)
    assert all(torch.equal(a, b) for a, b in zip(again.train, items.train, strict=True))
    with pytest.raises(AssertionError, match="computed again"):
        load_items(protocol_for(**TINY), 1, cache, items=9)


# ----------------------------------------------------------------- schedules


def _shown(part: Any) -> list[tuple[int, int]]:
    return [(s.item, s.turn) for s in part.shown]


def test_the_longer_stream_goes_on_where_the_expected_one_ended(items: TwoDigitItems) -> None:
    protocol = protocol_for(**TINY)
    first, then = SerialPosition(longer=6).schedule(items.head(6), protocol, 0)
    assert _shown(first) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert _shown(then) == [(4, 0), (5, 0)]
    assert (first.tested, then.tested, first.by_epoch, then.by_epoch) == (4, 6, True, False)
    # Until it turns out longer, nothing is known of the later items.
    assert set(first.shown[0].experience().train_labels.tolist()) == {0, 1, 2, 3}
    assert set(then.shown[0].experience().train_labels.tolist()) == {0, 1, 2, 3, 4, 5}
    assert len(SerialPosition(longer=0).schedule(items, protocol, 0)) == 1


def test_hebb_repetition_repeats_one_order(items: TwoDigitItems) -> None:
    (part,) = HebbRepetition(passes=3).schedule(items.head(4), protocol_for(**TINY), 0)
    assert _shown(part) == [(i, turn) for turn in range(3) for i in range(4)]


def test_poisoning_attacks_after_clean_passes(items: TwoDigitItems) -> None:
    protocol = protocol_for(**TINY)
    clean_passes, *attacks = Poisoning(passes=2, rate=0.5, noise=1.0).schedule(items, protocol, 0)
    assert _shown(clean_passes) == [(i, turn) for turn in range(2) for i in range(4)]
    by_name = {part.name: [s.experience() for s in part.shown] for part in attacks}
    assert all(_shown(part) == [(i, 2) for i in range(4)] for part in attacks)
    own = slice(0, 30)  # an item's own images come first
    for i, clean in enumerate(by_name[CLEAN]):
        as_learned = clean_passes.shown[i].experience()
        assert torch.equal(clean.train_inputs, as_learned.train_inputs)
        assert torch.equal(clean.train_labels, as_learned.train_labels)
        (label,) = by_name[DERANGED][i].train_labels[own].unique().tolist()
        assert label != i
        flipped = by_name["50% flipped labels"][i].train_labels[own]
        assert int((flipped != i).sum()) == 15
        foreign = by_name["50% foreign images"][i].train_inputs[own]
        assert int((foreign != clean.train_inputs[own]).any(1).sum()) == 15
        outside = torch.cat(items.train[4:])
        changed = foreign[(foreign != clean.train_inputs[own]).any(1)]
        assert all((outside == row).all(1).any() for row in changed)
        noisy = by_name["noise of 1 spread"][i]
        assert torch.equal(noisy.train_labels, clean.train_labels)
        assert not torch.equal(noisy.train_inputs[own], clean.train_inputs[own])
        for part in by_name.values():
            assert torch.equal(part[i].test_labels, clean.test_labels)


@pytest.mark.parametrize("seed", range(5))
def test_frequency_says_nothing_of_when_an_item_is_seen_last(seed: int) -> None:
    shown = order(10, seed)
    assert len(shown) == 55
    often = np.bincount(shown)
    assert sorted(often) == list(range(1, 11))
    last = [max(p for p, item in enumerate(shown) if item == i) for i in range(10)]
    assert abs(spearman(often, last)) <= 0.1
    assert shown == order(10, seed)
    assert shown != order(10, seed + 1)


def test_distributions_are_what_they_are_called() -> None:
    sizes = (40, 30, 20, 5)
    low = flexibility(DISTRIBUTIONS["uniform 0 to 0.5"], sizes, 3)
    beta = flexibility(DISTRIBUTIONS["beta 2, 2"], sizes, 3)
    drawn = ops.materialize(low, (100, 100))
    assert 0 < float(drawn.min()) < 0.01
    assert 0.49 < float(drawn.max()) < 0.5
    assert [v if isinstance(v, float) else tuple(v.shape) for v in beta] == [
        (30, 40), 1.0, (20, 30), 1.0, (5, 20), 1.0,
    ]  # fmt: skip
    draws = torch.cat([v.flatten() for v in beta if not isinstance(v, float)])
    # 1,900 draws with standard deviation sqrt(1/20): their mean has 0.0051, and 5 of these are allowed.
    assert abs(float(draws.mean()) - 0.5) < 0.026
    assert abs(float(draws.var()) - 0.05) < 0.01
    for value in DISTRIBUTIONS.values():
        MetaplasticMLP((40,), 5, widths=(30, 20), network=flexibility(value, sizes, 3))


# ----------------------------------------------------------------- running


@pytest.mark.parametrize("name", SMALL)
def test_every_experiment_runs_and_judges_the_claims(name: str, tmp_path: Path, cache: Path) -> None:
    results = run(SMALL[name], protocol_for(**TINY), out=tmp_path / name, cache=cache, jobs=1)
    assert json.loads((tmp_path / name / "results.json").read_text()) == results
    assert not (tmp_path / name / "units").exists()
    todo = units(SMALL[name], protocol_for(**TINY), tmp_path, cache)
    assert [(r["network"], r["seed"]) for r in results["runs"]] == [(u.name, u.seed) for u in todo]
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

    torch.set_num_threads(1)
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
        monkeypatch.setattr("flexkern.experiments.memory.unit._SAVE_EVERY", every)
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

    def go(seeds: int, **options: Any) -> dict[str, Any]:
        said.clear()
        return run(
            experiment, protocol_for(**TINY | {"seeds": seeds}), out=tmp_path, cache=cache, jobs=1,
            observe=lambda _, what: said.append(what), **options,
        )  # fmt: skip

    two = go(2)
    assert go(2) == two
    assert not said
    three = go(3)
    assert three["runs"] != two["runs"]
    assert all("seed 2" in what for what in said)
    assert [r for r in three["runs"] if r["seed"] < 2] == two["runs"]
    go(2, restart=True)
    assert said


def test_another_run_is_not_overwritten(tmp_path: Path, cache: Path) -> None:
    run(HebbRepetition(passes=2), protocol_for(**TINY), out=tmp_path, cache=cache, jobs=1)
    before = (tmp_path / "results.json").read_bytes()
    for experiment, changes, message in (
        (HebbRepetition(passes=3), {}, r"options was .*'passes': 2.*is .*3"),
        (HebbRepetition(passes=2), {"width": 13}, "width was 12, is 13"),
        (LearningFrequency(), {}, "it is of hebb-repetition"),
    ):
        with pytest.raises(ValueError, match=message):
            run(experiment, protocol_for(**TINY | changes), out=tmp_path, cache=cache, jobs=1)  # type: ignore[arg-type]
    assert (tmp_path / "results.json").read_bytes() == before
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="not of this version"):
        run(HebbRepetition(passes=2), protocol_for(**TINY), out=tmp_path, cache=cache, jobs=1)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="passes must be at least 2, got 1"):
        HebbRepetition(passes=1)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got 0"):
        Poisoning(rate=0)
    with pytest.raises(ValueError, match="items must be at most 40"):
        Poisoning().items(protocol_for(items=41))
    with pytest.raises(ValueError, match="seeds must be at least 3"):
        Rivals(pilot=2).items(protocol_for(seeds=2))


# ----------------------------------------------------------------- the command


def _invoke(*arguments: str) -> Any:
    from flexkern.cli import app

    return CliRunner().invoke(app, ["run", *arguments], env={"COLUMNS": "200"})


def test_every_experiment_is_a_command_with_its_own_options() -> None:
    for name, kind in EXPERIMENTS.items():
        shown = _invoke(name, "--help")
        assert shown.exit_code == 0, shown.output
        options = [f.name for f in dataclasses.fields(kind)] + ["seeds", "lr", "features", "jobs", "restart"]
        for option in options:
            assert f"--{option.replace('_', '-')}" in shown.output


def test_the_command_runs_shows_and_resumes(tmp_path: Path) -> None:
    tiny = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    out = tmp_path / "out"
    arguments = ("scale-study", *tiny, "--lengths=3,4", "--scales=100,1e4", f"--out={out}", "--jobs=1")
    first = _invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "3 items, width 12, lr 0.02" in first.output
    assert "one fixed scale" in first.output
    assert (out / "picture.png").stat().st_size > 10_000
    results = json.loads((out / "results.json").read_text())
    assert results["configuration"]["options"]["lengths"] == [3, 4]
    assert results["configuration"]["scale"] == "auto"
    assert list((tmp_path / "features").glob("*.safetensors"))
    assert _invoke(*arguments).exit_code == 0
    wrong = _invoke(*arguments, "--scale=fast")
    assert wrong.exit_code == 1
    assert "scale must be a number or 'auto', got 'fast'" in wrong.output
    wrong = _invoke(*arguments[:-4], "--lengths=a,b", f"--out={out}")
    assert "lengths must be numbers with commas between them" in wrong.output


def test_other_networks_change_the_protocol() -> None:
    study = ScaleStudy(lengths=(3, 4), scales=(10.0,), widths=(0.5,), lrs=(0.1,))
    protocol = Protocol(**TINY, lr=0.02, scale="auto")
    networks: dict[str, Network] = dict(study.networks(protocol))
    changed: Sequence[Protocol] = [n.protocol(protocol) for n in networks.values()]
    assert len(changed) == 2 * 3 * 2
    assert {(p.items, p.width, round(p.lr, 6), p.scale) for p in changed} == {
        (items, width, lr, scale)
        for items in (3, 4)
        for width, lr in ((12, 0.02), (6, 0.02), (12, 0.002))
        for scale in (10.0, "auto")
    }
