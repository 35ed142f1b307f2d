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
        protocol_for(items=3, seeds=(0, 1, 2)),
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
    # Of candidates the chosen one alone is trained on seeds that are reported, and that is all that is told.
    none = [(n, s) for n in names for s in range(3) if rivals.wanted(n, s, [], protocol)]
    on_pilot = [r for r in records if r["seed"] == 0]
    wanted = [(n, s) for n in names for s in range(3) if rivals.wanted(n, s, on_pilot, protocol)]
    tried = [n for n in names if n.partition(", s")[0] in summary["chosen"]]
    assert none == [(n, s) for n in names for s in range(3) if s == 0 or n not in tried]
    chosen = {*summary["chosen"].values()}
    assert wanted == [(n, s) for n in names for s in range(3) if s == 0 or n not in tried or n in chosen]
    assert len(wanted) == rivals.count(protocol) < len(names) * 3
    kept = [r for r in records if (r["network"], r["seed"]) in wanted]
    assert rivals.summarise(kept, protocol) == summary


def test_rivals_are_put_to_the_test_against_each_other() -> None:
    rivals, protocol = (
        Rivals(pilot=1, scales=(1.0,), ewc=(1.0,), si=(1.0,)),
        protocol_for(items=3, seeds=range(4)),
    )
    level = {
        "plain SGD": 0.1, "hybrid": 0.3, "hybrid, tuned, scale 1": 0.4, "joint": 0.6, "ridge head": 0.9,
        "LDA head": 0.55, "plain SGD, class-gated error": 0.5, "hybrid, class-gated error": 0.4,
    }  # fmt: skip
    records = [
        record(name, seed, stream=_steps([level.get(name, 0.2) + 0.01 * seed] * 3))
        for name in rivals.networks(protocol)
        for seed in range(4)
    ]
    claims = {c["name"]: c for c in rivals.summarise(records, protocol)["claims"]}
    against = {
        name: {c["what"].split(" above ")[1]: c["found"] for c in claims[name]["checks"]} for name in claims
    }
    assert claims["ridge head against training"]["verdict"] == "holds"
    assert len(against["ridge head against training"]) == len(rivals.networks(protocol)) - 2
    assert claims["LDA head against training"]["verdict"] == "holds in part"
    assert against["LDA head against training"]["joint, average accuracy"] == "refuted"
    assert claims["class-gated error against flexible synapses"]["verdict"] == "holds"
    assert claims["flexible synapses with the class-gated error"]["verdict"] == "does not hold"
    assert [c["found"] for c in claims["joint training is no bound"]["checks"]] == ["refuted", "met", "refuted"]
    for name in ("against the field", "against the field, tuned"):
        single = [n for n in level if not n.startswith("hybrid") and n != "joint"]
        others = ("all alike, tuned, scale 1", "EWC, strength 1", "SI, strength 1", "replay of 200")
        assert against[name].keys() == {f"{n}, average accuracy" for n in (*single, *others)}
    # Results of before, which had no heads and no gates.
    old = [r for r in records if "head" not in r["network"] and "gated" not in r["network"]]
    assert [c["name"] for c in rivals.summarise(old, protocol)["claims"]] == [
        "against the field", "against the field, tuned"
    ]  # fmt: skip


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
        # And the summary is what the code makes of the runs.
        assert page.summary(results) == results["summary"]
    shown = {json.loads(p.read_text())["experiment"] for p in PAGE.with_suffix("").glob("*/results.json")}
    assert shown == set(page.SHOWN)


def test_missing_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing or not finished: run its command first"):
        page.fill("<!-- results: nothing -->\n<!-- end -->\n", tmp_path)
    assert report.rows.__doc__


# ----------------------------------------------------------------- many checks


def _results(folder: Path, name: str, checks: dict[str, list[float]]) -> dict[str, Any]:
    """The page's results of one experiment, with other checks."""
    results = json.loads((PAGE.with_suffix("") / "learning-frequency" / "results.json").read_text())
    claims = [claim("x", f"Words of {name}.", [check(what, values) for what, values in checks.items()])]
    results["summary"] = results["summary"] | {"claims": claims}
    (folder / name).mkdir(parents=True)
    (folder / name / "results.json").write_text(json.dumps(results))
    return results


def test_the_page_adjusts_for_all_its_checks_together(tmp_path: Path) -> None:
    clear, slight = [1.9, 2.0, 2.1, 1.8, 2.2, 2.05], [0.3, 0.1, 0.25, -0.02, 0.2, 0.05]
    nothing = [0.1, -0.1, 0.05, -0.08, 0.02, 0.03]
    _results(tmp_path, "a", {"clear": clear, "slight": slight, "one seed": [1.0]})
    _results(tmp_path, "b", {"nothing": nothing, "against": [-v for v in clear]})
    text = page.fill(
        "".join(f"<!-- {b} -->\n<!-- end -->\n" for b in ("verdicts", "results: a", "results: b")), tmp_path
    )
    p = {
        k: stats.ttest_1samp(v, 0).pvalue
        for k, v in {"clear": clear, "slight": slight, "nothing": nothing}.items()
    }
    assert 0.025 < p["slight"] < 0.05 < p["nothing"]
    assert f"p {p['clear']:.2g}, Holm {4 * p['clear']:.2g}, Wilcoxon 0.031): met\n" in text
    assert f"p {p['slight']:.2g}, Holm {2 * p['slight']:.2g}, " in text
    assert f"p {p['nothing']:.2g}, Holm {p['nothing']:.2g}, " in text
    assert text.count("met, open after Holm\n") == 1
    assert "one seed: +1.000 (one seed): open" in text
    assert "| a | Words of a. | holds in part | 2 of 3 | 1 of 3 |" in text
    assert "| b | Words of b. | does not hold | 0 of 2 | 0 of 2 |" in text
    assert (
        "5 checks: 2 met, 1 refuted, 2 open. After Holm's correction over all of them 1 stay met and 1 "
        "refuted. Of those that do not, 1 have 6 seeds." in text
    )


def test_summaries_of_older_code_are_made_anew(tmp_path: Path) -> None:
    folder, text = tmp_path / "page", "<!-- results: learning-frequency -->\n<!-- end -->\n"
    file = folder / "learning-frequency" / "results.json"
    file.parent.mkdir(parents=True)
    known = json.loads((PAGE.with_suffix("") / "learning-frequency" / "results.json").read_text())
    old = copy.deepcopy(known)
    for c in old["summary"]["claims"]:
        for one in c["checks"]:
            del one["p_t"]
    file.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="a check has no p_t, so it is of older code"):
        page.fill(text, folder)
    assert page.refresh(text, folder) == [file]
    assert json.loads(file.read_text()) == known
    assert page.refresh(text, folder) == []


def test_the_terminal_has_holms_p_too() -> None:
    values = {"clear": [0.5, 0.52, 0.48], "not": [0.1, -0.1, 0.05], "one seed": [1.0]}
    claims = [claim("x", "Words.", [check(what, v) for what, v in values.items()])]
    columns = {c.header: list(c.cells) for c in report.claims_table({"summary": {"claims": claims}}).columns}
    p = stats.ttest_1samp(values["clear"], 0).pvalue
    assert columns["p"][1:] == [f"{p:.2g}", f"{stats.ttest_1samp(values['not'], 0).pvalue:.2g}", "-"]
    assert columns["Holm"][1] == f"{2 * p:.2g}"
    assert columns["found"][1:] == ["met", "open", "open"]


def test_the_page_ranks_the_rivals() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("rivals", "split-cifar100"):
        results = json.loads((PAGE.with_suffix("") / name / "results.json").read_text(encoding="utf-8"))
        (line,) = (line for line in text.splitlines() if line.startswith(f"- {name}: "))
        ranked = [one.rsplit(" ", 3) for one in line.removeprefix(f"- {name}: ").removesuffix(".").split("; ")]
        measures = results["summary"]["measures"]
        assert {network for network, *_ in ranked} == measures.keys()
        means = [float(mean) for _, mean, *_ in ranked]
        assert means == sorted(means, reverse=True)
        for network, mean, _, half in ranked:
            m, reported = measures[network]["average_memory"], results["configuration"]["seeds"] - 2
            assert float(mean) == pytest.approx(100 * m["mean"][-1], abs=0.051)
            student = {3: 4.3027, 6: 2.5706}[reported]
            assert float(half) == pytest.approx(100 * student * m["std"][-1] / reported**0.5, abs=0.051)
