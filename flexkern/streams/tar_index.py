"""Where the members of a tar archive lie: one walk over its headers, which unpacks nothing."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

__all__ = ["Member", "members"]

_BLOCK = tarfile.BLOCKSIZE
_MOST_OF_NAME = 1 << 16  # bytes of a long name, and of what else is said of a member
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FILES, _FOLDER = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX, _PAX_FOR_ALL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE


class Member(NamedTuple):
    """A file in an archive, as its name says, and the bytes that it has there."""

    name: str
    offset: int
    length: int


def members(path: str) -> Iterator[Member]:
    """The files of a tar archive, in its order.

    Sizes are held against the archive's own, and against each other; links, devices and sparse files are
    refused, because what they stand for is not in the archive, or not as they say.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no tar archive that can be read so, naming it and the place in it.
    """
    what = f"path: {path!r}"
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        at, longer, found = 0, "", False
        while at + _BLOCK <= end:
            file.seek(at)
            block = file.read(_BLOCK)
            if not block.strip(b"\0"):
                break
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                _refuse_packed(block, what)
                kind = "has a broken header" if found else "is no tar archive"
                raise ValueError(f"{what} {kind} at byte {at}: {error}") from error
            begin, found = at + _BLOCK, True
            if info.size < 0 or begin + info.size > end:
                raise ValueError(
                    f"{what}: {info.name!r} would have {info.size} bytes, past the archive's {end}"
                )
            at = begin + -(-info.size // _BLOCK) * _BLOCK
            if info.type in (_LONG_NAME, *_PAX):
                longer = _said(file, info, what) or longer
            elif info.type in _FILES:
                yield Member(longer or info.name, begin, info.size)
                longer = ""
            elif info.type == _FOLDER:
                longer = ""
            elif info.type not in (_LONG_LINK, _PAX_FOR_ALL):
                raise ValueError(
                    f"{what}: {longer or info.name!r} is a link, a device or a sparse file, not read"
                )
        if not found:
            file.seek(0)
            _refuse_packed(file.read(_BLOCK), what)
            raise ValueError(f"{what} is no tar archive, or holds nothing")


def _refuse_packed(start: bytes, what: str) -> None:
    packed = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise ValueError(
            f"{what} is compressed ({packed}): unpack it to a .tar, where each image can be read alone"
        )


def _said(file: IO[bytes], info: tarfile.TarInfo, what: str) -> str:
    """The name that a header says for the next member; empty if it says none."""
    if info.size > _MOST_OF_NAME:
        raise ValueError(f"{what}: {info.size} bytes are said of one member; at most {_MOST_OF_NAME} are read")
    content = file.read(info.size)
    if info.type == _LONG_NAME:
        return content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    name = ""
    while content:
        length, _, _ = content.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = content[len(length) + 1 : max(size - 1, 0)].partition(b"=")
        if not 0 < size <= len(content) or not equals:
            raise ValueError(f"{what}: what is said of a member is damaged")
        if key.startswith(b"GNU.sparse") or key == b"size":
            raise ValueError(f"{what}: it has a member that is sparse, or too large, which is not read")
        name = value.decode("utf-8", "surrogateescape") if key == b"path" else name
        content = content[size:]
    return name
