"""Statistics and claims of the metaplasticity experiments, and the page that is filled from results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flexkern.runs.metaplasticity import tables as report
from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.learning_frequency import LearningFrequency
from flexkern.runs.metaplasticity.poisoning import CLEAN, DERANGED, Poisoning
from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.serial_position import SerialPosition, memory_measures
from flexkern.runs.statistics import paired
from studies import metaplasticity_page as page

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "results" / "metaplasticity.md"


# ----------------------------------------------------------------- statistics


def test_a_check_is_a_t_interval_and_wilcoxons_test() -> None:
    rng = np.random.default_rng(0)
    v = rng.normal(0.3, 0.2, 8)
    found = check("x", v)
    interval = stats.ttest_1samp(v, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == (round(interval.low, 4), round(interval.high, 4))
    assert found["p"] == pytest.approx(stats.wilcoxon(v).pvalue, rel=5e-3)
    assert found["p_t"] == pytest.approx(stats.ttest_1samp(v, 0).pvalue, rel=5e-3)
    assert (found["found"], found["n"]) == ("met", 8)
    assert check("x", -v)["found"] == "refuted"
    assert check("x", v - v.mean())["found"] == "open"
    assert check("x", [0.0, 0.0])["p"] == 1
    assert check("x", [5.0]) == {"what": "x", "mean": 5.0, "n": 1, "found": "open"}
    assert paired(v)["std"] == round(v.std(ddof=1), 4)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (("met", "met"), "holds"),
        (("met", "refuted"), "holds in part"),
        (("met", "open"), "holds in part"),
        (("open", "refuted"), "does not hold"),
        (("open", "open"), "not decided"),
    ],
)
def test_verdicts(found: tuple[str, ...], verdict: str) -> None:
    assert claim("name", "Words.", [{"what": "", "found": f} for f in found])["verdict"] == verdict


# ----------------------------------------------------------------- claims, on records made by hand


def record(network: str, seed: int, **parts: Any) -> dict[str, Any]:
    """``parts``: accuracy rows of each part, or (rows, items shown)."""
    made = {}
    for name, value in parts.items():
        rows, shown = value if isinstance(value, tuple) else (value, list(range(len(value))))
        made[name] = {
            "items": list(shown), "turns": [0] * len(rows), "accuracy": rows,
            "memorised": [[i for i, a in enumerate(row) if a > 0.5] for row in rows],
            "epochs": [[] for _ in rows], "losses": [[] for _ in rows],
        }  # fmt: skip
    return {"network": network, "seed": seed, "finished": True, "seconds": 1.0, "scale": 1.0, "parts": made}


def _steps(final: list[float]) -> list[list[float]]:
    """A stream in which each item is learned well, and only the last row matters."""
    n = len(final)
    return [[0.9 if j <= i else 0.0 for j in range(n)] for i in range(n - 1)] + [final]


def _verdicts(summary: dict[str, Any]) -> dict[str, str]:
    return {c["name"]: c["verdict"] for c in summary["claims"]}


def test_serial_position_tells_the_three_networks_apart() -> None:
    final = {
        "conventional": [0.0, 0.0, 0.0, 0.1, 0.3, 1.0],
        "hybrid": [0.9, 0.6, 0.6, 0.6, 0.7, 0.9],
        "stable": [0.9, 0.8, 0.3, 0.1, 0.0, 0.0],
    }
    protocol = protocol_for(items=6)
    records = [
        record(name, seed, stream=_steps([a + 0.01 * (seed + i) for i, a in enumerate(row)]))
        for name, row in final.items()
        for seed in range(4)
    ]
    summary = SerialPosition(longer=0).summarise(records, protocol)
    assert set(_verdicts(summary).values()) == {"holds"}
    swapped = copy.deepcopy(records)
    for r in swapped:
        r["network"] = {"conventional": "hybrid", "hybrid": "conventional"}.get(r["network"], r["network"])
    verdicts = _verdicts(SerialPosition(longer=0).summarise(swapped, protocol))
    assert verdicts["hybrid remembers more"] != "holds"
    assert verdicts["serial position"] != "holds"


def test_memory_measures_count_learned_items_only() -> None:
    rows = [[0.5, 0.9, 0.9], [0.5, 1.0, 0.9], [0.0, 0.5, 1.0]]
    m = memory_measures(np.array([rows]), [record("x", 0, stream=rows)], "stream")
    assert m["gross_memory"]["mean"] == [0.5, 1.5, 1.5]
    assert m["average_memory"]["mean"] == [0.5, 0.75, 0.5]
    assert m["learned"]["mean"] == [0.5, 1.0, 1.0]
    assert m["final"]["mean"] == [0.0, 0.5, 1.0]


def test_hebb_repetition_looks_at_the_ends_of_passes() -> None:
    def rows(first: float, last: float) -> list[list[float]]:
        return [[0.2] * 3] * 2 + [[first] * 3] + [[0.2] * 3] * 2 + [[last] * 3]

    gains = {"conventional": (0.3, 0.3), "hybrid": (0.4, 0.9), "stable": (0.3, 0.4)}
    records = [
        record(name, seed, repetition=(rows(first, last - 0.01 * seed), [0, 1, 2] * 2))
        for name, (first, last) in gains.items()
        for seed in range(3)
    ]
    summary = HebbRepetition(passes=2).summarise(records, protocol_for(items=3))
    assert summary["measures"]["hybrid"]["mean"]["mean"] == [0.4, 0.89]
    assert set(_verdicts(summary).values()) == {"holds"}


def test_poisoning_compares_with_before_and_with_each_other() -> None:
    after = {"conventional": 0.1, "hybrid": 0.7, "stable": 0.8}
    records = [
        record(
            name, seed, repetition=([[0.75 + 0.01 * seed] * 4] * 4),
            **{CLEAN: [[0.9] * 4] * 4, DERANGED: [[a - 0.01 * seed] * 4] * 4},
            other=[[a - 0.02 * seed] * 4] * 4,
        )
        for name, a in after.items()
        for seed in range(3)
    ]  # fmt: skip
    summary = Poisoning().summarise(records, protocol_for(items=4))
    assert set(_verdicts(summary).values()) == {"holds"}
    assert summary["measures"]["conventional"]["after"][DERANGED]["mean"] == 0.09
    for r in records:
        r["parts"][DERANGED]["accuracy"] = [[0.05 * (2 + r["seed"])] * 4] * 4
    assert _verdicts(Poisoning().summarise(records, protocol_for(items=4)))["poison is filtered out"] != "holds"


def test_frequency_and_recency_are_kept_apart() -> None:
    shown = [3, 2, 3, 1, 2, 3, 0, 3, 2, 1]  # items 0..3 shown 1, 2, 3, 4 times; last seen at 6, 9, 8, 7
    by_frequency, by_recency = [0.1, 0.2, 0.3, 0.4], [0.1, 0.4, 0.3, 0.2]
    rows = {"conventional": by_recency, "hybrid": by_frequency, "stable": by_frequency}
    records = [
        record(name, seed, frequency=([row] * 10, shown)) for name, row in rows.items() for seed in range(3)
    ]
    summary = LearningFrequency().summarise(records, protocol_for(items=4))
    assert summary["measures"]["hybrid"]["correlation with frequency"]["mean"] == 1
    assert summary["measures"]["conventional"]["correlation with last seen"]["mean"] == 1
    assert summary["measures"]["hybrid"]["by_frequency"]["mean"] == by_frequency
    assert summary["measures"]["conventional"]["by_last_seen"]["mean"] == sorted(by_recency)
    assert set(_verdicts(summary).values()) == {"holds"}


def test_rivals_are_tuned_on_seeds_that_are_not_reported() -> None:
    rivals, protocol = (
        Rivals(pilot=1, scales=(1.0, 2.0), ewc=(1.0, 10.0), si=(1.0,)),
        protocol_for(items=3, seeds=3),
    )
    names = rivals.networks(protocol)
    # Strength 1 is best on the pilot's seed, strength 10 on the others.
    level = {"EWC, strength 1": (0.9, 0.2), "EWC, strength 10": (0.1, 0.8)}
    records = [
        record(name, seed, stream=_steps([level.get(name, (0.5, 0.5))[seed > 0]] * 3))
        for name in names
        for seed in range(3)
    ]
    summary = rivals.summarise(records, protocol)
    assert summary["chosen"] == {
        "hybrid, tuned": "hybrid, tuned, scale 1",  # both scales do equally well, and the first is taken
        "all alike, tuned": "all alike, tuned, scale 1",
        "EWC": "EWC, strength 1",
        "SI": "SI, strength 1",
    }
    assert "EWC, strength 10" not in summary["measures"]
    assert summary["measures"]["EWC, strength 1"]["final"] == {"mean": [0.2] * 3, "std": [0.0] * 3, "n": 2}


# ----------------------------------------------------------------- the page


def test_the_page_says_what_the_results_say() -> None:
    """Nobody typed a number of a table or a verdict: filling the page again changes nothing."""
    text = PAGE.read_text(encoding="utf-8")
    assert page.fill(text, PAGE.with_suffix("")) == text


def test_the_page_has_every_experiment_and_its_picture() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in sorted(PAGE.with_suffix("").glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        assert results["finished"]
        assert f"<!-- results: {path.parent.name} -->" in text
        assert (path.parent / "picture.png").exists()
        kind = page.SHOWN[results["experiment"]]
        options = {
            k: tuple(v) if isinstance(v, list) else v for k, v in results["configuration"]["options"].items()
        }
        protocol = protocol_for(
            items=results["configuration"]["items"], seeds=results["configuration"]["seeds"],
            first_seed=results["configuration"]["first_seed"], width=results["configuration"]["width"],
            lr=results["configuration"]["lr"],
        )  # fmt: skip
        # And the summary is what the code makes of the runs.
        again = kind(**options).summarise(results["runs"], protocol)
        assert json.loads(json.dumps(again)) == results["summary"]
    shown = {json.loads(p.read_text())["experiment"] for p in PAGE.with_suffix("").glob("*/results.json")}
    assert shown == set(page.SHOWN)


def test_missing_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing or not finished: run its command first"):
        page.fill("<!-- results: nothing -->\n<!-- end -->\n", tmp_path)
    assert report.rows.__doc__
