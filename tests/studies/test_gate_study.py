"""The gate study: replaying stored features answers as the learner does; tables, pictures, resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("transformers", reason="transformers is not installed")

from flexkern.learners import ArtsyViT, Recipe
from helpers.tiny_vit import backbone, stream
from studies import artsy_cost, gate_study, gate_tables
from studies.gate_bounds import as_one_task
from studies.gate_features import SpaceFeatures, features_of_stream
from studies.gate_study import TOP1, Variant, replay

RECIPE = Recipe(epochs=1, batch_size=16, crop=(0.6, 1.0))
RIDGE = {"gate": "ridge", "gating": "topk", "k": 2, "fill": True, "features": 40}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> SpaceFeatures:
    path = tmp_path_factory.mktemp("features") / "seed0.safetensors"
    made = features_of_stream(stream(), 0, RECIPE, backbone=backbone(), rank=4, path=path)
    again = features_of_stream(stream(), 0, RECIPE, backbone=backbone(), rank=4, path=path)
    assert torch.equal(made.test, again.test)
    assert made.seconds == again.seconds  # read, and not made again
    return made


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (Variant("", "", {"gate": "none"}), {"gate": {"gate": "none"}}),
        (Variant("", "", {"gate": "oracle"}), {"gate": {"gate": "oracle"}}),
        (Variant("", "", {"gate": "mlp"}), {"gate": {"gate": "mlp"}}),
        (
            Variant("", "", RIDGE, "experts", mean=True),
            {"gate": RIDGE, "head": "experts", "evidence": "class+mean"},
        ),
    ],
    ids=["ease", "oracle", "mlp", "experts"],
)
def test_replay_answers_as_the_learner_does(
    features: SpaceFeatures, variant: Variant, options: dict[str, Any]
) -> None:
    learner = ArtsyViT(backbone(), recipe=RECIPE, rank=4, adapter_scale=1.0, **options)
    matrix = []
    for item in stream():
        learner.learn(item)
        matrix.append(learner.evaluate(stream()[: item.number + 1]).accuracies.tolist())
    result = replay(features, variant, seed=0)
    for row, expected in zip(result["matrix"], matrix, strict=True):
        # One of 20 answers may tip: the learner's batches are other ones, so that products round differently.
        assert row == pytest.approx(expected, abs=0.051)
    assert result["last"] == pytest.approx(sum(matrix[-1]) / 3, abs=0.034)
    assert result["open_per_sample"] == pytest.approx(learner.report["open_per_sample"], abs=0.04)


def test_the_control_of_the_oracle_has_no_adapters_and_is_told_the_task(features: SpaceFeatures) -> None:
    control = next(v for v in gate_study.variants() if "control" in v.name)
    result = replay(features, control, seed=0)
    alone = replay(features, Variant("", "", head="simplecil"), seed=0)
    assert result["open_per_sample"] == 0
    assert result["matrix"][0] == alone["matrix"][0]  # of one task there is nothing to tell
    assert all(a >= b for a, b in zip(result["matrix"][-1], alone["matrix"][-1], strict=True))
    assert result["last"] > alone["last"]


def test_every_variant_has_its_own_key() -> None:
    keys = [v.key for v in gate_study.variants()]
    assert len(set(keys)) == len(keys)


def test_the_study_writes_tables_and_pictures_and_goes_on(
    features: SpaceFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [v for v in gate_study.variants() if v.group in ("baseline", "threshold")]
    some = [v for v in some if v.head != "ridge" and "ridge" not in v.name]
    some.append(Variant("RanPAC (ridge on E0)", "baseline", head="ridge", options={"features": 30}))
    small = {"gate": "ridge", "features": 30, **TOP1}
    some += [
        Variant(f"ridge, {kind} 0.5", "threshold", small | {"theta": 0.5})
        for kind in ("fixed", "quantile", "adaptive")
    ]
    monkeypatch.setattr(gate_study, "variants", lambda: some)
    monkeypatch.setattr(gate_study, "features_of_stream", lambda *args, **options: features)
    monkeypatch.setattr(gate_study, "streams", lambda config: [(0, None), (1, None)])
    kept = tmp_path / "kept"
    kept.mkdir()
    results = gate_study.run(gate_study.StudyConfig(data="x/y.npz"), kept, lambda line: None)
    assert results["configuration"]["data"] == "y.npz"
    monkeypatch.setattr(gate_study, "replay", None)  # all is noted: nothing is done again
    again = gate_study.run(gate_study.StudyConfig(data="x/y.npz"), kept, lambda line: None)
    assert again["runs"] == results["runs"]
    others = dataclasses.replace(features, test=features.test + 1)  # what is noted was not found on these
    monkeypatch.setattr(gate_study, "features_of_stream", lambda *args, **options: others)
    with pytest.raises(TypeError, match="not callable"):
        gate_study.run(gate_study.StudyConfig(data="x/y.npz"), kept, lambda line: None)
    out = tmp_path / "artsy"
    out.mkdir()
    paths = gate_tables.write(results, out)
    assert all(p.stat().st_size > 1000 for p in paths)
    page = (tmp_path / "artsy.md").read_text()
    summary = json.loads((out / "gates.json").read_text())["summary"]
    assert f"{100 * summary['baseline: oracle gate']['last']['mean']:.1f} ±" in page
    gate_tables.write(results, out)
    assert (tmp_path / "artsy.md").read_text() == page


def test_the_page_has_the_tables_of_its_results() -> None:
    page = Path(__file__).parents[2] / "docs" / "results" / "artsy.md"
    results = json.loads((page.with_suffix("") / "gates.json").read_text())
    assert f"{gate_tables.START}\n\n{gate_tables.tables(results)}\n\n{gate_tables.END}" in page.read_text()
    assert results["summary"] == gate_study.summarise(results["runs"])


def test_the_whole_stream_as_one_task() -> None:
    one = as_one_task(stream())
    assert len(one) == 1
    assert one[0].train_labels.unique().tolist() == list(range(6))


def test_cost_is_measured_for_each_number_of_tasks() -> None:
    results = artsy_cost.measure((1, 3), batch=4, rounds=1)
    assert [r["tasks"] for r in results["rows"]] == [1, 3]
    assert results["rows"][1]["adapters_mb"] == pytest.approx(3 * results["rows"][0]["adapters_mb"], abs=2e-3)
