"""The study of scale="auto": its command, and that what is published follows from its runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

from studies import auto_scale
from studies.auto_scale import FACTORS, Setting, main, summarise

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "auto_scale.json"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Setting("digits", 0.006, width=16, epochs=1, train_per_item=40, items=3)
    monkeypatch.setattr(auto_scale, "SETTINGS", (tiny, Setting("mnist", 0.006), tiny))
    main(["--seeds", "4", "--only", "2", "--out", str(tmp_path / "out" / "found.json")])
    results = json.loads((tmp_path / "out" / "found.json").read_text())
    (record,) = results["settings"]  # there is no MNIST here, and the third was not asked for
    assert record["setting"] == str(tiny) in capsys.readouterr().out
    (run,) = record["runs"]
    assert run["seed"] == 4
    assert run["curve"][FACTORS.index(1.0)] == run["auto"] == record["auto"]
    assert record["oracle"] == max(run["curve"])
    assert record["oracle_factor"] == FACTORS[run["curve"].index(max(run["curve"]))]


def test_the_published_summary_is_of_its_runs() -> None:
    published = json.loads(PUBLISHED.read_text())
    settings = copy.deepcopy(published["settings"])
    assert summarise(settings) == published["summary"]
    assert settings == published["settings"]
