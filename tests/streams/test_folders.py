"""Folders of images: what is read, left out and refused, in memory or when needed, and a share for tests."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flexkern.streams import Images, ImageSource, class_incremental, image_folder, image_folders, image_source
from flexkern.streams.image_source import identity_of


def picture(path: Path, seed: int, size: tuple[int, int] = (9, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 4, 3 and 2 images."""
    names = "ant/0.png ant/1.jpg ant/deep/2.gif ant/3.tif bee/0.webp bee/1.BMP bee/2.jfif cat/0.ppm cat/1.jpeg"
    for seed, name in enumerate(names.split()):
        if name.endswith("jfif"):
            picture(tmp_path / "x.jpg", seed).rename(tmp_path / name)
        else:
            picture(tmp_path / name, seed)
    return tmp_path


def broken(path: Path, way: str) -> Path:
    """A file that is no picture, or one that is cut off inside."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(content, "png")
    path.write_bytes({"text": b"hello", "cut": content.getvalue()[:-900], "empty": b""}[way])
    return path


# ----------------------------------------------------------------- when needed


@pytest.mark.parametrize("workers", [0, 2])
def test_sources_have_the_pixels_that_memory_would(
    folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_source, "_FEW", 1)
    eager = image_folder(folder, size=6)
    lazy = image_folder(folder, size=6, lazy=True, workers=workers)
    assert isinstance(lazy.images, ImageSource)
    assert lazy.images.shape == eager.images.shape == (9, 3, 6, 6)
    assert torch.equal(lazy.images.tensor(), eager.images)
    assert torch.equal(lazy.labels, eager.labels)
    assert lazy.names == eager.names == ["ant", "bee", "cat"]
    assert lazy.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    again = pickle.loads(pickle.dumps(lazy))
    assert torch.equal(again.images.tensor(), eager.images)
    assert again.names == lazy.names


def test_a_source_names_files_as_they_were_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    images = image_folder(folder.name, size=6, lazy=True).images
    assert images.name(3) == os.path.join(folder.name, "ant", "deep", "2.gif")
    pixels = images[3]
    monkeypatch.chdir(folder)  # and finds them from anywhere
    assert torch.equal(images[3], pixels)


def test_what_decides_the_pixels_is_their_identity(folder: Path) -> None:
    def identity(**options: Any) -> str:
        return identity_of(image_folder(folder, size=6, lazy=True, **options).images)

    first = identity()
    assert identity() == first
    assert identity(background=(0, 0, 0)) != first
    assert identity_of(image_folder(folder, size=5, lazy=True).images) != first
    images = image_folder(folder, size=6, lazy=True).images
    assert identity_of(images[1:]) != identity_of(images[:-1])
    assert identity_of(images[[0, 1]]) != identity_of(images[[1, 0]])
    file = folder / "ant" / "0.png"
    os.utime(file, ns=(0, 1_000_000_007))
    assert identity() != first


def test_of_a_tensor_the_bytes_are_its_identity() -> None:
    x = torch.arange(24).view(2, 3, 4)
    assert identity_of(x) == identity_of(x.clone())
    assert len({identity_of(t) for t in (x, x.view(4, 3, 2), x.to(torch.int32), x + 1, x[:0], x[0, 0, 0])}) == 6
    assert identity_of(x.transpose(0, 1)) == identity_of(x.transpose(0, 1).contiguous())
    assert identity_of(x.bfloat16())


def test_a_stream_of_sources_decodes_nothing_and_keeps_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"increment": 1, "order": [2, 0, 1]}
    eager = class_incremental(*image_folders(folder, size=6, test_share=0.5), **kept)
    train, test = image_folders(folder, size=6, test_share=0.5, lazy=True)
    decode = type(train.images[:1]).decode
    monkeypatch.setattr(type(train.images[:1]), "decode", lambda *_: pytest.fail("decoded"))
    lazy = class_incremental(train, test, **kept)
    monkeypatch.setattr(type(train.images[:1]), "decode", decode)
    assert lazy.class_names == eager.class_names == ["cat", "ant", "bee"]
    for a, b in zip(lazy, eager, strict=True):
        assert torch.equal(a.train_inputs.tensor(), b.train_inputs)
        assert torch.equal(a.test_inputs.tensor(), b.test_inputs)
        assert torch.equal(a.train_labels, b.train_labels)
        assert a.class_names == b.class_names


def test_too_much_for_memory_names_the_way_out(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"9 images of 6 x 6 take 972 bytes, and most_bytes is 971; .* lazy=True"
    ):
        image_folder(folder, size=6, most_bytes=971)
    assert len(image_folder(folder, size=6, most_bytes=971, lazy=True).images) == 9


# ----------------------------------------------------------------- what is no data


def test_links_are_followed_once(folder: Path) -> None:
    expected = image_folder(folder, size=6)
    other = folder.parent / f"{folder.name}-other"
    (folder / "cat").rename(other)
    (folder / "cat").symlink_to(other, target_is_directory=True)
    (folder / "ant" / "deep" / "2.gif").rename(other.parent / f"{other.name}.gif")
    (folder / "ant" / "deep" / "2.gif").symlink_to(other.parent / f"{other.name}.gif")
    (folder / "bee" / "up").symlink_to(folder / "bee", target_is_directory=True)
    found = image_folder(folder, size=6)
    assert torch.equal(found.images, expected.images)


def test_a_class_of_other_files_only_says_which(folder: Path) -> None:
    (folder / "dog").mkdir()
    (folder / "dog" / "phone.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"dog' holds no images \(.*\); '.*phone\.heic': \.heic is not read$"):
        image_folder(folder, size=6)


def test_what_is_left_out_is_named(folder: Path) -> None:
    (folder / "ant" / "phone.HEIC").write_bytes(b"x")
    (folder / "bee" / "drawing.svg").write_bytes(b"x")
    (folder / "bee" / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "beside.png").write_bytes(b"x")
    (folder / "bee" / "note.txt").write_bytes(b"x")
    (folder / "bee" / ".hidden.svg").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"4 files are left out .*; and 1 more$") as caught:
        images = image_folder(folder, size=6)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert {Path(s.path).name: s.why for s in images.skipped} == {
        "phone.HEIC": ".heic is not read",
        "drawing.svg": ".svg is not read",
        "gone.png": "a link to nothing",
        "beside.png": "it is in no class's folder",
    }
    assert len(images.images) == 9
    assert images._replace(names=["a", "b", "c"]).skipped == images.skipped


def test_nothing_is_said_of_a_clean_folder(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_folder(folder, size=6).skipped == ()
        images, labels, names = image_folder(folder, size=6, lazy=True, broken="skip")
    assert len(images) == len(labels) == 9
    assert names == ["ant", "bee", "cat"]


# ----------------------------------------------------------------- broken files


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("way", ["text", "empty"])
def test_a_file_that_is_no_picture_stops_at_the_door(folder: Path, way: str, lazy: bool) -> None:
    file = broken(folder / "bee" / "5.png", way)
    with pytest.raises(ValueError, match="no image, or damaged") as caught:
        image_folder(folder, size=6, lazy=lazy)
    assert repr(str(file)) in str(caught.value)
    assert str(caught.value).endswith("Remove it, or leave out what is broken with broken='skip'")


def test_a_file_that_is_cut_stops_when_it_is_decoded(folder: Path) -> None:
    file = broken(folder / "bee" / "5.png", "cut")
    with pytest.raises(ValueError, match="no image, or damaged") as caught:
        image_folder(folder, size=6)
    assert repr(str(file)) in str(caught.value)
    assert "broken='skip'" in str(caught.value)
    images = image_folder(folder, size=6, lazy=True).images
    assert images[0].shape == (3, 6, 6)
    with pytest.raises(ValueError, match="no image, or damaged") as caught:
        images.tensor()
    assert repr(str(file)) in str(caught.value)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_left_out_when_asked(
    folder: Path, lazy: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_source, "_FEW", 1)
    expected = image_folder(folder, size=6)
    files = [
        broken(folder / f"{of}{way}.png", way) for of in ("ant/0", "cat/x") for way in ("text", "cut", "empty")
    ]
    with pytest.warns(UserWarning, match="6 files are left out") as caught:
        images = image_folder(folder, size=6, lazy=lazy, broken="skip", workers=workers)
    assert len(caught) == 1
    assert [s.path for s in images.skipped] == sorted(map(str, files))
    assert all(s.why.startswith("no image, or damaged") for s in images.skipped)
    pixels = images.images.tensor() if lazy else images.images
    assert torch.equal(pixels, expected.images)
    assert torch.equal(images.labels, expected.labels)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_class_without_images_is_refused(folder: Path, lazy: bool) -> None:
    for file in (folder / "cat").iterdir():
        file.write_bytes(b"hello")
    with pytest.raises(
        ValueError, match=r"no image of class 'cat' can be read; for example '.*0\.ppm': no image"
    ):
        image_folder(folder, size=6, lazy=lazy, broken="skip")


# ----------------------------------------------------------------- a share for tests


def test_a_share_of_each_class_is_for_tests(folder: Path) -> None:
    train, test = image_folders(folder, size=6, test_share=0.3, seed=5)
    assert train.labels.bincount().tolist() == [3, 2, 1]
    assert test.labels.bincount().tolist() == [1, 1, 1]
    everything = image_folder(folder, size=6).images
    both = torch.cat([train.images, test.images])
    assert sorted(both.flatten(1).tolist()) == sorted(everything.flatten(1).tolist())
    again = image_folders(folder, size=6, test_share=0.3, seed=5, lazy=True)
    assert torch.equal(again[1].images.tensor(), test.images)
    others = {tuple(image_folders(folder, size=6, test_share=0.3, seed=s)[1].images[0].flatten().tolist())
              for s in range(9)}  # fmt: skip
    assert len(others) > 1


def test_the_share_does_not_depend_on_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> list[str]:
        images = image_folders(folder, size=6, test_share=0.5, lazy=True)[1].images
        return [images.name(i) for i in range(len(images))]

    first = chosen()
    scan = os.scandir

    class Backwards:
        def __init__(self, path: Any) -> None:
            with scan(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> Any:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert chosen() == first
    picture(folder / "aaa" / "0.png", 50)  # nor on the other classes
    picture(folder / "aaa" / "1.png", 51)
    assert [name for name in chosen() if "aaa" not in name] == first


def test_the_only_folder_is_that_of_training_images(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
    train, test = image_folders(tmp_path, size=4, test_share=0.5)
    assert train.names == test.names == ["a", "b"]
    with pytest.raises(FileNotFoundError, match=r"pass test_share=0\.2"):
        image_folders(tmp_path, size=4)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"test_share: .* has test images of its own, in 'val'"):
        image_folders(tmp_path, size=4, test_share=0.5)


def test_a_single_image_cannot_be_split(folder: Path) -> None:
    (folder / "cat" / "0.ppm").unlink()
    with pytest.raises(ValueError, match="class 'cat' needs at least 2 images to be split, it has 1"):
        image_folders(folder, size=6, test_share=0.2)


# ----------------------------------------------------------------- tables


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
    return tmp_path


def test_a_flat_folder_needs_a_table(flat: Path) -> None:
    with pytest.raises(
        ValueError, match="must hold one folder a class; it has none, but 6 images: pass labels="
    ):
        image_folder(flat, size=4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "file,class\n5.png,cat\n0.png,ant\n1.png,ant\n2.png,cat\n3.png,\"a, b\"\n4.png,cat\n"),
        ("l.tsv", "id\tLabel\tfile_name\n1\tcat\t5.png\n\n2\tant\t./0.png\n3\tant\t1.png\n4\tcat\t2.png\n"
                  "5\ta, b\t3.png\n6\tcat\t4.png\n"),
        ("bom.csv", "\ufefffile,class\r\n5.png,cat\r\n0.png,ant\r\n1.png,ant\r\n2.png,cat\r\n3.png,\"a, b\"\r\n"
                    "4.png,cat\r\n"),
    ],
)  # fmt: skip
def test_tables(flat: Path, name: str, content: str) -> None:
    (flat / name).write_text(content, encoding="utf-8", newline="")
    for labels in (name, flat / name):
        images = image_folder(flat, size=4, labels=labels)
        assert images.names == ["a, b", "ant", "cat"]
        assert images.labels.tolist() == [1, 1, 2, 0, 2, 2]
    mapping = {"0.png": "ant", "1.png": "ant", "2.png": "cat", "3.png": "a, b", "4.png": "cat", "5.png": "cat"}
    same = image_folder(flat, size=4, labels=mapping, names=["cat", "ant", "a, b"])
    assert same.labels.tolist() == [1, 1, 0, 2, 0, 0]
    assert torch.equal(same.images, images.images)


def test_a_table_and_a_share(flat: Path) -> None:
    labels = {f"{i}.png": i % 2 for i in range(5)}
    with pytest.warns(UserWarning, match=r"5\.png': labels names no class for it"):
        train, test = image_folders(flat, size=4, labels=labels, test_share=0.5)
    assert train.names == ["0", "1"]
    assert len(train.images) + len(test.images) == 5
    with pytest.raises(ValueError, match="labels: pass test_share="):
        image_folders(flat, size=4, labels=labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (7, TypeError, "labels must be a mapping or the path of a table, got int"),
        ("none.csv", FileNotFoundError, "labels: no table at 'none.csv', nor in"),
        ({"9.png": "a"}, ValueError, r"labels: '9\.png' is named, and there is no such image in"),
        ({"../x.png": "a"}, ValueError, "there is no such image in"),
        ({"/x.png": "a"}, ValueError, "files must be named within"),
        ({"0.png": ""}, ValueError, r"the class of '0\.png' must be a text of one line, got ''"),
        ({"0.png": 0.5}, TypeError, r"the class of '0\.png' must be a text or a number, got 0\.5"),
        ({"0.png": "a", "./0.png": "b"}, ValueError, r"'0\.png' is of two classes, 'a' and 'b'"),
        ({}, ValueError, "labels: names no file"),
        (
            "0.png,ant\n",
            ValueError,
            "its first line must name the columns 'file' and 'class', separated by commas",
        ),
        ("file;class\n0.png;a\n", ValueError, "must name the columns"),
        ("file,class\n0.png\n", ValueError, "line 2 has 1 cells, and must have 2"),
        ("file,class\n", ValueError, "names no file"),
        ("file,class\n0.png,a\bc\n", ValueError, "must be a text of one line"),
        ("", ValueError, "must name the columns"),
        (b"file,class\n0.png,\xff\n", ValueError, "cannot be read: 'utf-8'"),
        ('file,class\n0.png,"a\n', ValueError, "cannot be read: unexpected end"),
    ],
)
def test_wrong_tables_are_explained(flat: Path, labels: Any, error: type[Exception], message: str) -> None:
    if isinstance(labels, bytes) or (isinstance(labels, str) and not labels.endswith("e.csv")):
        (flat / "labels.csv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
        labels = "labels.csv"
    with pytest.raises(error, match=message):
        image_folder(flat, size=4, labels=labels)


# ----------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 2.5}, TypeError, r"size must be a whole number, got 2\.5"),
        ({"path": b"x"}, TypeError, "path must be a string or a Path, got b'x'"),
        ({"size": True}, TypeError, "size must be a whole number"),
        ({"broken": "ignore"}, ValueError, "broken must be one of"),
        ({"lazy": 1}, TypeError, "lazy must be True or False"),
        ({"workers": -1}, ValueError, "workers must be at least 0"),
        ({"background": "white"}, TypeError, "background must be red, green and blue"),
        ({"most_bytes": None}, TypeError, "most_bytes must be a whole number"),
        ({"names": "ant"}, TypeError, "names must be the classes, a list of texts, got 'ant'"),
        ({"names": ["ant", "ant"]}, ValueError, "names must name each class once, got 'ant' twice"),
        ({"names": []}, ValueError, "names must be 1 to 131072 classes, got 0"),
        ({"names": ["ant", "dog"]}, ValueError, "dog' holds no images"),
        ({"names": [".."]}, ValueError, "names must be folders in"),
        ({"test_share": 0.0, "names": None}, ValueError, r"test_share must be in \(0, 1\), got 0"),
        ({"test_share": "a", "names": None}, TypeError, "test_share must be a number"),
        ({"test_share": 0.5, "seed": -1, "names": None}, ValueError, "seed must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(
    folder: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    read: Callable[..., object] = image_folders if "test_share" in change else image_folder
    options = {"size": 6} | {k: v for k, v in change.items() if not (k == "names" and v is None)}
    with pytest.raises(error, match=message):
        read(options.pop("path", folder), **options)


def test_scalars_of_numpy_and_torch_are_numbers(folder: Path) -> None:
    images = image_folder(folder, size=np.int64(6), background=np.array([1, 2, 3]), workers=torch.tensor(0))
    assert images.images.shape == (9, 3, 6, 6)
    assert isinstance(images, Images)
