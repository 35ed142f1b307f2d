"""The protocol of the authors' code, where the experiments' own is another one: ``--as-released``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.items import load_items
from flexkern.runs.metaplasticity.learning_frequency import FIRST, SECOND, LearningFrequency
from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.runner import check, check_same, run
from flexkern.runs.metaplasticity.serial_position import THREE, SerialPosition
from flexkern.runs.metaplasticity.split_cifar100 import SplitCIFAR100
from flexkern.runs.metaplasticity.tables import rows, setting
from flexkern.runs.metaplasticity.unit import Unit
from flexkern.runs.statistics import spearman
from helpers.memory_tiny import TINY
from studies import metaplasticity_page as page

RELEASED: dict[str, Any] = TINY | {"as_released": True, "seeds": (0,)}


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    """Four items, and six by new networks."""
    out = tmp_path_factory.mktemp("longer")
    return run(SerialPosition(longer=6), protocol_for(**RELEASED, scale=400.0), out=out, cache=cache, jobs=1)


def test_the_setting_is_written_down_only_where_it_holds() -> None:
    """So that configurations of before it was there, and their folders, stay what they were."""
    assert "as_released" not in protocol_for(**TINY).asdict()
    assert protocol_for(**RELEASED).asdict()["as_released"] is True


def test_items_are_put_together_as_released(cache: Path) -> None:
    ours, released = (load_items(protocol_for(**p), 0, cache, items=5) for p in (TINY, RELEASED))
    assert (ours.as_released, released.as_released) == (False, True)
    assert ours.names == released.names
    assert torch.equal(ours.experience(1).train_labels, ours.experience(1, turn=1).train_labels)
    first, again = (released.experience(1, turn).train_labels for turn in (0, 1))
    assert not torch.equal(first, again)


def test_a_repeated_item_is_dealt_out_anew(cache: Path) -> None:
    protocol = protocol_for(**RELEASED)
    items = load_items(protocol, 0, cache)
    (part,) = HebbRepetition(passes=2).schedule(items, protocol, 0)
    first, again = part.shown[0].experience(), part.shown[4].experience()
    assert (part.shown[0].item, part.shown[4].item) == (0, 0)
    assert not torch.equal(first.train_inputs, again.train_inputs)


# ----------------------------------------------------------------- serial position


def test_the_longer_stream_is_a_new_network_s_at_half_the_scale(
    longer: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    runs = {r["network"]: r for r in longer["runs"]}
    assert list(runs) == [*THREE, *(f"{name}, 6 items" for name in THREE)]
    alone = protocol_for(**RELEASED | {"items": 6}, scale=200.0)
    expected = Unit(SerialPosition(longer=0), alone, "hybrid", THREE["hybrid"], 0, tmp_path, cache).run()
    same = ("items", "accuracy", "memorised", "losses")
    assert [runs["hybrid, 6 items"]["parts"]["stream"][k] for k in same] == [
        expected["parts"]["stream"][k] for k in same
    ]
    assert [runs[name]["scale"] for name in ("hybrid", "hybrid, 6 items")] == [400.0, 200.0]


def test_what_is_said_of_both_lengths(longer: dict[str, Any]) -> None:
    summary = longer["summary"]
    assert list(summary["measures"]) == list(summary["longer"]) == list(THREE)
    (hybrid,) = (r for r in longer["runs"] if r["network"] == "hybrid, 6 items")
    final = np.mean(hybrid["parts"]["stream"]["accuracy"][-1])
    assert summary["longer"]["hybrid"]["average_memory"]["mean"][-1] == pytest.approx(final, abs=1e-4)
    assert "A new hybrid network goes on learning over 6 items." in [c["claim"] for c in summary["claims"]]
    assert page.summary(longer) == summary
    assert len(rows(longer)[0]) == 8
    assert "put together as the release does it" in setting(longer)
    assert "--as-released --longer 6 --out" in page._command("x", longer)


def test_the_picture_says_that_the_networks_are_new(longer: dict[str, Any]) -> None:
    pictures = pytest.importorskip("flexkern.runs.metaplasticity.pictures")
    titles = " ".join(a.get_title(loc="left") or a.get_title() for a in pictures.figure(longer).axes)
    assert "New networks after the last of 6" in titles


def test_an_automatic_scale_stays_automatic() -> None:
    protocol = protocol_for(**RELEASED)
    changed = [n.protocol(protocol) for n in SerialPosition(longer=6).networks(protocol).values()]
    assert [(p.items, p.scale) for p in changed] == [(4, "auto")] * 3 + [(6, "auto")] * 3
    assert SerialPosition(longer=4).networks(protocol) == THREE


# ----------------------------------------------------------------- learning frequency


def test_a_second_profile_goes_on_with_the_trained_network(tmp_path: Path, cache: Path) -> None:
    protocol, experiment = protocol_for(**RELEASED), LearningFrequency()
    items = experiment.load(protocol, 0, cache, lambda _: None)
    assert (len(items), experiment.classes(protocol)) == (8, 4)
    first, second = experiment.schedule(items, protocol, 0)
    assert (first.name, second.name, first.tested, second.tested) == (FIRST, SECOND, 4, 4)
    assert second.items is not None
    assert [s.item for s in first.shown] != [s.item for s in second.shown]
    for part in (first, second):
        often = np.bincount([s.item for s in part.shown])
        last = [max(p for p, s in enumerate(part.shown) if s.item == i) for i in range(4)]
        assert sorted(often) == [1, 2, 3, 4]
        assert abs(spearman(often, last)) <= 0.1
        # Four outputs, whichever items there are.
        assert {int(y) for s in part.shown for y in s.experience().train_labels} == {0, 1, 2, 3}
    assert second.items.names != items.names[:4]

    results = run(experiment, protocol, out=tmp_path, cache=cache, jobs=1)
    record = results["runs"][0]
    assert [len(record["parts"][name]["items"]) for name in (FIRST, SECOND)] == [10, 10]
    # Each is tested on its own items, and those of the first are none that the second has shown.
    assert all(len(row) == 4 for row in record["parts"][SECOND]["accuracy"])
    assert set(record["parts"][SECOND]["memorised"][0]) <= {record["parts"][SECOND]["items"][0]}
    # The first part is what it is without the second; and the second begins with the network as that left it.
    learner = Unit(experiment, protocol, "hybrid", THREE["hybrid"], 0, tmp_path / "by hand", cache)._learner(
        first, None, items.test(0).input_shape
    )
    for part in (first, second):
        for k, shown in enumerate(part.shown):
            learner.learn(shown.experience(), epochs=protocol.epochs)
            tested = [(part.items or items).test(i) for i in range(4)]
            row = [round(float(a), 4) for a in learner.evaluate(tested).accuracies]
            (hybrid,) = (r for r in results["runs"] if (r["network"], r["seed"]) == ("hybrid", 0))
            assert hybrid["parts"][part.name]["accuracy"][k] == row
    assert list(results["summary"]["second"]) == list(THREE)
    assert len({claim["claim"] for claim in results["summary"]["claims"]}) == 4
    assert [line[0] for line in rows(results)[1]][3:] == [f"{name}, second profile" for name in THREE]
    assert page.summary(results) == results["summary"]


def test_items_of_the_second_profile_are_drawn_from_all_classes() -> None:
    from flexkern.runs.metaplasticity.learning_frequency import _drawn_anew

    again = []
    for seed in range(200):
        drawn = _drawn_anew(10, seed)
        assert len(set(drawn)) == 10
        assert set(drawn) <= set(range(20))
        again.append(sum(place < 10 for place in drawn))
    assert _drawn_anew(10, 3) == _drawn_anew(10, 3)
    # Ten of 45, ten of which are known: 2.2 on average, hypergeometric, variance 1.37; five standard errors.
    assert abs(np.mean(again) - 100 / 45) < 5 * (1.37 / 200) ** 0.5


# ----------------------------------------------------------------- refusals and folders


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items must be at most 22 with as_released, which has a second set"):
        check(LearningFrequency(), protocol_for(items=23, as_released=True))
    with pytest.raises(ValueError, match=r"longer must be in \[0, 45\], got 46"):
        SerialPosition(longer=46)
    with pytest.raises(ValueError, match="as_released: the release has no such stream"):
        SplitCIFAR100().check(protocol_for(as_released=True))


def test_a_folder_is_of_one_of_the_two_ways() -> None:
    ours, released = (
        {"options": {}, **protocol_for(**p).asdict()} for p in (TINY, RELEASED | {"seeds": (0, 1)})
    )
    for first, second, message in (
        (ours, released, "as_released was null, is true"),
        (released, ours, "as_released was true, is null"),
    ):
        known = {"experiment": "serial-position", "configuration": first}
        check_same(known, "serial-position", first, Path("out"))
        with pytest.raises(ValueError, match=message):
            check_same(known, "serial-position", second, Path("out"))


def test_the_command_has_the_flag(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flexkern.cli.app import app

    options = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items() if k != "seeds"]
    out = tmp_path / "out"
    given = ["run", "serial-position", "--as-released", "--longer=0", *options, "--seeds=0", "--jobs=1"]
    done = CliRunner().invoke(
        app, [*given, f"--out={out}", f"--cache={tmp_path / 'f'}"], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert json.loads((out / "results.json").read_text())["configuration"]["as_released"] is True
