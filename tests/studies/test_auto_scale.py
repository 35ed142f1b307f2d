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


def test_settings_that_are_known_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Setting("digits-classes", 0.006, width=16, epochs=1, train_per_item=10, items=5)
    found, given = tmp_path / "found.json", ["--seeds", "4", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(auto_scale, "SETTINGS", (tiny,))
    main(given)
    first = json.loads(found.read_text())
    assert list(first["summary"]) == ["class-incremental"]
    assert tiny.by_classes
    (record,) = first["settings"]
    assert len(record["runs"][0]["curve"]) == len(FACTORS)

    def never(*_: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(auto_scale, "_one", never)
    main(given)
    assert json.loads(found.read_text())["settings"] == first["settings"]
    with pytest.raises(AssertionError, match="run again"):
        main(["--seeds", "5", "--out", str(found)])


def test_a_class_incremental_stream_has_no_negatives() -> None:
    setting = Setting("digits-classes", 0.006, train_per_item=10, items=5)
    stream = auto_scale._Sources(None, None).stream(setting, 0)
    assert [sorted(set(e.train_labels.tolist())) for e in stream] == [[2 * i, 2 * i + 1] for i in range(5)]
    assert all(len(e.train_labels) == 20 for e in stream)


def test_the_published_summary_is_of_its_runs() -> None:
    published = json.loads(PUBLISHED.read_text())
    settings = copy.deepcopy(published["settings"])
    assert summarise(settings) == published["summary"]
    assert settings == published["settings"]
