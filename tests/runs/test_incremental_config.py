"""Configurations of class-incremental runs: strict, and the shipped ones say what the papers say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flexkern.runs.incremental.config import (
    CONFIGS,
    Config,
    find_config,
    parse_config,
    read_config,
    shipped,
)

GOOD = """
title = "Mine"
seeds = [1, 2]
[data]
path = "x.npz"
classes = [3, "50-52"]
[stream]
increment = 2
[backbone]
name = "folder"
[learner]
epochs = 7
lr = 0.1
[[methods]]
name = "A"
method = "artsy"
lr = 0.2
gate = { gate = "ridge" }
paper = { average = 90, last = 80.5, source = "here", epochs = 20 }
[[methods]]
name = "B"
method = "simplecil"
"""


def read(text: str, tmp_path: Path) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return read_config(path)


def test_a_configuration(tmp_path: Path) -> None:
    config = read(GOOD, tmp_path)
    assert (config.title, config.seeds, config.backbone, config.device) == ("Mine", (1, 2), "folder", "auto")
    assert config.data.classes == (3, 50, 51, 52)
    assert (config.stream.base, config.stream.seed) == (0, 1993)
    first, second = config.methods
    assert first.options == {
        "epochs": 7,
        "lr": 0.2,
        "gate": {"gate": "ridge"},
    }  # its own goes before the shared
    assert second.options == {"epochs": 7, "lr": 0.1}
    assert first.paper is not None
    assert (first.paper.average, first.paper.last, first.paper.epochs) == (90, 80.5, 20)
    assert second.paper is None
    # What is written as JSON and read again is equal, or no run could go on.
    assert json.loads(json.dumps(config.asdict(), allow_nan=False)) == config.asdict()


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    config = read(GOOD, tmp_path)
    changed = config.override(data="y.npz", backbone="small", seeds=[5], device="cpu", out="there")
    assert (changed.data.path, changed.backbone, changed.seeds) == ("y.npz", "small", (5,))
    assert (changed.device, changed.out) == ("cpu", "there")
    assert changed.data.classes == config.data.classes
    assert config.override() == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", r"unknown key 'titel' \(did you mean title\?\); allowed are backbone, data"),
        ("path =", "pth =", r"\[data\]: unknown key 'pth' \(did you mean path\?\)"),
        ("increment =", "incremnt =", r"\[stream\]: unknown key 'incremnt' \(did you mean increment\?\)"),
        ('name = "folder"', 'path = "folder"', r"\[backbone\]: unknown key 'path'; allowed are name"),
        ("average = 90,", "mean = 90,", r"methods, entry 1, paper\]: unknown key 'mean'"),
        ("average = 90", "average = 900", "average must be an accuracy in percent"),
        (
            "increment = 2",
            "increment = 0",
            r"\[stream\]: increment must be a whole number of at least 1, got 0",
        ),
        ("increment = 2", "increment = 2.0", "increment must be a whole number"),
        ("increment = 2", "increment = true", "increment must be a whole number"),
        ("increment = 2", "base = 2", r"\[stream\]: increment is missing"),
        ("increment = 2", 'increment = 2\nseed = "walk"', "seed must be a whole number of at least 0 or 'run'"),
        ("increment = 2", "increment = 2\norder = [1, 1]", "order must name each class once"),
        ("increment = 2", "increment = 2\norder = [1, 2]", "stream.order and data.classes exclude each other"),
        (
            'path = "x.npz"',
            'kind = "zip"',
            r"\[data\]: kind must be one of pack, folder, digits, domainnet, core50, got 'zip'",
        ),
        ('path = "x.npz"', 'kind = "folder"', r"\[data\]: size is needed for folders"),
        ('path = "x.npz"', "path = 3", "path must be a text, got 3"),
        ('"50-52"', '"52-50"', "classes: '52-50' is neither a number nor a range"),
        ("seeds = [1, 2]", "seeds = [1, 1]", r"seeds must not occur twice, got \[1, 1\]"),
        ("seeds = [1, 2]", "seeds = 3", "seeds must be a list of at least one number, got 3"),
        ("seeds = [1, 2]", "seeds = []", "seeds must be a list"),
        ('name = "B"', 'name = "A"', "methods: name must not occur twice"),
        ('name = "B"', "", "methods, entry 2: name is missing"),
        ("lr = 0.2", 'device = "cpu"', "methods, entry 1: device is not an option of a method"),
        ("epochs = 7", "paper = 7", r"\[learner\]: paper has a place of its own"),
        ("epochs = 7", "seed = 7", r"\[learner\]: seed has a place of its own"),
        ("[[methods]]", "[[method]]", r"unknown key 'method' \(did you mean methods\?\)"),
        ("increment = 2", "increment = = 2", "Invalid"),
        ("increment = 2", "increment = inf", "increment must be a whole number"),
        ("increment = 2", f"increment = {10**30}", "increment must be at most 2147483648"),
        ("increment = 2", f"increment = {'9' * 5000}", "Exceeds the limit"),
        ("seeds = [1, 2]", f"seeds = [{2**53}]", "seeds must be at most 9007199254740991"),
        ("increment = 2", f"increment = 2\nseed = {2**32}", "seed must be at most 4294967295"),
        ('"50-52"', '"0-999999999999"', "classes must be labels under 131072, got '0-999999999999'"),
        ('"50-52"', '"0-131071", "0-131071"', "classes must name each class once"),
        ('"50-52"', '"\u0663-\u0665"', "is neither a number nor a range"),
        ('path = "x.npz"', 'path = "\\u0000"', r"path must be a text, got '\\x00'"),
        ("lr = 0.2", "lr = nan", "methods, entry 1: lr must be finite, got nan"),
        ("lr = 0.2", "goal = {a = [inf]}", r"methods, entry 1: goal\.a must be finite, got inf"),
        ("lr = 0.2", "lr = 1979-05-27", "methods, entry 1: lr must be a text, a number or a list or table"),
        ("lr = 0.2", f"lr = {2**64}", "methods, entry 1: lr must be a number of 64 bits"),
        ("lr = 0.2", f"lr = {'[' * 30}{']' * 30}", "methods, entry 1: lr is nested too deeply"),
        ("lr = 0.2", f"lr = {'[' * 100_000}", "its tables or lists are nested too deeply"),
        ("lr = 0.2", f"lr = {'{a = ' * 10_000}", "its tables or lists are nested too deeply"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=message) as caught:
        read(GOOD.replace(old, new), tmp_path)
    assert "c.toml" in str(caught.value)


@pytest.mark.parametrize("missing", ["data", "stream", "methods"])
def test_missing_sections_are_named(missing: str) -> None:
    table: dict[str, Any] = {"data": {}, "stream": {"increment": 1}, "methods": [{"name": "a", "method": "b"}]}
    assert parse_config(table).stream.increment == 1
    del table[missing]
    with pytest.raises(ValueError, match=rf"\[{missing}\]+ is missing"):
        parse_config(table)


def test_sections_must_be_tables() -> None:
    good: dict[str, Any] = {"data": {}, "stream": {"increment": 1}, "methods": [{"name": "a", "method": "b"}]}
    for change in ({"data": 3}, {"backbone": "small"}, {"learner": [1]}):
        with pytest.raises(ValueError, match="must be a table"):
            parse_config(good | change)
    with pytest.raises(ValueError, match=r"methods must be a list of tables: \[\[methods\]\]"):
        parse_config(good | {"methods": {"name": "a"}})
    with pytest.raises(ValueError, match="methods, entry 1 must be a table"):
        parse_config(good | {"methods": ["a"]})
    with pytest.raises(ValueError, match="at least one entry"):
        parse_config(good | {"methods": []})


def test_python_310_without_tomli_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ImportError, match="pip install tomli"):
        read(GOOD, tmp_path)


# ----------------------------------------------------------------- shipped ones


def test_shipped_ones_are_found_by_name() -> None:
    assert find_config("digits") == CONFIGS / "digits.toml"
    with pytest.raises(FileNotFoundError, match="did you mean 'cifar100_b0_inc10'"):
        find_config("cifar100_b0_inc1")
    with pytest.raises(FileNotFoundError, match="shipped ones are cifar100_b0_inc10, "):
        find_config("nothing.toml")


@pytest.mark.parametrize("name", shipped())
def test_shipped_ones_are_valid(name: str) -> None:
    config = read_config(find_config(name))
    assert config.out == f"out/{name}"
    assert config.stream.seed == 1993
    methods = {m.method for m in config.methods}
    # Sub-networks for each task are not trained on a few images.
    assert (
        {"simplecil", "finetune"} if config.stream.online else {"artsy", "ease", "simplecil", "finetune"}
    ) <= methods


@pytest.mark.parametrize(
    ("name", "method", "stream", "figure"),
    [
        ("cifar100_b0_inc10", "artsy", (0, 10), (92.44, 87.94, "arXiv 2410.05899")),
        ("cifar100_b0_inc5", "ease", (0, 5), (91.51, 85.80, "arXiv 2403.12030")),
        ("tinyimagenet_5steps", "artsy", (100, 20), (87.30, 84.59, "arXiv 2410.05899")),
    ],
)
def test_shipped_ones_are_the_papers(
    name: str, method: str, stream: tuple[int, int], figure: tuple[float, float, str]
) -> None:
    config = read_config(find_config(name))
    assert config.backbone == "google/vit-base-patch16-224-in21k"
    assert (config.stream.base, config.stream.increment) == stream
    (one,) = [m for m in config.methods if m.paper is not None]
    assert one.method == method
    assert one.paper is not None
    assert (one.paper.average, one.paper.last, one.paper.source) == figure
    recipe = {
        "epochs": 20,
        "lr": 0.025,
        "weight_decay": 5e-4,
        "batch_size": 48,
        "crop": [0.05, 1.0],
        "flip": 0.5,
    }
    assert {k: one.options[k] for k in recipe} == recipe
    assert one.options["rank"] == 64


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(ValueError, match=r"c\.toml: 'utf-8' codec can't decode"):
        read_config(tmp_path / "c.toml")


STREAMS = {
    "blurry": 'kind = "blurry"\ntasks = 2',
    "slots": 'kind = "class-repetition"\nexperiences = 3\nclasses_per_experience = 2',
    "chance": 'kind = "class-repetition"\nexperiences = 3\nprobability = 0.5\nonline = 10',
}


@pytest.mark.parametrize("which", STREAMS)
def test_other_streams(which: str, tmp_path: Path) -> None:
    config = read(GOOD.replace("increment = 2", STREAMS[which]), tmp_path)
    assert json.loads(json.dumps(config.asdict(), allow_nan=False)) == config.asdict()
    assert config.asdict()["stream"]["kind"] == config.stream.kind


def test_streams_of_before_are_the_same_configuration(tmp_path: Path) -> None:
    assert sorted(read(GOOD, tmp_path).asdict()["stream"]) == ["base", "increment", "order", "seed"]
    online = read(GOOD.replace("increment = 2", "increment = 2\nonline = 1"), tmp_path)
    assert online.asdict()["stream"]["online"] == 1


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ('kind = "blury"\nincrement = 2', r"\[stream\]: kind must be one of class-incremental, domain-"),
        ('kind = "blurry"', r"\[stream\]: tasks is missing"),
        (
            'kind = "blurry"\ntasks = 2\nincrement = 2',
            "increment is for streams of kind 'class-incremental'; kind",
        ),
        ('kind = "blurry"\ntasks = 2\nblur = 1.0', "blur must be a share from 0 to under 1, got 1.0"),
        ('kind = "blurry"\ntasks = 2\ndisjoint = 50', "disjoint must be a share from 0 to 1, got 50"),
        ('kind = "blurry"\ntasks = 9', "stream.tasks is 9, but only 4 classes take part"),
        ("increment = 2\nblur = 0.2", r"\[stream\]: blur is for streams of kind 'blurry'; kind is 'class-"),
        ("increment = 2\nonline = -1", "online must be a whole number of at least 0, got -1"),
        ('kind = "class-repetition"', "experiences is missing"),
        ('kind = "class-repetition"\nexperiences = 3', "needs classes_per_experience or probability"),
        ('kind = "class-repetition"\nexperiences = 3\nprobability = 2.0', "probability must be a probability"),
        ('kind = "domain-incremental"\norder = [3]', "order is of classes"),
    ],
)
def test_what_is_wrong_with_other_streams(stream: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(GOOD.replace("increment = 2", stream), tmp_path)
