"""Data sets of domains in folders, as they are published: DomainNet and CORe50."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from flexkern.plain import flag, nearest
from flexkern.spec.argument import shown
from flexkern.streams.archives import MOST_BYTES
from flexkern.streams.file_source import FileSource
from flexkern.streams.folders import pictures_in
from flexkern.streams.labelled import Images, Reading, Skipped, settle
from flexkern.streams.pictures import WHITE
from flexkern.streams.selection import listed_once

__all__ = ["CORE50_SESSIONS", "DOMAINNET", "core50", "domainnet"]

DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
"""The domains of DomainNet, in the alphabet's order, in which they are mostly learned."""
CORE50_SESSIONS = ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
"""The sessions of CORe50 that are for training."""
_CORE50_TESTS = ("s3", "s7", "s10")
_CORE50_CLASSES = (
    "plug adapter", "mobile phone", "scissors", "light bulb", "can",
    "glasses", "ball", "marker", "cup", "remote control",
)  # fmt: skip
_OF_A_CLASS = 5  # objects: o1 to o5 are plug adapters, and so on
_SHOWN = 10


def domainnet(
    path: str | os.PathLike[str],
    *,
    size: int,
    domains: Sequence[str] = DOMAINNET,
    lazy: bool = False,
    broken: str = "raise",
    background: Sequence[int] = WHITE,
    workers: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, tuple[Images, Images]]:
    """DomainNet (Peng et al., ICCV 2019), for :func:`flexkern.streams.domain_incremental`.

    The folder is as the archives and lists of its page unpack::

        clipart/aircraft_carrier/clipart_001_000001.jpg ...
        clipart_train.txt, clipart_test.txt       each line: clipart/aircraft_carrier/clipart_001_000018.jpg 0
        real/..., real_train.txt, real_test.txt   and so on for each domain

    The lists say which images are for training and for tests, and the label of each; a class has the name of
    its folder. Any data set in this layout is read, with other domains and classes too.

    Args:
        path: the folder.
        domains: which ones, in the order of learning.
        size, lazy, broken, background, workers, most_bytes: of the images, as of
            :func:`flexkern.streams.image_folder`; most_bytes is what each part of a domain may take.

    Raises:
        FileNotFoundError: if the folder, a domain, a list or an image is missing.
        TypeError, ValueError: if an argument is wrong, or a line of a list, which is named.
        ImportError: if Pillow is not installed.
    """
    root = _folder(path)
    reading = Reading.checked(size, background, broken, lazy, workers, most_bytes)
    asked = _asked(domains, "domains")
    for domain in asked:
        missing = [name for name in (domain, f"{domain}_train.txt", f"{domain}_test.txt")
                   if not os.path.exists(os.path.join(root, name))]  # fmt: skip
        if missing:
            raise FileNotFoundError(
                f"path: {root!r} must hold {missing[0]!r}: DomainNet has a folder, a {domain}_train.txt and a "
                f"{domain}_test.txt for each domain; there are {_there(root)}"
            )
    names: dict[int, str] = {}
    lists = {d: [_list(root, f"{d}_{part}.txt", names) for part in ("train", "test")] for d in asked}
    every = [names.get(c, "") for c in range(1 + max(names))]
    found = {}
    for domain, parts in lists.items():
        train, test = (
            settle(
                Images(FileSource(path, files, reading), torch.tensor(labels), list(every)),
                reading,
                f"path: {os.path.join(root, f'{domain}_{part}.txt')!r}",
            )
            for part, (files, labels) in zip(("train", "test"), parts, strict=True)
        )
        found[domain] = train, test
    return found


def core50(
    path: str | os.PathLike[str],
    *,
    size: int,
    sessions: Sequence[str] = CORE50_SESSIONS,
    objects: bool = False,
    lazy: bool = False,
    broken: str = "raise",
    background: Sequence[int] = WHITE,
    workers: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, tuple[Images, Images]]:
    """CORe50 (Lomonaco and Maltoni, CoRL 2017): objects held in the hand, in sessions at other places.

    The folder is as ``core50_128x128.zip`` unpacks::

        s1/o1/C_01_01_000.png ...     11 sessions s1 to s11, in each 50 objects o1 to o50

    Objects o1 to o5 are plug adapters, the next five mobile phones, and so on: 10 classes. **The test images
    are the same for each domain**, as its authors have it (New Instances): those of sessions 3, 7 and 10, which
    are never learned. So each experience's accuracy is that over all of the test set, and forgetting is by how
    much that falls.

    Args:
        path: the folder.
        sessions: for training, in the order of learning; each is a domain.
        objects: whether the 50 objects are the classes, or the 10 kinds that they are of.
        size, lazy, broken, background, workers, most_bytes: of the images, as of
            :func:`flexkern.streams.image_folder`; most_bytes is what each session, and the tests, may take.

    Raises:
        FileNotFoundError: if the folder, a session or an object's folder is missing.
        TypeError, ValueError: if an argument is wrong, a folder has no images, or a file is no image.
        ImportError: if Pillow is not installed.
    """
    root = _folder(path)
    reading = Reading.checked(size, background, broken, lazy, workers, most_bytes)
    asked = _asked(sessions, "sessions")
    of_test = [session for session in asked if session in _CORE50_TESTS]
    if of_test:
        raise ValueError(f"sessions: {of_test[0]!r} is for tests, as {', '.join(_CORE50_TESTS)} are")
    flag(objects, "objects")
    for session in (*asked, *_CORE50_TESTS):
        if not os.path.isdir(os.path.join(root, session)):
            hint = nearest(session, (*CORE50_SESSIONS, *_CORE50_TESTS)) if session in asked else ""
            raise FileNotFoundError(
                f"path: {root!r} must hold a folder {session!r}{hint}; CORe50 has s1 to s11, of which "
                f"{', '.join(_CORE50_TESTS)} are for tests; there are {_there(root)}"
            )
    tests = _sessions(path, _CORE50_TESTS, objects, reading)
    return {session: (_sessions(path, [session], objects, reading), tests) for session in asked}


def _sessions(path: str | os.PathLike[str], sessions: Sequence[str], objects: bool, reading: Reading) -> Images:
    root, count = os.fspath(path), _OF_A_CLASS * len(_CORE50_CLASSES)
    files: list[str] = []
    labels: list[int] = []
    skipped: list[Skipped] = []
    for session in sessions:
        for number in range(count):
            folder = os.path.join(session, f"o{number + 1}")
            if not os.path.isdir(os.path.join(root, folder)):
                raise FileNotFoundError(
                    f"path: no folder {os.path.join(root, folder)!r}; each session has o1 to o{count}"
                )
            here = pictures_in(root, folder, skipped)
            if not here:
                raise ValueError(f"path: {os.path.join(root, folder)!r} holds no images")
            files += here
            labels += [number if objects else number // _OF_A_CLASS] * len(here)
    of_objects = [f"{_CORE50_CLASSES[i // _OF_A_CLASS]} {i % _OF_A_CLASS + 1}" for i in range(count)]
    names = of_objects if objects else list(_CORE50_CLASSES)
    images = Images(FileSource(path, files, reading), torch.tensor(labels), names, skipped)
    return settle(images, reading, f"path: {root!r}, {', '.join(sessions)}")


def _folder(path: Any) -> str:
    root = os.fspath(path)
    if not isinstance(root, str):
        raise TypeError(f"path must be a string or a Path, got {shown(path)}")
    if not os.path.isdir(root):
        raise FileNotFoundError(f"path: no folder at {root!r}")
    return root


def _asked(names: Any, what: str) -> list[str]:
    given = listed_once(names, what, "names of folders")
    for i, name in enumerate(given):
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", os.curdir, os.pardir):
            raise ValueError(f"{what}[{i}] must be the name of a folder, got {shown(name)}")
    return given


def _there(root: str) -> str:
    names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more if names else "none"


def _list(root: str, name: str, names: dict[int, str]) -> tuple[list[str], list[int]]:
    """Files and labels of a list, a line each; the names of the classes are added to ``names``."""
    path = os.path.join(root, name)
    files: list[str] = []
    labels: list[int] = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\n").rstrip("\r")
            if not text.strip():
                continue
            file, _, label = text.rpartition(" ")
            parts = file.split("/")
            if not (label.isascii() and label.isdecimal() and len(label) < 7) or len(parts) < 2:
                raise ValueError(
                    f"path: {path!r}, line {number}: must be a file in its folders and a label, as "
                    f"'clipart/bus/clipart_046_000001.jpg 45', got {shown(text)}"
                )
            if os.path.isabs(file) or os.pardir in parts:
                raise ValueError(f"path: {path!r}, line {number}: {file!r} is outside of the folder")
            known = names.setdefault(int(label), parts[-2])
            if known != parts[-2]:
                raise ValueError(
                    f"path: {path!r}, line {number}: label {label} is of {parts[-2]!r} here and of {known!r} "
                    "elsewhere"
                )
            files.append(file)
            labels.append(int(label))
    if not files:
        raise ValueError(f"path: {path!r} lists no images")
    return files, labels
