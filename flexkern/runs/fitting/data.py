"""The images of a fit: a folder or shards, read when they are needed or, where they are few, once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexkern.streams.folders import TEST_NAMES, image_folders
from flexkern.streams.image_source import ImageSource, ahead
from flexkern.streams.labelled import Images, split
from flexkern.streams.pictures import SUFFIXES
from flexkern.streams.shards import image_shards

__all__ = ["check_decodes", "classes_in", "in_memory", "open_images"]

_TABLES = ("labels.csv", "labels.tsv")
_TEST_SHARE = 0.2
_SHOWN = 3  # of broken images
_AT_ONCE = 64  # images that are decoded between two looks at how far it is


def classes_in(folder: str | os.PathLike[str]) -> list[str] | None:
    """Names of the classes of a folder, before its images are looked at; None where only they tell."""
    root = Path(folder)
    if not root.is_dir():
        return None
    names = _folders_in(root)
    if "train" in names and (len(names) == 1 or set(TEST_NAMES).intersection(names)):
        names = _folders_in(root / "train")
    return names or None


def _folders_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "__MACOSX")


def open_images(
    folder: str | os.PathLike[str], *, test_share: float | None, seed: int, **options: Any
) -> tuple[Images, Images]:
    """Training and test images of a folder, or of tar shards: listed, and not decoded.

    Args:
        folder: one that holds the folders "train" and "test" (or "val"), or one folder for each class, or
            images and a table "labels.csv" that says the class of each, or tar shards; or one shard.
        test_share: of each class's images, for tests; None: a fifth, where the folder has no test images.
        seed: decides which ones.
        options: of the readers: size, broken, background, workers.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: naming what cannot be read.
    """
    root, given = Path(folder), os.fspath(folder)
    if not root.exists():
        raise FileNotFoundError(f"folder: there is nothing at {given!r}")
    inside = [] if root.is_file() else [p for p in root.iterdir() if not p.name.startswith(".")]
    folders = {p.name for p in inside if p.is_dir()}
    if root.is_file() or (not folders and any(p.suffix == ".tar" for p in inside)):
        return _open_shards(root, inside, test_share, seed, options)
    if test_share is None and not ("train" in folders and folders.intersection(TEST_NAMES)):
        test_share = _TEST_SHARE
    tables = [p for p in inside if p.name in _TABLES] if not folders else []
    if tables:
        options["labels"] = tables[0]
    elif not folders and any(p.suffix.lower() in SUFFIXES for p in inside):
        raise ValueError(
            f"folder: {given!r} has its images beside each other; put those of each class into a folder of its "
            "own, or write a table 'labels.csv' there, with the columns file,class"
        )
    with warnings.catch_warnings():  # of what is left out: ``skipped`` has it
        warnings.filterwarnings("ignore", ".*left out", UserWarning)
        return image_folders(root, test_share=test_share, seed=seed, lazy=True, **options)


def _open_shards(
    root: Path, inside: list[Path], test_share: float | None, seed: int, options: dict[str, Any]
) -> tuple[Images, Images]:
    shards = sorted(p for p in inside if p.suffix == ".tar") or [root]
    # What a folder of test images is called, shards' names begin with.
    for_tests = [p for p in shards if p.name.startswith(TEST_NAMES)]
    if test_share is None and for_tests and len(for_tests) < len(shards):
        train = image_shards([p for p in shards if p not in for_tests], lazy=True, **options)
        return train, image_shards(for_tests, names=train.names, lazy=True, **options)
    return split(
        image_shards(shards, lazy=True, **options), _TEST_SHARE if test_share is None else test_share, seed
    )


def check_decodes(images: Sequence[ImageSource], tell: Callable[[int, int], None]) -> None:
    """Decodes all images once, before hours of work that the last of them might end.

    Args:
        images: sources.
        tell: told how many images of how many are decoded.

    Raises:
        ValueError: naming the images that cannot be decoded.
    """
    total, done = sum(map(len, images)), 0
    broken: list[str] = []
    for source in images:
        rows = [rows.tolist() for rows in torch.arange(len(source)).split(_AT_ONCE)]
        for of_piece in ahead(partial(_faults, source), rows, source.workers):
            broken += of_piece
            done = min(done + _AT_ONCE, total)
            tell(done, total)
    if broken:
        others = f"; nor can {len(broken) - _SHOWN} others be read" if len(broken) > _SHOWN else ""
        raise ValueError(
            f"{'; '.join(broken[:_SHOWN])}{others}. Remove what is broken, or leave it out with --broken skip"
        )


def _faults(source: ImageSource, rows: list[int]) -> list[str]:
    found = []
    for i in rows:
        try:
            source.decode(i)
        except (ValueError, OSError) as error:
            found.append(str(error))
    return found


def in_memory(images: Any, most: int, tell: Callable[[int, int], None]) -> Any:
    """The pixels of a source as a tensor, if they take no more than ``most`` bytes; else the source.

    Photographs take longer to decode than to learn, so what there is room for is decoded once and not once an
    epoch; the pixels are the same.

    Args:
        images: a source, or a tensor, which is returned as it is.
        most: bytes.
        tell: told how many images of how many are decoded.
    """
    if not isinstance(images, ImageSource) or images.shape.numel() > most:
        return images
    return images.tensor(tell)
