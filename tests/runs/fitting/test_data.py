"""What a fit reads: folders with and without test images, tables of classes, tar shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.runs.fitting.data import check_decodes, in_memory, open_images
from helpers.photographs import draw, save

READ: dict[str, Any] = {"size": 16, "broken": "raise", "background": (255, 255, 255), "workers": 0}
NAMES = ["blinds", "zebra"]


def opened(folder: Path, test_share: float | None = None, **changes: Any) -> tuple[Any, Any]:
    return open_images(folder, test_share=test_share, seed=0, **(READ | changes))


def write(folder: Path, motif: str, count: int, kind: str = "webp") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    return [save(draw(motif, rng), kind, folder / f"{motif} {i}") for i in range(count)]


def test_a_fifth_is_for_tests_where_there_are_none(tmp_path: Path) -> None:
    for motif in NAMES:
        write(tmp_path / motif, motif, 10)
    train, test = opened(tmp_path)
    assert (len(train.labels), len(test.labels), train.names) == (16, 4, NAMES)
    assert len(opened(tmp_path, 0.5)[1].labels) == 10


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_that_has_test_images_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    for motif in NAMES:
        write(tmp_path / "train" / motif, motif, 3)
        write(tmp_path / name / motif, motif, 2)
    train, test = opened(tmp_path)
    assert (len(train.labels), len(test.labels)) == (6, 4)
    with pytest.raises(ValueError, match="has test images of its own"):
        opened(tmp_path, 0.2)


def test_a_table_says_the_class_of_each(tmp_path: Path) -> None:
    rows = [f"{path.name},{motif}" for motif in NAMES for path in write(tmp_path, motif, 4)]
    with pytest.raises(ValueError, match=r"beside each other; .* or write a table 'labels.csv'"):
        opened(tmp_path)
    (tmp_path / "labels.csv").write_text("file,class\n" + "\n".join(rows))
    train, test = opened(tmp_path)
    assert (train.names, len(train.labels), len(test.labels)) == (NAMES, 6, 2)


def shard(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            motif, picture = NAMES[i % 2], io.BytesIO()
            draw(motif, rng).save(picture, "PNG")
            for name, content in ((f"{i}.png", picture.getvalue()), (f"{i}.cls", motif.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_tar_shards(tmp_path: Path) -> None:
    one = shard(tmp_path / "train-0.tar", 8)
    shard(tmp_path / "train-1.tar", 4)
    train, test = opened(tmp_path)
    assert (train.names, len(train.labels), len(test.labels)) == (NAMES, 10, 2)
    assert len(opened(one)[0].labels) == 6
    shard(tmp_path / "test-0.tar", 2)
    train, test = opened(tmp_path)
    assert (len(train.labels), len(test.labels)) == (12, 2)


def test_what_is_kept_in_memory_has_the_same_pixels(tmp_path: Path) -> None:
    for motif in NAMES:
        write(tmp_path / motif, motif, 5)
    source, told = opened(tmp_path)[0].images, []
    kept = in_memory(source, source.shape.numel(), lambda *here: told.append(here))
    assert torch.equal(kept, source.tensor())
    assert told == [(8, 8)]
    assert in_memory(source, source.shape.numel() - 1, lambda *_: None) is source
    assert in_memory(kept, 0, lambda *_: None) is kept


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    for path in write(tmp_path / "zebra", "zebra", 6, "jpeg")[:5]:
        path.write_bytes(path.read_bytes()[:-100])  # its head is sound
    train, test = opened(tmp_path)
    told: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="; nor can 2 others be read") as caught:
        check_decodes((train.images, test.images), lambda *here: told.append(here))
    assert "leave it out with --broken skip" in str(caught.value)
    assert str(caught.value).count("zebra") == 6  # three paths, each with the class's folder
    assert told[-1] == (6, 6)
