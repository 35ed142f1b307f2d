"""A folder of features that were computed once; each file comes back as a tensor that is mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import flexkern.version
from flexkern.features.identity import Known
from flexkern.features.mapping import mapped
from flexkern.files import replace_file, sweep
from flexkern.spec.argument import shown

__all__ = ["DTYPES", "CachedFeatures", "FeatureCache"]

_FORMAT = 1
_KEY = "flexkern.features"  # of the record in a file's metadata
_SUM = "sha256"
_LONGEST_HEADER = 1 << 20
_PART = 1 << 22  # bytes that are read at once where a sum is checked
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE = re.compile(r"features_[0-9a-f]{32}\.safetensors")

DTYPES = tuple(_NAMES)
"""In which features may be kept."""


@dataclass(frozen=True)
class CachedFeatures:
    """One file of a cache.

    Attributes:
        path: of the file.
        name: what the features are of, for people.
        shape: inputs, and features of each.
        dtype: of the features.
        bytes: of the file.
    """

    path: Path
    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    bytes: int


class FeatureCache:
    """A folder of features, which are computed once for all processes and runs that use it.

    Features are found again by what they depend on: the extractor (its tensors and its structure), the inputs
    (all values of a tensor; paths, sizes and times of the images of a source), dtype, and the kind of device
    that computed them, whose bits they have. Anything else is computed anew, and stays beside what is there.
    What a module has in plain attributes, in neither ``state_dict`` nor ``repr``, it does not know; the
    features of the first input are compared for that. One cache object sums an extractor's tensors again when
    torch has counted a change of them; a new one does it anew.

    **The files.** ``features_KEY.safetensors``: a file of the safetensors format with the tensors ``features``
    [inputs, width] and ``sha256``, uint8 [32], the sum of all bytes before it; the record in its metadata,
    under ``flexkern.features``, says format, key, name, version. A file appears whole or not at all, so what
    was interrupted is computed anew; two processes that compute the same features put the same file in place.
    Sums are checked once by each cache object, when it opens a file, which reads all of it. A damaged file is
    computed anew, with a warning. Files may be deleted at any time: who has one open keeps it.

    Args:
        folder: it and those on the way to it are made when something is put there.

    Raises:
        TypeError, ValueError: if that is no path.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"cache must be the path of a folder, got {shown(folder)}")
        if not os.fspath(folder):
            raise ValueError("cache must be the path of a folder, got an empty one; '.' is the current one")
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._checked: dict[str, tuple[int, ...]] = {}  # file to what it was when its sum was right
        self.sums: Known = WeakKeyDictionary()
        """Of extractors, for :func:`flexkern.features.identity.extractor_key`."""

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path]]:
        return FeatureCache, (self.folder,)

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.folder)!r})"

    # ------------------------------------------------------------------ what is there

    def files(self) -> list[CachedFeatures]:
        """All files of the cache, as far as they can be read; sums are not checked."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir()):
                if _FILE.fullmatch(path.name):
                    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
                        header = _Header.read(file)
                        size = header.end + hashlib.sha256().digest_size
                        found.append(CachedFeatures(path, header.name, header.shape, header.dtype, size))
        return found

    @property
    def bytes(self) -> int:
        """What all files of the cache take on the disk."""
        return sum(one.bytes for one in self.files())

    def clear(self) -> None:
        """Deletes all files of the cache, and no others."""
        with contextlib.suppress(FileNotFoundError):
            for path in list(self.folder.iterdir()):
                if _FILE.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            sweep(self.folder, _FILE)
        self._checked.clear()

    # ------------------------------------------------------------------ in and out

    def find(self, key: str) -> Tensor | None:
        """The features of this key, mapped, or None.

        Raises:
            OSError: naming the file, if it is there and cannot be read.
        """
        path = self._path(key)
        try:
            file = path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        with file:
            try:
                header = _Header.read(file)
                if header.key != key:
                    raise ValueError("it is of another key")
                if self._checked.get(path.name) != _state(file):
                    _check_sum(file, header.end)
            except ValueError as error:
                warnings.warn(
                    f"cache: {str(path)!r} is damaged ({error}); its features are computed anew", stacklevel=4
                )
                return None
            self._checked[path.name] = _state(file)
            return mapped(file, header.start, header.dtype, header.shape)

    def put(self, key: str, name: str, inputs: int, batches: Iterator[Tensor], dtype: torch.dtype) -> Tensor:
        """Writes features that come in batches, float32 [n, width] with ``inputs`` rows together.

        Returns:
            The features, mapped.

        Raises:
            OSError: naming the file, if it cannot be written, or there is too little room for it.
        """
        path = self._path(key)
        first = next(batches)  # what fails at once leaves no folder
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder, _FILE)
        header = _Header.make(key, name, dtype, (inputs, first.shape[1]))
        free = shutil.disk_usage(self.folder).free
        if free < header.end:
            said = f"features take {header.end:,} bytes, and {free:,} are free there"
            raise OSError(errno.ENOSPC, said, str(path))
        replace_file(path, _content(header, itertools.chain([first], batches)))
        with path.open("rb") as file:
            self._checked[path.name] = _state(file)
            header = _Header.read(file)  # of another process, perhaps, with another name
            return mapped(file, header.start, header.dtype, header.shape)

    def _path(self, key: str) -> Path:
        return self.folder / f"features_{key[:32]}.safetensors"


# ------------------------------------------------------------------ a file


@dataclass(frozen=True)
class _Header:
    key: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, int]
    start: int  # of the features, and of the sum that follows them
    end: int
    text: bytes = b""

    @staticmethod
    def make(key: str, name: str, dtype: torch.dtype, shape: tuple[int, int]) -> _Header:
        record = {"format": _FORMAT, "key": key, "name": name, "version": flexkern.version.__version__}
        size = shape[0] * shape[1] * dtype.itemsize
        entries: dict[str, Any] = {
            "__metadata__": {_KEY: json.dumps(record)},
            "features": {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]},
            # Last, so that it can be written when the features are known.
            _SUM: {"dtype": "U8", "shape": [32], "data_offsets": [size, size + 32]},
        }
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % 64)
        start = 8 + len(text)
        return _Header(key, name, dtype, shape, start, start + size, struct.pack("<Q", len(text)) + text)

    @staticmethod
    def read(file: BinaryIO) -> _Header:
        """Raises ValueError if the file is not one that :meth:`make` began, or not as long as that says."""
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError("it has no header")
        text = file.read(length)
        try:
            entries = json.loads(text)
            record, entry = json.loads(entries["__metadata__"][_KEY]), entries["features"]
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']!r}")
            key, name, (inputs, width) = record["key"], record["name"], entry["shape"]
            dtype = {name: dtype for dtype, name in _NAMES.items()}[entry["dtype"]]
            if not all(type(n) is int and n >= 0 for n in (inputs, width)):
                raise ValueError(f"shape {entry['shape']}")
            again = _Header.make(key, name, dtype, (inputs, width))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"its header is not one of format {_FORMAT}") from error
        size = os.fstat(file.fileno()).st_size
        start = 8 + length
        end = start + again.end - again.start
        if size != end + 32:
            raise ValueError(f"it has {size:,} bytes, and its header says {end + 32:,}")
        return _Header(key, name, dtype, (inputs, width), start, end, begin + text)


def _content(header: _Header, batches: Iterator[Tensor]) -> Iterator[Any]:
    sha = hashlib.sha256(header.text)
    yield header.text
    for batch in batches:
        values = batch.cpu().to(header.dtype).contiguous().view(-1)
        if values.numel():
            part = values.view(torch.uint8).numpy().data
            sha.update(part)
            yield part
    yield sha.digest()


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What changes where a file is written to, or replaced."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_sum(file: BinaryIO, end: int) -> None:
    file.seek(0)
    sha, left, part = hashlib.sha256(), end, bytearray(_PART)
    while left:
        count = file.readinto(memoryview(part)[: min(left, _PART)])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it became shorter while it was read")
        sha.update(memoryview(part)[:count])
        left -= count
    if file.read(32) != sha.digest():
        raise ValueError("it has another sum than when it was written")
