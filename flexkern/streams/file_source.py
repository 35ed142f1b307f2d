"""Images in files of their own, decoded when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from flexkern.streams.image_source import ImageSource
from flexkern.streams.labelled import Reading
from flexkern.streams.pictures import decode, look

__all__ = ["FileSource", "Texts"]


class Texts:
    """Many short texts in two arrays: a list of strings would be copied into every process that counts them."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [os.fsencode(text) for text in texts]
        self._bytes = b"".join(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self._bytes[self._ends[i - 1] if i else 0 : self._ends[i]])


class FileSource(ImageSource):
    """Images in files of their own.

    Args:
        root: a folder.
        files: in it.
        reading: how they are read.
    """

    def __init__(self, root: str | os.PathLike[str], files: Iterable[str], reading: Reading) -> None:
        super().__init__(reading.size, reading.workers)
        self.root, self.background = os.path.abspath(root), reading.background
        self._given = os.fspath(root)
        self._files = Texts(files)

    def __len__(self) -> int:
        return len(self._files)

    def decode(self, i: int) -> np.ndarray:
        path = self.name(i)
        here = os.path.join(self.root, self._files[i])
        return decode(here, f"path: {path!r}", size=self.size, background=self.background)

    def look(self, i: int) -> None:
        look(os.path.join(self.root, self._files[i]), f"path: {self.name(i)!r}", size=self.size)

    def name(self, i: int) -> str:
        """The path, as it was given."""
        return os.path.join(self._given, self._files[i])

    def identity(self, i: int) -> str:
        """Path, bytes, time of the last change, and what else decides the pixels."""
        path = os.path.join(self.root, self._files[i])
        status = os.stat(path)
        return f"{path} {status.st_size} {status.st_mtime_ns} {self.size} {self.background}"
