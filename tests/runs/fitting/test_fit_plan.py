"""``flexkern fit --dry-run``: what would be learned, and nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexkern.runs import pace
from flexkern.runs.fitting.fit_config import FitConfig
from flexkern.runs.fitting.plan import plan
from flexkern.runs.fitting.run import fit
from helpers.commands import invoke


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LEAST", 0.1)


def config(photographs: Path, out: Path, **changes: Any) -> FitConfig:
    values: dict[str, Any] = {
        "folder": str(photographs), "out": str(out), "backbone": "small", "broken": "skip", "epochs": 2,
        "increment": 3, "workers": 0, "method": "simplecil",
    }  # fmt: skip
    return FitConfig(**(values | changes))


def test_a_plan_counts_measures_and_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    found = plan(config(photographs, out))
    assert not list(tmp_path.iterdir())
    assert [classes for classes, *_ in found.tasks] == [3, 3]
    counts = found.record["images"]
    assert sum(train for _, train, _ in found.tasks) == counts["train"]
    assert sum(test for *_, test in found.tasks) == counts["test"]
    assert found.memory.parameters > 1 << 20
    largest = max(train for _, train, _ in found.tasks)
    pixels = 3 * 37**2  # 32 * 256 / 224
    assert found.images_mib == pytest.approx((largest + counts["test"]) * pixels / 2**20)
    assert found.images_seconds > 0
    assert found.seconds is not None
    assert found.seconds > 0


def test_what_is_learned_is_not_planned_again(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    fit(config(photographs, out))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = plan(config(photographs, out))
    assert (again.tasks, again.images_seconds, again.seconds) == ([], 0, 0)
    with pytest.raises(ValueError, match=r"epochs was 2, is 3.*--restart"):
        plan(config(photographs, out, epochs=3))
    assert len(plan(config(photographs, out, epochs=3), restart=True).tasks) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_photographs_that_do_not_fit_into_memory(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexkern.runs.fitting.plan.MOST_TRAIN", 0)
    found = plan(config(photographs, tmp_path / "model.safetensors"))
    counts = found.record["images"]
    assert found.images_mib == pytest.approx(counts["test"] * 3 * 37**2 / 2**20)
    assert found.seconds is not None


def test_the_command(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    options = ("--broken", "skip", "--method", "simplecil", "--increment", "3", "--dry-run")
    said = invoke("fit", photographs, "--backbone", "small", *options, "--out", out)
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    for part in (
        "6 classes in 2 tasks",
        "simplecil on ",
        "to decode images: ",
        "an estimate: ",
        "nothing was written",
    ):
        assert part in text
    assert not list(tmp_path.iterdir())
    wrong = invoke("fit", photographs, *options, "--out", out)
    assert wrong.exit_code == 1
    assert "backbone is needed" in wrong.output
