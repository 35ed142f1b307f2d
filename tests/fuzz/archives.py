"""Archives of images with random changes: read as they are, or refused by the name of the file."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexkern.streams import image_pack
from flexkern.streams.labelled import Images
from fuzz.harness import fuzzer

LIMIT = 1 << 20  # bytes of images: no case needs more
_SHAPES: tuple[tuple[int, ...], ...] = (
    (3, 4, 4, 3), (3, 4, 4), (0, 4, 4, 3), (3, 0, 4), (3,), (), (2, 4, 4, 3), (3, 4, 4, 2), (2**40, 4, 4),
    (3, 2**31, 2**31, 3), (-3, 4, 4),
)  # fmt: skip
_DTYPES = (
    "|u1",
    "<i8",
    ">i8",
    "<u8",
    "|b1",
    "<f4",
    "|O",
    "<U3",
    "|S3",
    "<M8[s]",
    "|V3",
    "<c8",
    "[('a', '<i4')]",
)
MODES = {
    "png": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"),
    "tiff": ("RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "jpeg": ("RGB", "L", "CMYK", "YCbCr"),
    "gif": ("P", "L"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "P", "1"),
    "ppm": ("RGB", "L", "1", "I"),
}
_LABELS = (0, 1, 2, -1, 7, 131071, 131072, 10**9, 2**31, 2**63 - 1)


@functools.cache
def folder() -> Path:
    """One for all cases of the process."""
    made = tempfile.TemporaryDirectory(prefix="fuzz")
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []  # removed when the process ends


@functools.cache
def picture(kind: str, size: tuple[int, int], mode: str, value: int = 5) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, kind)
    return out.getvalue()


def random_picture(rng: np.random.Generator) -> bytes:
    if rng.random() < 0.85:
        return picture("png", (4, 4), "RGB", int(rng.integers(9)))
    kind = str(rng.choice(list(MODES)))
    size = [(4, 4), (4, 4), (4, 4), (5, 4), (1, 4), (400, 1)][rng.integers(6)]
    mode = str(rng.choice(MODES[kind]))
    return changed(picture(kind, size, mode), rng, 0.4)


def changed(content: bytes, rng: np.random.Generator, share: float) -> bytes:
    """Cut, longer, or with other bytes, in this share of cases."""
    if rng.random() >= share or not content:
        return content
    place = int(rng.integers(len(content)))
    way = rng.integers(4)
    if way == 0:
        return content[:place]
    if way == 1:
        return content[:place] + rng.bytes(int(rng.integers(1, 9))) + content[place:]
    if way == 2:
        number = int(rng.choice([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        return content[:place] + struct.pack("<I", number) + content[place + 4 :]
    return content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]


def _npy(array: Any, rng: np.random.Generator) -> bytes:
    """An array as a member; sometimes its header says something else."""
    array = np.asarray(array)
    out = io.BytesIO()
    if rng.random() < 0.06:
        shape = _SHAPES[rng.integers(len(_SHAPES))] if rng.random() < 0.5 else array.shape
        descr = str(rng.choice(_DTYPES)) if rng.random() < 0.5 else array.dtype.str
        header = {"descr": descr, "fortran_order": bool(rng.integers(2)), "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        return out.getvalue() + array.tobytes()
    np.save(out, np.asfortranarray(array) if rng.random() < 0.1 else array)
    return out.getvalue()


def _labels(rng: np.random.Generator, count: int) -> np.ndarray:
    dtype = str(
        rng.choice(["<i8", ">i8", "|u1", "<u8", "<i4", "<f8", "|b1"], p=[0.4, 0.1, 0.2, 0.18, 0.1, 0.01, 0.01])
    )
    labels = rng.integers(0, 3, max(count + int(rng.choice([0] * 38 + [1, -1])), 0))
    if len(labels) and dtype.endswith("8") and dtype != "<f8" and rng.random() < 0.08:
        if dtype == "<u8":
            return np.array([2**63, *labels[1:].tolist()], dtype)
        labels[0] = _LABELS[rng.integers(len(_LABELS))]
    return labels.astype(dtype)


def _judge(path: Path, read: Any) -> str:
    try:
        parts = read()
    except ValueError as error:
        message, parts = str(error), ()
    if not parts:
        assert str(path) in message, f"the path is not named: {message}"
        return "refused"
    for part in parts:
        assert isinstance(part, Images)
        assert len(part.images) == len(part.labels) > 0
        assert part.images.nbytes <= LIMIT
        assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(part.names) <= 131072
    return "right"


@fuzzer("archives", quick=500, full=200_000)
def archives(rng: np.random.Generator) -> str:
    """An ``.npz`` of three pictures a part, with changes of arrays, headers, pictures and the zip."""
    members: dict[str, bytes] = {}
    for part in ("train", "test"):
        members[f"y_{part}"] = _npy(_labels(rng, 3), rng)
        if rng.random() < 0.6:
            pixels = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
            members[f"x_{part}"] = _npy(pixels if rng.random() < 0.8 else pixels[..., 0], rng)
        else:
            pictures = [random_picture(rng) for _ in range(3)]
            offsets = np.cumsum([0, *map(len, pictures)])
            if rng.random() < 0.05:
                offsets[rng.integers(4)] = rng.choice([-1, 0, 5, 2**40])
            members[f"x_{part}_png"] = _npy(np.frombuffer(b"".join(pictures), np.uint8), rng)
            members[f"x_{part}_off"] = _npy(offsets.astype(rng.choice(["<i8", ">i4", "<u8"])), rng)
    if rng.random() < 0.3:
        names = [["a", "b", "c"], [b"a", b"\xff", b"c"], ["a"], [1, 2, 3], [["a", "b", "c"]]][rng.integers(5)]
        members["names"] = _npy(np.array(names), rng)
    if rng.random() < 0.05:
        del members[str(rng.choice(list(members)))]
    path = folder() / "images.npz"
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", changed(content, rng, 0.01))
    path.write_bytes(changed(packed.getvalue(), rng, 0.2))
    return _judge(path, lambda: image_pack(path, most_bytes=LIMIT))
