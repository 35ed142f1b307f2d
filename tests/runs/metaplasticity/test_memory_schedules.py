"""What the metaplasticity experiments show, in which order, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern import ops
from flexkern.features import FeatureCache
from flexkern.learners import MetaplasticMLP
from flexkern.runs.metaplasticity.flexibility import DISTRIBUTIONS, flexibility
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.items import load_items
from flexkern.runs.metaplasticity.learning_frequency import order
from flexkern.runs.metaplasticity.poisoning import CLEAN, DERANGED, Poisoning
from flexkern.runs.metaplasticity.protocol import Network, Protocol, protocol_for
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from flexkern.runs.statistics import spearman
from flexkern.streams import TwoDigitItems
from helpers.memory_tiny import TINY
from studies.scale_study import ScaleStudy


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
        ({"seeds": (-1,)}, "seeds must be at least 0"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol_for(**given)


def test_features_are_computed_once(cache: Path, items: TwoDigitItems, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(FeatureCache, "put", never)
    again = load_items(protocol_for(**TINY), 0, cache, items=9)
    assert all(torch.equal(a, b) for a, b in zip(again.train, items.train, strict=True))
    with pytest.raises(AssertionError, match="computed again"):
        load_items(protocol_for(**TINY), 77, cache, items=9)


# ----------------------------------------------------------------- schedules


def _shown(part: Any) -> list[tuple[int, int]]:
    return [(s.item, s.repetition) for s in part.shown]


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


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="passes must be at least 2, got 1"):
        HebbRepetition(passes=1)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got 0"):
        Poisoning(rate=0)
    with pytest.raises(ValueError, match="items must be at most 40"):
        Poisoning().items(protocol_for(items=41))
    with pytest.raises(ValueError, match="seeds must be at least 3"):
        Rivals(pilot=2).items(protocol_for(seeds=(0, 1)))


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
