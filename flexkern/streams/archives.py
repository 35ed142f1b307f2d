"""NumPy archives (``.npz``) that someone else wrote: sizes are looked at before anything is unpacked."""

from __future__ import annotations

import math
import os
import zipfile
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MOST_BYTES", "Archive", "Header"]

MOST_BYTES = 16 << 30
"""What images may take in memory (16 GiB), unless a caller says otherwise."""

_DEFLATE = 1032  # bytes that one byte can stand for, at most
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Header(NamedTuple):
    """What an array's own header says: nothing of the array has been unpacked."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


class Archive:
    """An open archive; a context manager.

    Args:
        path: of the file.
        what: it holds, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such an archive, naming the path.
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"path: no {what} at {self.path!r} (an .npz)")
        try:
            self._zip = zipfile.ZipFile(path)
        except PermissionError:
            raise
        except Exception as error:  # zipfile's own, and whatever it stumbles over
            raise ValueError(f"path: {self.path!r} is not a NumPy archive (an .npz): {error}") from error
        members = self._zip.namelist()
        twice = sorted({name for name in members if members.count(name) > 1}) if len(members) < 10_000 else []
        if twice or len(members) >= 10_000:
            self._zip.close()
            why = f"has {twice[0]!r} twice" if twice else f"has {len(members)} members"
            raise ValueError(f"path: {self.path!r} {why}")
        self._members = {name.removesuffix(".npy"): name for name in members}
        self._headers: dict[str, Header] = {}

    @property
    def names(self) -> list[str]:
        """Of the arrays."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def header(self, name: str, most: int = MOST_BYTES) -> Header:
        """Shape and dtype of an array.

        Args:
            name: of an array that is there.
            most: bytes that it may have.

        Raises:
            ValueError: if it is damaged, holds objects, or does not have the bytes that it says.
        """
        if name not in self._headers:
            try:
                self._headers[name] = self._look(name)
            except Exception as error:  # zipfile, NumPy and the tokenizer that NumPy reads headers with
                raise ValueError(f"path: {name} in {self.path!r} cannot be read: {_words(error)}") from error
        header = self._headers[name]
        if header.nbytes > most:
            raise ValueError(
                f"path: {name} in {self.path!r} has {header.nbytes} bytes, {header.dtype} {header.shape}; at "
                f"most {most} are read"
            )
        return header

    def _look(self, name: str) -> Header:
        info = self._zip.getinfo(self._members[name])
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"it is compressed by a method that NumPy does not use ({info.compress_type})")
        with self._zip.open(info) as file:
            shape, dtype, length = self._header_of(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not read")
        if not dtype.itemsize and 0 not in shape:
            raise ValueError(f"{dtype} has no bytes, so that its shape {shape} could say anything")
        nbytes = math.prod(shape) * dtype.itemsize
        said, there = length + nbytes, info.file_size
        if said != there:
            raise ValueError(f"{dtype} {shape} takes {said} bytes with its header, and the archive has {there}")
        ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATE
        if there > info.compress_size * ratio or info.compress_size > os.path.getsize(self.path):
            raise ValueError(f"{there} bytes cannot come out of {info.compress_size}")
        return Header(shape, dtype, nbytes)

    @staticmethod
    def _header_of(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"its format is {version}, which is not read")
        shape, _, dtype = _HEADERS[version](file)
        if any(isinstance(side, bool) or side < 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
        return tuple(int(side) for side in shape), dtype, file.tell()

    def read(self, name: str, most: int = MOST_BYTES) -> np.ndarray:
        """An array, unpacked: of the bytes that :meth:`header` has found, and whole.

        Raises:
            ValueError: as :meth:`header`.
        """
        self.header(name, most)
        try:
            with self._zip.open(self._members[name]) as file:
                array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
                file.read()  # to its end, where the checksum is looked at
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"path: {name} in {self.path!r} cannot be read: {_words(error)}") from error
        return array


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
