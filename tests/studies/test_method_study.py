"""The method study: stored features answer as the learners do; streams; a whole study in seconds; its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("transformers", reason="transformers is not installed")
from PIL import Image

from flexkern.streams import Stream
from helpers.tiny_vit import backbone, stream
from studies.method_study import run as study
from studies.method_study import streams
from studies.method_study.methods import METHODS
from studies.method_study.page import END, START, fill
from studies.method_study.settings import PAPER, Setting
from studies.method_study.summary import summarise
from studies.method_study.units import Bench, from_features, from_learner

SETTING = Setting(
    6, 2, None, None, rank=4, epochs=1, finetune_epochs=1, joint_epochs=1, crop=(0.6, 1.0), precision="float32"
)
STORED = [name for name in METHODS if METHODS[name].head is not None and name != "ranpac-10000"]
PAGE = Path(__file__).parents[2] / "docs" / "results" / "artsy.md"


@pytest.fixture(scope="module")
def bench() -> Bench:
    made = Bench("cifar100", "", 0, backbone(), SETTING)
    made.stream = stream()
    return made


@pytest.fixture(scope="module")
def again() -> Bench:
    """The classes of the first task come again in the third."""
    made = Bench("looks", "", 0, backbone(), SETTING)
    first, second, _ = stream()
    first_again = replace(first, number=2, name="again", train_inputs=255 - first.train_inputs)
    made.stream = Stream([first, second, first_again], 4)
    return made


@pytest.mark.parametrize("name", ["lda-1", "ease", "experts", "oracle"])
def test_stored_features_answer_as_the_learner_does_where_classes_come_again(again: Bench, name: str) -> None:
    test_stored_features_answer_as_the_learner_does(again, name)


@pytest.mark.parametrize("name", STORED)
def test_stored_features_answer_as_the_learner_does(bench: Bench, name: str) -> None:
    method = METHODS[name]
    if name == "lda-6":
        method = replace(method, options={"layers": 3})  # all that the tiny backbone has
    if name.startswith("ranpac"):
        method = replace(method, options={**method.options, "features": 30}, head_options={"features": 30})
    if name == "experts":
        gate = {**(method.gate or {}), "features": 40}
        method = replace(method, options={**method.options, "gate": gate}, gate=gate)
    found, expected = from_features(bench, method), from_learner(bench, method)
    for row, wanted in zip(found["matrix"], expected["matrix"], strict=True):
        # One of 20 answers may tip: batches are other ones, so that products round differently.
        assert row == pytest.approx(wanted, abs=0.051)
    for key in ("last", "average", "told", "task_right"):
        assert found[key] == pytest.approx(expected[key], abs=0.034), key
    assert found["bytes"] == pytest.approx(expected["bytes"], rel=0.05, abs=20_000)  # a header, and small state
    assert found["open_per_sample"] == pytest.approx(expected["open_per_sample"], abs=0.04)


def test_told_the_task_only_its_classes_are_answered(bench: Bench) -> None:
    result = from_features(bench, METHODS["simplecil"])
    assert result["told"] >= result["last"]
    assert result["task_right"] >= result["last"]


def _characters(folder: Path, alphabets: int = 2, each: int = 3, drawings: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for a in range(alphabets):
        for c in range(each):
            place = folder / f"alphabet{a}" / f"character{c + 1:02d}"
            place.mkdir(parents=True)
            pattern = rng.integers(0, 2, (4, 4)).repeat(5, 0).repeat(5, 1) * 255
            for i in range(drawings):
                noisy = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(place / f"{i}.png")
    return folder


def test_characters_are_split_by_the_seed_and_no_drawing_is_in_both_parts(tmp_path: Path) -> None:
    path = str(_characters(tmp_path / "omniglot"))
    setting = Setting(4, 2, 3, 3)
    made = streams.few_shot_characters(path, 0, 16, setting)
    assert [len(e.train_labels) for e in made] == [6, 6]
    assert made.input_shape == (3, 16, 16)
    for item in made:
        train = {x.numpy().tobytes() for x in item.train_inputs}
        assert len(train) == 6
        assert not train & {x.numpy().tobytes() for x in item.test_inputs}
    again = streams.few_shot_characters(path, 0, 16, setting)
    assert torch.equal(made[1].train_inputs, again[1].train_inputs)
    assert streams.few_shot_characters(path, 1, 16, setting).names != made.names
    with pytest.raises(ValueError, match="no folders of PNG files"):
        streams.few_shot_characters(str(tmp_path / "omniglot" / "nothing"), 0, 16, setting)


def _digits(path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(10).repeat(8)
    x = rng.integers(0, 256, (80, 28, 28)).astype(np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[::-1], y_test=y[::-1])
    return path


def test_numbers_are_two_digits_side_by_side(tmp_path: Path) -> None:
    made = streams.two_digit_numbers(str(_digits(tmp_path / "mnist.npz")), 3, 56, Setting(6, 2, 5, 4))
    assert [len(e.test_labels) for e in made] == [8, 8, 8]
    assert made.input_shape == (3, 56, 56)
    assert len(made[0].class_names[0]) == 2


def test_digits_and_pictures_come_again_in_other_looks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    digits = streams.digits_in_looks(str(_digits(tmp_path / "mnist.npz")), 0, 32, Setting(10, 10, 4, 2))
    assert sorted(digits.names) == sorted(streams.HANDS)
    assert digits.classes == 10
    assert all(isinstance(e.train_inputs, torch.Tensor) for e in digits)
    path = _pictures(tmp_path / "pack.npz")
    looks = streams.corrupted_cifar100(path, 0, 16, Setting(6, 6, 3, 2))
    assert sorted(looks.names) == sorted(streams.LOOKS)
    assert [len(e.train_labels) for e in looks] == [18] * 5
    assert streams.corrupted_cifar100(path, 1, 16, Setting(6, 6, 3, 2)).names != looks.names


def _pictures(path: Path) -> str:
    y = np.arange(100).repeat(4)
    x = np.random.default_rng(0).integers(0, 256, (400, 16, 16, 3)).astype(np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


def test_the_papers_setting_is_all_of_cifar100_ten_classes_at_a_time(tmp_path: Path) -> None:
    made = streams.cifar100(_pictures(tmp_path / "pack.npz"), 0, 16, PAPER["cifar100"])
    assert made.classes == 100
    assert [len(e.train_labels) for e in made] == [40] * 10
    assert [len(e.test_labels) for e in made] == [40] * 10


def test_the_papers_setting_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe and adapters on few classes: what a GPU is given."""
    _characters(tmp_path / "omniglot")
    backbone().save_pretrained(tmp_path / "tiny")
    few = {"classes": 4, "increment": 2, "train_per_class": 3, "test_per_class": 3}
    short = {"epochs": 1, "finetune_epochs": 1, "joint_epochs": 1}
    paper = {name: replace(setting, **few, **short) for name, setting in PAPER.items()}
    monkeypatch.setitem(study.SETTINGS, "paper", paper)
    methods = ["best", "artsy", "oracle", "oracle-last-3", "finetune", "joint"]
    results = _study(tmp_path, "--setting", "paper", "--methods", ",".join(methods), "--seeds", "1")
    assert results["setting"]["characters"]["rank"] == 64
    assert {u["method"] for u in results["units"]} == set(methods)


def _study(tmp_path: Path, *extra: str) -> dict[str, Any]:
    out = tmp_path / "page" / "methods"
    study.main([
        "--characters", str(tmp_path / "omniglot"), "--backbone", str(tmp_path / "tiny"), "--seeds", "2",
        "--kept", str(tmp_path / "kept"), "--out", str(out), *extra,
    ])  # fmt: skip
    return json.loads((out / "results.json").read_text())


def test_a_whole_study_goes_on_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _characters(tmp_path / "omniglot")
    backbone().save_pretrained(tmp_path / "tiny")
    small = Setting(6, 2, 3, 3, rank=4, epochs=1, finetune_epochs=1, joint_epochs=1, precision="float32")
    monkeypatch.setitem(study.SETTINGS, "reduced", dict.fromkeys(streams.STREAMS, small))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    some = ["lda-1", "simplecil", "ease", "oracle", "finetune", "joint"]
    first = _study(tmp_path, "--methods", ",".join(some[:2]))
    assert {u["method"] for u in first["units"]} == set(some[:2])
    results = _study(tmp_path, "--methods", ",".join(some))
    assert {(u["method"], u["seed"]) for u in results["units"]} == {(m, s) for m in some for s in (0, 1)}
    kept = {(u["method"], u["seed"]): u["seconds"] for u in results["units"]}
    assert all(u["seconds"] == kept[u["method"], u["seed"]] for u in first["units"])
    capsys.readouterr()
    assert _study(tmp_path, "--methods", ",".join(some))["units"] == results["units"]
    assert "last" not in capsys.readouterr().out  # nothing is made again
    other = dict.fromkeys(streams.STREAMS, replace(small, lr=0.1))
    monkeypatch.setitem(study.SETTINGS, "reduced", other)  # what is there was not found with this setting
    _study(tmp_path, "--methods", "simplecil")
    assert "simplecil: last" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| the oracle's control" in text
    assert "| EASE |" in text


def test_a_part_that_is_run_from_a_clone_adds_to_the_results_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clone has the results, and not the folder of units."""
    _characters(tmp_path / "omniglot")
    backbone().save_pretrained(tmp_path / "tiny")
    small = Setting(6, 2, 3, 3, rank=4, epochs=1, precision="float32")
    monkeypatch.setitem(study.SETTINGS, "reduced", dict.fromkeys(streams.STREAMS, small))
    (tmp_path / "page.md").write_text(f"{START}\n{END}\n")
    first = _study(tmp_path, "--methods", "simplecil")
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    both = _study(tmp_path, "--methods", "lda-1", "--seeds", "1")
    assert {(u["method"], u["seed"]) for u in both["units"]} == {
        ("simplecil", 0), ("simplecil", 1), ("lda-1", 0),
    }  # fmt: skip
    assert [u for u in both["units"] if u["method"] == "simplecil"] == first["units"]
    assert both["seeds"] == [0, 1]
    assert "| SimpleCIL |" in (tmp_path / "page.md").read_text()
    before = (tmp_path / "page.md").read_text(), (tmp_path / "page/methods/results.json").read_text()
    other = dict.fromkeys(streams.STREAMS, replace(small, train_per_class=4))
    monkeypatch.setitem(study.SETTINGS, "reduced", other)
    for wrong, said in (
        (("--methods", "lda-1"), "made with another setting"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--only", "cifar100"), "name its data, --cifar100"),
        (("--characters", str(tmp_path / "nothing")), "nothing"),
    ):
        with pytest.raises(SystemExit):
            _study(tmp_path, *wrong)
        assert said in capsys.readouterr().err
    assert before == ((tmp_path / "page.md").read_text(), (tmp_path / "page/methods/results.json").read_text())


def _unit(method: str, seed: int, last: float) -> dict[str, Any]:
    same = dict.fromkeys(("average", "told", "task_right", "open_per_sample", "bytes"), 0.5)
    return {"stream": "numbers", "backbone": "small", "method": method, "seed": seed, "last": last, **same}


def test_differences_are_paired_by_seed_and_corrected_over_all_tests() -> None:
    lasts: dict[str, Sequence[float]] = {
        "best": (0.5, 0.6, 0.71),
        "ease": (0.4, 0.5, 0.6),
        "simplecil": (0.5, 0.61, 0.7),
    }
    units = [_unit(m, s, v) for m, values in lasts.items() for s, v in enumerate(values)]
    tests = {t["rival"]: t for t in summarise(units[::-1])["tests"]}
    assert tests["ease"]["mean"] == pytest.approx(0.1033, abs=1e-4)
    assert tests["ease"]["low"] > 0
    assert tests["ease"]["p_holm"] == pytest.approx(2 * tests["ease"]["p"])
    assert tests["simplecil"]["low"] < 0 < tests["simplecil"]["high"]


def test_the_page_says_what_its_results_say() -> None:
    results = json.loads((PAGE.with_suffix("") / "methods" / "results.json").read_text())
    assert fill(PAGE.read_text(encoding="utf-8"), results) == PAGE.read_text(encoding="utf-8")
    assert results["summary"] == summarise(results["units"])
