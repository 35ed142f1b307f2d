"""Tar shards: images read from their places, and archives that are damaged or were made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flexkern.streams import Images, ImageSource, class_incremental, image_shards
from flexkern.streams import image_source as reading
from flexkern.streams.image_source import identity_of

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 6, 3), dtype=np.uint8)


def png(i: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(COLOURS[i]).save(content, "png")
    return content.getvalue()


def write(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, labels: dict[int, Any], **options: Any) -> Path:
    files: dict[str, bytes] = {}
    for i, label in labels.items():
        files[f"part/{i:04d}.png"] = png(i)
        files[f"part/{i:04d}.cls"] = str(label).encode()
    return write(path, files, **options)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [shard(tmp_path / "a-00.tar", {0: "cat", 1: "ant", 2: "cat"}),
            shard(tmp_path / "a-01.tar", {3: "bee", 4: "ant", 5: "bee"})]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_from_their_places(
    two: list[Path], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_FEW", 1)
    lazy = image_shards(two, size=6, workers=workers)
    assert isinstance(lazy.images, ImageSource)
    assert lazy.names == ["ant", "bee", "cat"]
    assert lazy.labels.tolist() == [2, 0, 2, 1, 0, 1]
    np.testing.assert_array_equal(lazy.images.tensor().permute(0, 2, 3, 1).numpy(), COLOURS)
    eager = image_shards(two, size=4, lazy=False)
    assert torch.equal(eager.images, image_shards(two, size=4).images.tensor())
    again = pickle.loads(pickle.dumps(lazy.images))
    np.testing.assert_array_equal(again[[4]].tensor().permute(0, 2, 3, 1).numpy(), COLOURS[4:5])
    assert lazy.images.name(4) == f"{two[1]}/part/0004.png"


def test_paths(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = image_shards(two, size=6)
    monkeypatch.chdir(tmp_path)
    for paths in (f"{tmp_path}/a-*.tar", f"{tmp_path}/a-{{00..01}}.tar", ["a-00.tar", Path("a-01.tar")], "a-*"):
        found = image_shards(paths, size=6)
        assert identity_of(found.images) == identity_of(expected.images)
    assert len(image_shards("a-01.tar", size=6).images) == 3
    for missing in ("b.tar", "b-*.tar", "a-{00..02}.tar", ["a-00.tar", "b.tar"], str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="paths: no tar archive at"):
            image_shards(missing, size=6)
    with pytest.raises(ValueError, match=r"'a-00\.tar' is named twice"):
        image_shards(["a-00.tar", "a-00.tar"], size=6)
    with pytest.raises(ValueError, match="at least one"):
        image_shards([], size=6)
    with pytest.raises(TypeError, match="paths must be"):
        image_shards(7, size=6)  # type: ignore[arg-type]


def test_identities(two: list[Path]) -> None:
    images = image_shards(two, size=6).images
    first = identity_of(images)
    assert identity_of(images[:3]) != identity_of(images[3:])
    assert identity_of(image_shards(two, size=6, background=(0, 0, 0)).images) != first
    shard(two[1], {3: "bee", 4: "ant", 5: "bee"})
    assert identity_of(image_shards(two, size=6).images) != first


def test_labels(tmp_path: Path) -> None:
    numbers = shard(tmp_path / "n.tar", {0: 2, 1: "0\n"})
    assert image_shards(numbers, size=6).labels.tolist() == [2, 0]
    assert image_shards(numbers, size=6).names == ["0", "1", "2"]
    assert image_shards(numbers, size=6, names=["x", "y", "z"]).names == ["x", "y", "z"]
    with pytest.raises(ValueError, match="names: there are 2, and labels up to 2"):
        image_shards(numbers, size=6, names=["x", "y"])
    files = {"0.PNG": png(0), "0.json": json.dumps({"label": "bee", "other": 3}).encode(), "0.seg.png": b"mask"}
    named = write(tmp_path / "j.tar", {"./1.png": png(1), "./1.json": b'{"cls": "ant"}'} | files)
    found = image_shards(named, size=6, names=["bee", "cow", "ant"])
    assert found.labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="class 'ant' is none of them: bee"):
        image_shards(named, size=6, names=["bee"])
    with pytest.raises(ValueError, match=r"labels must be all numbers or all names, and there are 0 and 'ant'"):
        image_shards([numbers, named], size=6)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_all_forms(form: int, tmp_path: Path) -> None:
    folder = "deep/" * 18 + "ü" * 40
    path = write(tmp_path / "a.tar", {f"{folder}/7.png": png(0), f"{folder}/7.cls": b"0"}, format=form)
    images = image_shards(path, size=6).images
    assert images.name(0) == f"{path}/{folder}/7.png"
    np.testing.assert_array_equal(images.tensor()[0].permute(1, 2, 0).numpy(), COLOURS[0])


def test_a_stream_of_shards(two: list[Path]) -> None:
    images = image_shards(two, size=6)
    stream = class_incremental(images, images, increment=1, order=[2, 0, 1])
    assert stream.class_names == ["cat", "ant", "bee"]
    assert stream[0].train_inputs.name(1).endswith("0002.png")
    assert isinstance(images, Images)


def test_broken_images(tmp_path: Path) -> None:
    images_of = [(png(0), b"a"), (png(1)[:-40], b"a"), (b"no", b"b"), (png(3), b"b")]
    files = {f"{i}.png": image for i, (image, _) in enumerate(images_of)}
    files |= {f"{i}.cls": label for i, (_, label) in enumerate(images_of)}
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=r"a\.tar/2\.png': no image, or damaged"):
        image_shards(path, size=6)
    for lazy in (True, False):
        with pytest.warns(UserWarning, match="2 files are left out"):
            images = image_shards(path, size=6, broken="skip", lazy=lazy)
        assert [Path(s.path).name for s in images.skipped] == ["1.png", "2.png"]
        assert images.labels.tolist() == [0, 1]


# ----------------------------------------------------------------- archives that do harm


END = b"\0" * 1024


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    """A header that says anything."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def labelled(label: bytes, suffix: str = "cls") -> bytes:
    return member("0.png", 0) + member(f"0.{suffix}", len(label)) + padded(label) + END


def said(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("x", len(content), kind) + padded(content) + END


SAMPLE = member("0.png", len(png(0))) + padded(png(0)) + member("0.cls", 1) + padded(b"0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no tar archive, or holds nothing"),
        (b"hello" * 300, "is no tar archive at byte 0"),
        (END, "is no tar archive, or holds nothing"),
        (gzip.compress(SAMPLE + END), r"is compressed \(gzip\): unpack it"),
        (b"BZh9" + b"1" * 600, r"is compressed \(bzip2\)"),
        (SAMPLE + b"x" * 512, "has a broken header at byte"),
        (SAMPLE + member("1.png", 10**9), "'1.png' would have 1000000000 bytes, past the archive's"),
        (SAMPLE + member("1.png", 8 << 60), "would have .* bytes, past the archive's"),
        (member("a.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd") + END, "'a.png' is a link, a device"),
        (member("a.png", kind=tarfile.LNKTYPE, linkname="0.png") + END, "'a.png' is a link, a device"),
        (member("a.png", kind=tarfile.CHRTYPE) + END, "'a.png' is a link, a device"),
        (member("a.png", kind=tarfile.FIFOTYPE) + END, "'a.png' is a link, a device"),
        (member("a.png", kind=tarfile.GNUTYPE_SPARSE) + END, "sparse"),
        (member("x", 10, tarfile.GNUTYPE_LONGNAME) + END, None),
        (said(b"a" * (1 << 17), tarfile.GNUTYPE_LONGNAME), "131072 bytes are said of one member; at most"),
        (said(b"99999999 path=aaaaaa\n"), "said of a member is damaged"),
        (said(b"9 path aa"), "said of a member is damaged"),
        (said(b"21 GNU.sparse.size=5\n"), "sparse, or too large"),
        (said(b"13 size=9999\n"), "sparse, or too large"),
        (member("0.png", len(png(0))) + padded(png(0)) + END, r"'0\.png' .* has no label: a file \.cls"),
        (SAMPLE + member("0.jpg", 0) + END, "two images of one sample, '0.png' and '0.jpg'"),
        (SAMPLE + member("0.cls", 0) + END, r"has '0\.cls' twice"),
        (member("0.cls", 1) + padded(b"0") + END, "hold no images"),
        (labelled(b"-1"), "must be a number or a name of a class"),
        (labelled(b"131072"), "at most 131071"),
        (labelled(b""), "must be a number or a name of a class"),
        (labelled(b"\xff"), r"its \.cls cannot be read: 'utf-8'"),
        (labelled(b"1" * (1 << 17)), "131072 bytes; at most 65536"),
        (labelled(b"[]", "json"), "it has none of label, cls, class"),
        (labelled(b"{{{{", "json"), r"its \.json cannot be read"),
        (labelled(b"[" * 60_000, "json"), r"its \.json cannot be read"),
        (labelled(b'{"label": true}', "json"), "must be a number or a name of a class"),
        (labelled(b'{"label": 1.5}', "json"), "must be a number or a name of a class"),
        (labelled(b"0"), "no image, or damaged"),
    ],
)  # fmt: skip
def test_archives_that_are_refused(content: bytes, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        image_shards(path, size=6)
    assert str(path) in str(caught.value)


def test_an_archive_that_is_shorter_than_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(SAMPLE + END)
    images = image_shards(path, size=6).images
    path.write_bytes(SAMPLE[:600])
    with pytest.raises(ValueError, match=r"a\.tar/0\.png': the archive is shorter than it was"):
        images[0]
