"""Labelled images from folders: one folder a class, or a table that says the class of each file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flexkern.spec.argument import shown
from flexkern.streams.archives import MOST_BYTES
from flexkern.streams.file_source import FileSource
from flexkern.streams.file_tables import annotated, class_names, table
from flexkern.streams.labelled import Images, Reading, Skipped, settle, split
from flexkern.streams.pictures import OTHER_SUFFIXES, SUFFIXES, WHITE

__all__ = ["TEST_NAMES", "image_folder", "image_folders", "pictures_in"]

TEST_NAMES = ("test", "val", "validation")
"""Of the folder beside "train"."""
_READ = ", ".join(sorted(SUFFIXES))


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int,
    names: Sequence[str] | None = None,
    labels: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    lazy: bool = False,
    broken: str = "raise",
    background: Sequence[int] = WHITE,
    workers: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> Images:
    """Images of a folder that has one folder a class, in alphabetical order.

    A class's images are those in its folder and in the folders in that; links are followed. Read are files
    whose names end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .gif (the first picture of it), .tif, .tiff, .bmp,
    .ppm, .pgm, .pbm or .pnm. Pictures of other kinds (.heic, .svg, .psd, .raw ...) are left out, and a warning
    names them. Files and folders whose names begin with a dot are no data.

    Pictures are taken as people mean them: turned as their EXIF data say, transparent pixels on ``background``,
    more than 8 bits scaled by their depth (:func:`flexkern.streams.pictures.rgb`).

    Args:
        path: the folder.
        size: the shorter side of each image is resized to this many pixels, bicubic, and the middle taken.
        names: the classes, in the order of their labels, where another folder decides it (that of the training
            images). Default: all folders in ``path``, in alphabetical order.
        labels: the class of each file, for images that are not in folders of their classes: a mapping from a
            file's path within ``path`` to a class, or a table of them, a file .csv or .tsv with columns "file"
            and "class" ("labels.csv" is looked for in ``path``). Files without a class are left out and named.
        lazy: whether images are decoded when they are needed, by worker processes: ``images`` is then a source
            (:class:`flexkern.streams.ImageSource`), which learners take in place of a tensor, and memory does
            not grow with the data. The pixels are the same. What is no picture is found at once, by the first
            bytes of each file; what is damaged inside, when it is decoded.
        broken: "raise": a file that cannot be read raises, named by its path. "skip": all files are decoded
            once now, and those that cannot be read are left out, counted in a warning and named in
            ``Images.skipped``.
        background: red, green and blue behind transparent pixels, 0 to 255.
        workers: processes that decode; 0: none; None: one for each processor, at most 8.
        most_bytes: what the images may take in memory, 3 bytes for each pixel; not asked where ``lazy``.

    Raises:
        FileNotFoundError: if there is no such folder.
        TypeError, ValueError: if an argument is wrong, the folder holds no images, or a class none, or a file
            is no image, naming it.
        ImportError: if Pillow is not installed.
    """
    reading = Reading.checked(size, background, broken, lazy, workers, most_bytes)
    return settle(_listed(path, names, labels, reading), reading, f"path: {os.fspath(path)!r}")


def image_folders(
    path: str | os.PathLike[str],
    *,
    size: int,
    test_share: float | None = None,
    seed: int = 0,
    labels: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    lazy: bool = False,
    broken: str = "raise",
    background: Sequence[int] = WHITE,
    workers: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> tuple[Images, Images]:
    """Training and test images of a folder: of its two parts, or a share of each class for tests.

    Each part has one folder a class (:func:`image_folder`). TinyImageNet is read as it is distributed: its
    ``val`` has all images in one folder, and ``val_annotations.txt`` says the class of each.

    Args:
        path: holds a folder ``train`` and one ``test``, ``val`` or ``validation``; or, with ``test_share``, one
            folder a class (or nothing but ``train``, which does).
        test_share: of the images of each class that are for tests, in (0, 1), for images that have no test part
            of their own: at least one of each class, and not all.
        seed: decides which ones, from the sorted names of a class's files: the same on every machine.
        labels: the class of each file, see :func:`image_folder`; goes with ``test_share``.
        size, lazy, broken, background, workers, most_bytes: of the images, see :func:`image_folder`; most_bytes
            is what each part may take.

    Raises:
        FileNotFoundError: if a folder is missing.
        TypeError, ValueError: if an argument is wrong, a class has no images (or one, of which no share can be
            for tests), or a file is no image, naming it.
        ImportError: if Pillow is not installed.
    """
    root, given = Path(path), os.fspath(path)
    reading = Reading.checked(size, background, broken, lazy, workers, most_bytes)
    there = [name for name in TEST_NAMES if (root / name).is_dir()] if (root / "train").is_dir() else []
    if test_share is not None:
        if there and labels is None:
            raise ValueError(f"test_share: {given!r} has test images of its own, in {there[0]!r}; leave it out")
        within = _only_train(root) if labels is None else root
        parts = split(_listed(within, None, labels, reading), test_share, seed)
        train, test = (
            settle(part, reading, f"path: {os.fspath(within)!r}, {name} images")
            for part, name in zip(parts, ("training", "test"), strict=True)
        )
        return train, test
    if labels is not None:
        raise ValueError("labels: pass test_share=, too, which share of the images is for tests, as 0.2")
    if not there:
        allowed = " or ".join(map(repr, TEST_NAMES))
        raise FileNotFoundError(
            f"path: {given!r} must hold a folder 'train' and a folder {allowed}; pass test_share=0.2 to keep a "
            "fifth of each class of one folder for tests"
        )
    train_found = _listed(root / "train", None, None, reading)
    # TinyImageNet's "test" has no labels, so its "val" goes first.
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        folder = annotations.parent
        files, numbers = annotated(annotations, {name: i for i, name in enumerate(train_found.names)})
        source = FileSource(folder, files, reading)
        test_found = Images(source, torch.tensor(numbers), list(train_found.names))
    else:
        folder = root / there[0]
        test_found = _listed(folder, train_found.names, None, reading)
    return (
        settle(train_found, reading, f"path: {os.fspath(root / 'train')!r}"),
        settle(test_found, reading, f"path: {os.fspath(folder)!r}"),
    )


def _only_train(root: Path) -> Path:
    """The folder ``train``, where there is no other folder beside it."""
    if not root.is_dir():
        return root
    folders = [p.name for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name)]
    return root / "train" if folders == ["train"] else root


def _listed(path: str | os.PathLike[str], names: Sequence[str] | None, labels: Any, reading: Reading) -> Images:
    """The images of a folder as a source, and their labels; nothing is opened."""
    root = os.fspath(path)
    if not isinstance(root, str):
        raise TypeError(f"path must be a string or a Path, got {shown(path)}")
    if not os.path.isdir(root):
        raise FileNotFoundError(f"path: no folder at {root!r}")
    given = None if names is None else class_names(names)
    skipped: list[Skipped] = []
    if labels is not None:
        files, numbers, found = _by_table(root, given, labels, skipped)
    else:
        files, numbers, found = _by_folder(root, given, skipped)
    for name in found:
        if not name.isprintable():  # of another encoding: it could not be written into any record
            raise ValueError(f"path: a folder in {root!r} has a name that is not UTF-8: {name!r}")
    return Images(FileSource(path, files, reading), torch.tensor(numbers), found, skipped)


def _by_folder(
    root: str, names: list[str] | None, skipped: list[Skipped]
) -> tuple[list[str], list[int], list[str]]:
    with os.scandir(root) as entries:
        here = sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda e: e.name)
    beside = [entry.name for entry in here if _is_picture(entry.name) and entry.is_file()]
    if names is None:
        names = [entry.name for entry in here if entry.is_dir()]
    outside = [name for name in names if os.path.basename(name) != name or name in (os.curdir, os.pardir)]
    if outside:
        raise ValueError(f"names must be folders in {root!r}, got {outside[0]!r}")
    if not names:
        hint = (
            f", but {len(beside)} images: pass labels=, a table that says the class of each" if beside else ""
        )
        raise ValueError(f"path: {root!r} must hold one folder a class; it has none{hint}")
    skipped += [Skipped(os.path.join(root, name), "it is in no class's folder") for name in beside]
    files: list[str] = []
    numbers: list[int] = []
    for label, name in enumerate(names):
        if not name.isprintable():
            continue
        before = len(skipped)
        of_class = pictures_in(root, name, skipped) if os.path.isdir(os.path.join(root, name)) else []
        if not of_class:
            others = "".join(f"; {file!r}: {why}" for file, why in skipped[before : before + 1])
            raise ValueError(f"path: {os.path.join(root, name)!r} holds no images ({_READ}){others}")
        files += of_class
        numbers += [label] * len(of_class)
    return files, numbers, names


def _by_table(
    root: str, names: list[str] | None, labels: Any, skipped: list[Skipped]
) -> tuple[list[str], list[int], list[str]]:
    classes = table(labels, root)
    there = pictures_in(root, "", skipped)
    missing = sorted(set(classes) - set(there))
    if missing:
        raise ValueError(
            f"labels: {missing[0]!r} is named, and there is no such image in {root!r}"
            + (f"; nor are {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    if names is None:
        names = sorted(set(classes.values()))
    numbers = {name: label for label, name in enumerate(names)}
    unknown = sorted(set(classes.values()) - set(names))
    if unknown:
        raise ValueError(f"labels: class {unknown[0]!r} is none of names: {', '.join(names[:10])}")
    skipped += [
        Skipped(os.path.join(root, f), "labels names no class for it") for f in there if f not in classes
    ]
    files = [file for file in there if file in classes]
    if not files:
        raise ValueError(f"path: {root!r} holds no images ({_READ})")
    return files, [numbers[classes[file]] for file in files], names


def _is_hidden(name: str) -> bool:
    """As ``.ipynb_checkpoints``, and ``._0.png``, which macOS writes beside 0.png; neither is data."""
    return name.startswith(".") or name == "__MACOSX"


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def pictures_in(root: str, folder: str, skipped: list[Skipped]) -> list[str]:
    """All pictures in a folder and the folders in it, as paths within ``root``, sorted."""
    found: list[str] = []

    def walk(folder: str, above: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(os.path.join(root, folder))
        this = (status.st_dev, status.st_ino)
        if this in above:  # a link to a folder that it is in
            return
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = os.path.join(folder, entry.name)
                suffix = os.path.splitext(entry.name)[1].lower()
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    walk(name, (*above, this))
                elif suffix in OTHER_SUFFIXES:
                    skipped.append(Skipped(os.path.join(root, name), f"{suffix} is not read"))
                elif suffix in SUFFIXES and entry.is_file():
                    found.append(name)
                elif suffix in SUFFIXES and entry.is_symlink():
                    skipped.append(Skipped(os.path.join(root, name), "a link to nothing"))

    walk(folder, ())
    return found
