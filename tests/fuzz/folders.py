"""Folders and tar shards of images with random changes: in memory and when needed alike, or refused by name."""

from __future__ import annotations

import io
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexkern.streams import image_folders, image_shards
from flexkern.streams.labelled import Images
from fuzz.archives import LIMIT, changed, folder, picture, random_picture
from fuzz.harness import fuzzer

_KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.XHDTYPE)
_NAMES = "1.png 2.jpg 3.PNG 5.gif 6.tif 7.webp ._0.png .x.png 4.txt 8.heic 9.svg dir.png gone.png loop"
_FILES = _NAMES.split()


def _outcome(read: Callable[[bool], tuple[Images, ...]], lazy: bool, path: Path) -> tuple[Images, ...] | None:
    """What is read, with all pixels in memory; None if it is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = read(lazy)
        return tuple(part._replace(images=part.images.tensor()) if lazy else part for part in parts)
    except ValueError as error:
        message = str(error)
    assert str(path) in message or message.startswith("test_share: class"), f"the path is not named: {message}"
    return None


def _judge(read: Callable[[bool], tuple[Images, ...]], path: Path, size: int) -> str:
    parts, others = (_outcome(read, lazy, path) for lazy in (False, True))
    assert (parts is None) == (others is None), "one way of reading refuses what the other reads"
    if parts is None or others is None:
        return "refused"
    skipped = 0
    for part, other in zip(parts, others, strict=True):
        assert part.images.shape == (len(part.labels), 3, size, size)
        assert part.images.dtype == torch.uint8
        assert len(part.labels) > 0
        assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(part.names)
        assert torch.equal(part.images, other.images), "other pixels when needed"
        assert torch.equal(part.labels, other.labels)
        assert part.names == other.names
        assert part.skipped == other.skipped
        assert all(str(path) in file.path and file.why for file in part.skipped)
        skipped += len(part.skipped)
    return "right, some left out" if skipped else "right"


def _make(root: Path, rng: np.random.Generator) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            here = root / part / name
            here.mkdir(parents=True)
            for i in range(2):
                (here / f"{i}0.png").write_bytes(
                    changed(picture("png", (4, 4), "RGB", int(rng.integers(9))), rng, 0.05)
                )
            for _ in range(rng.integers(3)):
                file = here / str(rng.choice(_FILES))
                if file.exists() or file.is_symlink():
                    continue
                if file.name == "dir.png":
                    file.mkdir()
                elif file.name == "gone.png":
                    file.symlink_to(here / "nothing.png")
                elif file.name == "loop":
                    file.symlink_to(here, target_is_directory=True)
                else:
                    file.write_bytes(random_picture(rng))
    for _ in range(rng.integers(2)):
        (root / "train" / str(rng.choice([".ipynb_checkpoints", "__MACOSX", "c", ".x"]))).mkdir(exist_ok=True)


@fuzzer("folders", quick=150, full=10_000)
def folders(rng: np.random.Generator) -> str:
    """Folders of pictures, with files and folders that are no data, and tables that name anything."""
    root = folder() / "folders"
    shutil.rmtree(root, ignore_errors=True)
    _make(root, rng)
    size = int(rng.choice([4, 4, 7]))
    options: dict[str, Any] = {"size": size, "most_bytes": LIMIT, "workers": 0}
    options |= {"broken": "skip"} if rng.random() < 0.5 else {}
    names = ["00.png", "1.png", "../a/00.png", "/etc/hostname", "..", ".", "", "a\\b", "00.png\0", "images"]
    chosen = names[rng.integers(len(names))] if rng.random() < 0.4 else "00.png"
    kind = rng.integers(4)
    if kind == 0:  # TinyImageNet's
        (root / "val" / "images").mkdir()
        (root / "val" / "images" / "00.png").write_bytes(picture("png", (4, 4), "RGB"))
        line = f"{chosen}\t{rng.choice(['a', 'b', 'c', ''])}\t0\n".encode()
        (root / "val" / "val_annotations.txt").write_bytes(changed(line, rng, 0.2))
        return _judge(lambda lazy: image_folders(root, lazy=lazy, **options), root, size)
    if kind == 1:  # a table
        rows = [f"{of}/{i}0.png,{label}" for of in "ab" for i, label in enumerate("xy")]
        rows += [f"{chosen},x"] if rng.random() < 0.3 else []
        (root / "val" / "t.csv").write_bytes(changed("\n".join(["file,class", *rows]).encode(), rng, 0.3))
        options |= {"labels": "t.csv", "test_share": 0.5, "seed": int(rng.integers(9))}
        return _judge(lambda lazy: image_folders(root / "val", lazy=lazy, **options), root, size)
    if kind == 2:
        options |= {"test_share": float(rng.choice([0.01, 0.3, 0.5, 0.99])), "seed": int(rng.integers(9))}
        return _judge(lambda lazy: image_folders(root / "val", lazy=lazy, **options), root, size)
    return _judge(lambda lazy: image_folders(root, lazy=lazy, **options), root, size)


@fuzzer("shards", quick=150, full=20_000)
def shards(rng: np.random.Generator) -> str:
    """A tar of a few samples with changes of names, labels, pictures, headers and bytes."""
    packed = io.BytesIO()
    form = int(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for i in range(3):
            key = str(rng.choice(["{}", "./{}", "deep/{}", ".{}", "e" * 90 + "/" + "f" * 60 + "{}"])).format(
                i if rng.random() < 0.95 else 0
            )
            label = str(
                rng.choice(["0", "1", "ant", "", "-1", "131072", "{}", "1.5"], p=[0.45, 0.45, *[1 / 60] * 6])
            )
            kind = str(rng.choice(["cls", "json"], p=[0.8, 0.2]))
            said = label if kind == "cls" else f'{{"label": {label if label.isdigit() else "null"}}}'
            members = [(f"{key}.png", random_picture(rng)), (f"{key}.{kind}", said.encode())]
            if rng.random() < 0.1:
                members.append((f"{key}.{rng.choice(['txt', 'seg.png', 'CLS', 'jpg'])}", b"x"))
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if rng.random() < 0.01:
                    kinds = [
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.DIRTYPE,
                        tarfile.CHRTYPE,
                        tarfile.XHDTYPE,
                    ]
                    info.type, info.size = kinds[rng.integers(len(kinds))], 0
                archive.addfile(info, io.BytesIO(content))
    path = folder() / "a.tar"
    path.write_bytes(_with_wrong_headers(changed(packed.getvalue(), rng, 0.15), rng))
    size = int(rng.choice([4, 4, 7]))
    options: dict[str, Any] = {"size": size, "most_bytes": LIMIT, "workers": 0}
    options |= {"broken": "skip"} if rng.random() < 0.5 else {}
    return _judge(lambda lazy: (image_shards(path, lazy=lazy, **options),), path, size)


def _with_wrong_headers(content: bytes, rng: np.random.Generator) -> bytes:
    """Sometimes a header says another size or type, with a right sum."""
    if rng.random() < 0.8 or len(content) < 2048:
        return content
    places = [at for at in range(0, len(content) - 512, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not places:
        return content
    at = places[rng.integers(len(places))]
    header = bytearray(content[at : at + 512])
    if rng.random() < 0.5:
        header[124:136] = f"{int(rng.choice([0, 1, 511, 513, 10**6, 8**11 - 1])):011o}\0".encode()
    else:
        header[156:157] = str(rng.choice(list("0123456xgLKSDV"))).encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return content[:at] + bytes(header) + content[at + 512 :]
