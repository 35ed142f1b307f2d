"""Archives and folders of images that are damaged, or were made to do harm: each is refused, and named."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flexkern.streams import image_folder, image_pack, images_of, mnist
from flexkern.streams.packs import MOST_CLASSES, image_folders

PIXELS = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
GOOD: dict[str, Any] = {"x_train": PIXELS, "y_train": [0, 1], "x_test": PIXELS, "y_test": [0, 1]}


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array))
    return out.getvalue()


def write(path: Path, changes: dict[str, Any], method: int = zipfile.ZIP_STORED) -> Path:
    """An archive with some of its members in place of the good ones; bytes are members as they are."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in (GOOD | changes).items():
            if value is not None:
                archive.writestr(f"{name}.npy", value if isinstance(value, bytes) else npy(value))
    return path


def png(width: int = 8, height: int = 8, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), 7).save(out, "png")
    return out.getvalue()


def _floating() -> bytes:
    out = io.BytesIO()
    Image.new("F", (8, 8), 7.0).save(out, "tiff")
    return out.getvalue()


FLOATING = _floating()


def png_that_says(width: int, height: int) -> bytes:
    """A few bytes that promise a picture of such sides."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [ihdr, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(*images: bytes) -> dict[str, Any]:
    offsets = np.cumsum([0, *map(len, images)])
    return {"x_train": None, "x_train_png": np.frombuffer(b"".join(images), np.uint8), "x_train_off": offsets}


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "a label of 2**63": ({"y_train": np.array([0, 2**63], np.uint64)}, "y_train .* got 0 to 9223"),
    "a label of 10**9": ({"y_train": [0, 10**9]}, "y_train .* got 0 to 1000000000"),
    "labels that are objects": ({"y_train": np.array([0, None])}, "y_train .* Python objects"),
    "names that are objects": ({"names": np.array(["a", None])}, "names .* Python objects"),
    "names that are numbers": ({"names": np.zeros((2, 2))}, "names .* must be a list of texts"),
    "names in Latin-1": ({"names": np.array(["\xe4".encode("latin-1"), b"b"])}, "names .* not UTF-8"),
    "names without bytes": ({"names": header("<U0", (3 * 10**8,))}, "names .* has no bytes"),
    "too many names": ({"names": np.zeros(140_000, "S1")}, "names .* names 140000 classes; at most 131072"),
    "names that are no characters": ({"names": header("<U1", (2,)) + b"\xff" * 8}, "names .* is not UTF-8"),
    "labels that are times": ({"y_train": np.array([0, 1], "m8[s]")}, "y_train .* whole numbers"),
    "offsets that are times": (encoded(png(), png()) | {"x_train_off": np.zeros(3, "m8[s]")}, "whole numbers"),
    "terabytes": ({"x_train": header("|u1", (2, 10**6, 10**6, 3)) + b"\0" * 10}, "x_train .* takes 6000000"),
    "more than 2**64 bytes": ({"x_train": header("|u1", (2**40, 2**40, 3))}, "x_train .* takes "),
    "a shape of minus one": ({"x_train": header("|u1", (-1, 8, 8))}, "x_train .*"),
    "no header": ({"x_train": b"12345678901234567890"}, "x_train .* cannot be read"),
    "no Python in a header": ({"y_train": npy([0, 1]).replace(b"{", b"{\0")}, "y_train .* cannot"),
    "an empty member": ({"x_train": b""}, "x_train .* cannot be read"),
    "bytes too many": ({"x_train": npy(PIXELS) + b"0"}, "x_train .* the archive has"),
    "pictures of no pixels": ({"x_train": np.zeros((2, 0, 8, 3), np.uint8)}, "x_train .* images must be uint8"),
    "offsets that are no numbers": (encoded(png(), png()) | {"x_train_off": [0.0, 1.0, 2.0]}, "whole numbers"),
    "no offsets": (encoded(png(), png()) | {"x_train_off": np.zeros(0, int)}, "rise from 0"),
    "huge offsets": (encoded(png(), png()) | {"x_train_off": np.array([0, 2**63, 2**64 - 1], "u8")}, "rise"),
    "a truncated picture": (encoded(png(), png()[:-30]), "x_train_png .* number 1: no image, or damaged"),
    "a promise of pixels": (encoded(png_that_says(30_000, 30_000), png()), "number 0: .*900000000 pixels"),
    "another promise": (encoded(png(), png_that_says(30_000, 30_000)), "number 1: .*900000000 pixels"),
    "values of no picture": (encoded(FLOATING, FLOATING), r"number 0: its pixels are floating .* got 7 to 7"),
    "no picture": (encoded(b"", b"hello"), "number 0: no image, or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(case: str, tmp_path: Path) -> None:
    changes, message = ARCHIVES[case]
    path = write(tmp_path / "a.npz", changes)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            image_pack(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert most < 30 << 20


def test_a_bomb_is_counted_before_it_is_unpacked(tmp_path: Path) -> None:
    """300 MB out of 0.3 MB: as labels, as pictures that no labels are for, and as pictures that have labels."""
    zeros = np.zeros(3 * 10**8, np.uint8)
    cases = {
        "labels": {"y_train": zeros},
        "pictures": {"x_train": zeros.reshape(-1, 100, 100, 3)},
        "both": {"x_train": zeros.reshape(-1, 100, 100, 3), "y_train": zeros[: 10**4]},
    }
    for name, changes in cases.items():
        path = write(tmp_path / f"{name}.npz", changes, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10**6
        tracemalloc.start()
        try:
            limit = {"most_bytes": 10**8} if name == "both" else {}
            with pytest.raises(ValueError, match="are read" if limit else "labels in train") as caught:
                image_pack(path, **limit)
            assert tracemalloc.get_traced_memory()[1] < 5 << 20
        finally:
            tracemalloc.stop()
        assert str(path) in str(caught.value)


def _central(path: Path, offset: int, value: int) -> None:
    """Writes a 32-bit field of the first entry of the zip's directory."""
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + offset
    content[place : place + 4] = struct.pack("<I", value)
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [16, 20, 24, 42], ids=["checksum", "packed size", "size", "place"])
def test_a_directory_that_lies(offset: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {})
    _central(path, offset, 0x7FFFFFF0)
    with pytest.raises(ValueError, match="x_train") as caught:
        image_pack(path)
    assert str(path) in str(caught.value)


def test_members_that_are_there_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y_train.npy", npy([1, 0]))
    with pytest.raises(ValueError, match=r"a\.npz' has 'y_train\.npy' twice"):
        image_pack(path)


def test_damage_is_seen(tmp_path: Path) -> None:
    """A bit of a picture: the archive's own sum is looked at."""
    path = write(tmp_path / "a.npz", {})
    content = bytearray(path.read_bytes())
    content[content.index(PIXELS.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x_train in .* cannot be read: Bad CRC"):
        image_pack(path)


def test_forms_that_are_right(tmp_path: Path) -> None:
    """Another byte order of labels, columns first, an archive within the limit."""
    labels = np.array([0, 3], ">i8")
    changes = {"x_train": np.asfortranarray(PIXELS), "y_train": labels, "y_test": labels.astype(np.uint64)}
    train, test = image_pack(write(tmp_path / "a.npz", changes), most_bytes=PIXELS.nbytes)
    assert train.labels.tolist() == test.labels.tolist() == [0, 3]
    np.testing.assert_array_equal(train.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    grey = write(tmp_path / "b.npz", {"x_train": PIXELS[..., 0]})
    with pytest.raises(ValueError, match="2 images of 8 x 8 take 384 bytes, and most_bytes is 383"):
        image_pack(grey, most_bytes=PIXELS.nbytes - 1)
    with pytest.raises(
        ValueError, match=r"x_train .* has 384 bytes, uint8 \(2, 8, 8, 3\); at most 383 are read"
    ):
        image_pack(tmp_path / "a.npz", most_bytes=PIXELS.nbytes - 1)


def test_digits_of_such_an_archive(tmp_path: Path) -> None:
    for changes, message in (
        ({"y_train": np.array([0, 2**63], np.uint64)}, "labels .* must be 0 to 9"),
        ({"y_train": [0.0, 1.0]}, "labels float64"),
        ({"x_train": npy(PIXELS[..., 0])[:-1]}, "x_train .* the archive has"),
    ):
        path = write(tmp_path / "m.npz", {"x_train": PIXELS[..., 0], "x_test": PIXELS[..., 0]} | changes)
        with pytest.raises(ValueError, match=message) as caught:
            mnist(path)
        assert str(path) in str(caught.value)


# ------------------------------------------------------------------ folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.png").write_bytes(png())
    return tmp_path


def test_what_is_no_data_is_left_out(folder: Path) -> None:
    expected = image_folder(folder / "train", size=8)
    a = folder / "train" / "a"
    (a / "dir.png").mkdir()
    (a / "._0.png").write_bytes(b"\0\5\x16\7")
    (a / ".hidden").mkdir()
    (a / ".hidden" / "1.png").write_bytes(png())
    for other in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (folder / "train" / other).mkdir()
        (folder / "train" / other / "0.png").write_bytes(b"no picture")
    found = image_folder(folder / "train", size=8)
    assert found.names == ["a", "b"]
    assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image, or damaged"),
        (b"hello", "no image, or damaged"),
        (png()[:-30], "no image, or damaged"),
        (FLOATING, r"its pixels are floating \(mode F\) and must be in \[0, 1\], got 7 to 7"),
        (png_that_says(30_000, 30_000), "900000000 pixels"),
        (png(20_000, 1), "10240000 x 512 when the shorter side of 20000 x 1 is resized to 512"),
    ],
    ids=["empty", "text", "truncated", "floating", "a promise", "thin"],
)
def test_a_file_that_is_no_picture(folder: Path, content: bytes, message: str) -> None:
    file = folder / "train" / "b" / "1.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        image_folder(folder / "train", size=512)
    assert str(file) in str(caught.value)


def test_a_size_that_no_memory_has(folder: Path) -> None:
    with pytest.raises(ValueError, match="2 images of 1000000 x 1000000 take 6000000000000 bytes"):
        image_folder(folder / "train", size=10**6)


@pytest.mark.parametrize(
    "name", ["../../outside.png", "/outside.png", "..", "x/../0.png", "a\\b.png", "0.png\0"]
)
def test_annotations_name_files_of_their_folder(folder: Path, name: str) -> None:
    (folder / "outside.png").write_bytes(png())
    images = folder / "val" / "images"
    images.mkdir()
    (images / "0.png").write_bytes(png())
    if name == "/outside.png":
        name = os.fspath(folder / "outside.png")
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(f"0.png\ta\n{name}\tb\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must name files of the folder 'images' beside it") as caught:
        image_folders(folder, size=8)
    assert str(annotations) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0.png\ta\n0.png\tb\n", "names '0.png' twice"),
        (b"1.png\ta\n", "names '1.png', and there is no such file"),
        (b"\xff\ta\n", "is not UTF-8"),
        (b"\n", "there is no class in it"),
    ],
)
def test_wrong_annotations(folder: Path, content: bytes, message: str) -> None:
    (folder / "val" / "images").mkdir()
    (folder / "val" / "images" / "0.png").write_bytes(png())
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        image_folders(folder, size=8)
    assert str(annotations) in str(caught.value)


def test_a_folder_whose_name_is_of_another_encoding(folder: Path) -> None:
    try:
        os.mkdir(os.fsencode(folder / "train") + b"/\xff")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(ValueError, match="not UTF-8"):
        image_folder(folder / "train", size=8)


# ------------------------------------------------------------------ data sets


class Lazy(torch.utils.data.Dataset):
    """Pictures that are decoded when their pixels are asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return Image.open(io.BytesIO(self.content if i else png())), i


@pytest.mark.parametrize(
    ("dataset", "size", "error", "message"),
    [
        (Lazy(png()[:-30]), None, ValueError, "dataset: image 1: "),
        (Lazy(png(20_000, 1)), 512, ValueError, "dataset: image 1: .* 10240000 x 512"),
        (Lazy(FLOATING), None, ValueError, "dataset: image 1: its pixels are floating"),
        ([(PIXELS[0], 10**9)], None, ValueError, "label of image 0 must be under 131072, got 1000000000"),
        ([(PIXELS[0], np.uint64(2**63))], None, ValueError, "label of image 0 must be under"),
        ([(PIXELS[0], float("inf"))], None, TypeError, "label of image 0 must be a whole number"),
        ([(PIXELS[0], float("nan"))], None, TypeError, "label of image 0 must be a whole number"),
    ],
)
def test_data_sets(dataset: Any, size: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images_of(dataset, size=size)
    assert MOST_CLASSES == 131072
