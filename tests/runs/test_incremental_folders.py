"""Folders of images in class-incremental runs: shares for tests, broken files, in memory or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("PIL")

from PIL import Image

from flexkern.runs.incremental import data as reading
from flexkern.runs.incremental import tables
from flexkern.runs.incremental.config import DataConfig, StreamConfig
from flexkern.runs.incremental.data import digest, load_images, make_stream
from flexkern.runs.incremental.growth import differences
from flexkern.runs.incremental.run import run
from flexkern.streams import ImageSource
from flexkern.streams.file_source import FileSource
from helpers.incremental import LEARNERS, configuration


def classes_of(root: Path, count: int, names: str = "abc") -> Path:
    rng = np.random.default_rng(len(root.name))
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split")
    classes_of(root / "train", 4)
    classes_of(root / "test", 2)
    return root


def config(path: Path, **keys: Any) -> DataConfig:
    return DataConfig(kind="folder", path=str(path), size=6, **keys)


def test_in_memory_or_not_the_pixels_are_the_same(split: Path) -> None:
    kept, auto = load_images(config(split, in_memory=True)), load_images(config(split))
    lazy = load_images(config(split, in_memory=False))
    for a, b, c in zip(kept, auto, lazy, strict=True):
        assert isinstance(a.images, torch.Tensor)
        assert torch.equal(a.images, b.images)
        assert isinstance(c.images, ImageSource)
        assert torch.equal(a.images, c.images.tensor())
        assert torch.equal(a.labels, c.labels)
        assert a.names == c.names == ["a", "b", "c"]


def test_what_is_large_is_not_kept(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (4 + 2) * 3 * 3 * 6 * 6  # images of the classes, channels, pixels
    for limit, kind in ((whole, torch.Tensor), (whole - 1, ImageSource)):
        monkeypatch.setattr(reading, "_KEPT", limit)
        assert all(isinstance(part.images, kind) for part in load_images(config(split)))


def test_a_fingerprint_of_files_decodes_none(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = configuration(
        tmp_path / "out", data=config(split, in_memory=False), stream=StreamConfig(increment=2)
    )
    kept = configuration(tmp_path / "out", data=config(split), stream=StreamConfig(increment=2))

    def of(these: Any) -> str:
        return digest(make_stream(these, *load_images(these.data), seed=0))

    pixels = of(kept)

    def refuse(*_: Any) -> Any:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(FileSource, "decode", refuse)
    before = of(whole)
    assert before == of(whole) != pixels
    some = split / "train" / "b" / "1.png"
    content = some.read_bytes()
    try:
        some.write_bytes(content + b"\0")
        assert of(whole) != before
    finally:
        some.write_bytes(content)


def test_a_share_of_a_folder_is_for_tests(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "flat", 5)
    train, test = load_images(config(root, test_share=0.4))
    assert train.labels.bincount().tolist() == [3, 3, 3]
    assert test.labels.bincount().tolist() == [2, 2, 2]
    again = load_images(config(root, test_share=0.4))
    assert torch.equal(again[1].images, test.images)  # always the same ones
    with pytest.raises(FileNotFoundError, match="test_share"):
        load_images(config(root))


def test_broken_files_end_the_run_or_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "split"
    classes_of(root / "train", 3)
    classes_of(root / "test", 1)
    broken = root / "train" / "b" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"b.2\.png"):
        load_images(config(root))
    with pytest.warns(UserWarning, match="a file is left out"):
        train, _ = load_images(config(root, broken="skip"))
    assert train.labels.bincount().tolist() == [3, 2, 3]
    whole = configuration(
        tmp_path / "out", data=config(root, broken="skip"), stream=StreamConfig(increment=1), seeds=(0,)
    )
    with pytest.warns(UserWarning, match="a file is left out"):
        results = run(whole, learners=LEARNERS)
    assert results["left_out"] == 1
    assert "1 file of the images was left out, damaged or of a kind" in " ".join(tables.notes(whole, results))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test_share": 1.0}, "test_share must be a share between 0 and 1, got 1.0"),
        ({"test_share": 0}, "test_share must be a share between 0 and 1, got 0"),
        ({"test_share": "half"}, "test_share must be a share between 0 and 1, got 'half'"),
        ({"broken": "ignore"}, "broken must be one of raise, skip, got 'ignore'"),
        ({"in_memory": "never"}, "in_memory must be 'auto' or true or false, got 'never'"),
        ({"in_memory": 1}, "in_memory must be 'auto' or true or false, got 1"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(Path("x"), **keys)


@pytest.mark.parametrize("keys", [{"test_share": 0.2}, {"broken": "skip"}, {"in_memory": False}])
def test_keys_of_folders_are_for_folders(keys: dict[str, Any]) -> None:
    for kind in ("pack", "digits"):
        with pytest.raises(ValueError, match=rf"{next(iter(keys))} is for folders of images; kind is '{kind}'"):
            DataConfig(kind=kind, **keys)


def test_runs_of_before_these_keys_are_the_same_configuration(tmp_path: Path) -> None:
    now = configuration(tmp_path, data=config(tmp_path)).asdict()
    assert set(now["data"]) == {"kind", "path", "size", "classes", "train_per_class", "test_per_class"}
    kept = configuration(tmp_path, data=config(tmp_path, in_memory=True)).asdict()
    assert differences(now, json.loads(json.dumps(kept))) == []  # the images decide, by their fingerprint
    share = configuration(tmp_path, data=config(tmp_path, test_share=0.5)).asdict()
    assert differences(now, share) == ["data.test_share was null, is 0.5"]
