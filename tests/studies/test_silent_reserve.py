"""The study of silent reserves: what it compares, its statistics, and that the published page is its JSON's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
stats = pytest.importorskip("scipy.stats")

from flexkern.runs.statistics import paired  # noqa: E402
from studies import silent_reserve  # noqa: E402 - after the checks that it can be imported
from studies.reserve_settings import CONTROL, METHODS, NONE, StudyConfig, condition  # noqa: E402
from studies.reserve_tables import BY_HAND, page, write  # noqa: E402
from studies.silent_reserve import measures, run, summarise  # noqa: E402

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "silent_reserve"
TINY = StudyConfig(
    seeds=2, pilot_seeds=1, shares=(0.5,), targets=(0.01,), items=4, epochs=1, train_per_item=100,
    test_per_item=20, width=16, channels=4, grid=4, lr=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return run(TINY)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads((PUBLISHED / "results.json").read_text())


def test_all_networks_learn_the_same_streams(tiny: dict[str, Any]) -> None:
    methods = [NONE, CONTROL, *METHODS]
    assert [(r["seed"], r["method"]) for r in tiny["runs"]] == [(s, m) for s in (0, 1) for m in methods]
    for r in tiny["runs"]:
        functional = np.array(r["functional"])
        assert functional.shape == (5, 2)
        if r["method"] == NONE:
            assert (functional == 1).all()
        elif r["method"] == CONTROL:
            assert (functional == functional[0]).all()
            assert r["conversions"] == [0, 0, 0, 0]
        else:
            assert (functional[-1] > functional[0]).all()
            assert sum(r["conversions"]) > 0
    begin = {(r["seed"], r["method"]): r["functional"][0] for r in tiny["runs"]}
    # A reserve and its control have the same synapses silent.
    assert all(begin[s, m] == begin[s, CONTROL] for s in (0, 1) for m in METHODS)


def test_one_seed_gives_the_same_results(tiny: dict[str, Any]) -> None:
    lines: list[str] = []
    again = run(dataclasses.replace(TINY, first_seed=1), lines.append)
    of_seed_1 = [[r for r in results["runs"] if r["seed"] == 1] for results in (tiny, again)]
    assert of_seed_1[0] == of_seed_1[1]
    assert again["pilot"] == tiny["pilot"]
    assert len(lines) == 3 + 1 + 2 * 5  # the pilot's networks, what it chose, the study's networks


def test_the_page_and_files(tiny: dict[str, Any], tmp_path: Path) -> None:
    data, text, picture = write(tiny, tmp_path / "new")
    assert json.loads(data.read_text()) == json.loads(json.dumps(tiny))
    assert text.read_text() == page(tiny) + BY_HAND + "\n"
    text.write_text("something else" + BY_HAND + "\nIn my words.\n")
    write(tiny, tmp_path / "new")
    assert text.read_text() == page(tiny) + BY_HAND + "\nIn my words.\n"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StudyConfig] = []

    def study(config: StudyConfig, progress: Any) -> dict[str, Any]:
        asked.append(config)
        return run(TINY, progress)

    monkeypatch.setattr(silent_reserve, "run", study)
    silent_reserve.main(["--seeds", "9", "--lr", "0.1", "--out", str(tmp_path)])
    assert asked == [StudyConfig(seeds=9, lr=0.1)]
    assert f"wrote {tmp_path / 'README.md'}" in capsys.readouterr().out


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        StudyConfig(seeds=1)
    with pytest.raises(ValueError, match=r"pilot's seeds .* must not be among the reported ones"):
        StudyConfig(first_pilot_seed=6)


def test_the_pilot_does_not_choose_a_reserve_that_is_hardly_used() -> None:
    def pilot(*of: tuple[float, float, float]) -> list[dict[str, Any]]:
        return [
            {"method": m, "target": target, "last": last, "converted": converted}
            for m in METHODS
            for target, last, converted in of
        ]

    used = pilot((1e-4, 0.9, 0.01), (1e-3, 0.7, 0.2), (1e-2, 0.6, 0.5))
    assert silent_reserve._choose(used) == dict.fromkeys(METHODS, 1e-3)
    unused = pilot((1e-4, 0.9, 0.01), (1e-3, 0.7, 0.02))
    assert silent_reserve._choose(unused) == dict.fromkeys(METHODS, 1e-3)


# ----------------------------------------------------------------- statistics


def test_measures_of_a_matrix() -> None:
    matrix = [[0.9, 0.0, 0.1, 0.0, 0.0], [0.8, 0.7, 0, 0, 0], [0.6, 0.5, 1.0, 0, 0], [0.5, 0.4, 0.9, 0.6, 0],
              [0.4, 0.2, 0.9, 0.6, 0.5]]  # fmt: skip
    expected = {
        "early": 0.3,  # items 1 and 2 of the last row
        "late": 2.0 / 3,
        "last": 0.52,
        "learned": 0.74,  # the diagonal
        "learned_late": 0.7,
    }
    assert measures({"accuracy": matrix}) == pytest.approx(expected, rel=1e-12)


def test_paired_differences_are_a_t_test() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    ours, test = paired(a - b), stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    # Rounded to four decimals.
    assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high), abs=5.1e-5)
    assert (ours["mean"], ours["std"]) == pytest.approx(((a - b).mean(), (a - b).std(ddof=1)), abs=5.1e-5)


# ----------------------------------------------------------------- what is published


def test_the_published_page_is_its_jsons(published: dict[str, Any]) -> None:
    generated, _, by_hand = (PUBLISHED / "README.md").read_text().partition(BY_HAND)
    assert generated == page(published)
    # The last words are ours; numbers of results belong into the generated part.
    assert not any(c.isdigit() for c in by_hand)
    assert (PUBLISHED / "picture.png").stat().st_size > 10_000


def test_the_published_summary_is_of_its_runs(published: dict[str, Any]) -> None:
    assert published["summary"] == summarise(published["runs"])
    c = published["configuration"]
    assert c == json.loads(json.dumps(dataclasses.asdict(StudyConfig())))
    assert c["seeds"] >= 8
    # Once more by hand, for one condition and measure.
    by_seed: dict[str, list[float]] = {}
    for r in published["runs"]:
        half = np.array(r["accuracy"])[-1, c["items"] // 2 :].mean()
        by_seed.setdefault(condition(r["method"], r["share"]), []).append(half)
    assert all(len(values) == c["seeds"] for values in by_seed.values())
    method = list(METHODS)[1]
    none, control, reserve = (np.array(by_seed[condition(m, 0.5)]) for m in (NONE, CONTROL, method))
    entry = published["summary"][condition(method, 0.5)]
    assert entry["late"]["mean"] == pytest.approx(reserve.mean(), abs=5.1e-5)
    assert entry["to_none"]["late"]["mean"] == pytest.approx((reserve - none).mean(), abs=5.1e-5)
    assert entry["to_control"]["late"]["mean"] == pytest.approx((reserve - control).mean(), abs=5.1e-5)


def test_the_published_targets_are_the_pilots(published: dict[str, Any]) -> None:
    assert silent_reserve._choose(published["pilot"]) == published["chosen_targets"]
    reported = {r["seed"] for r in published["runs"]}
    c = published["configuration"]
    assert not reported & set(range(c["first_pilot_seed"], c["first_pilot_seed"] + c["pilot_seeds"]))
