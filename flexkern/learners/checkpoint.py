"""Checkpoints: one safetensors file of tensors and JSON, written whole or not at all, with sums of both."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from flexkern.files import replace_file

__all__ = ["join_optimizer", "naming", "read", "read_notes", "read_record", "split_optimizer", "write"]

_KEY, _SUMS = "flexkern", "flexkern.sums"  # of the JSONs in the file's metadata
_WITH_SUMS = 2  # the first format of learners' records that came with sums
_MARK = {"tensor": True}  # stands in the JSON for a tensor of the optimizer's state
_LONGEST_HEADER = 100_000_000  # the library's limit
_DEEPEST = 64  # of the record's JSON; a learner's has 6 or so
_PART = 1 << 24  # bytes that are written, or taken from another device, at once
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Puts the file in place in one step, by :func:`flexkern.files.replace_file`.

    The metadata has the record, and sums of SHA-256: of each tensor, and of record and tensors together.

    Raises:
        TypeError: naming a tensor whose dtype is not saved, or if the record is not JSON.
        OSError: as :func:`flexkern.files.replace_file`.
    """
    # Largest elements first, so that each tensor lies at a multiple of their size, as the library has it.
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    text = json.dumps(record, allow_nan=False)
    entries, offset = {}, 0
    for name, t in order:
        if t.dtype not in _TYPES:
            raise TypeError(
                f"{name} is a tensor of {t.dtype}, which is not saved; {sorted(_TYPES.values())} are"
            )
        size = t.numel() * t.element_size()
        entries[name] = {
            "dtype": _TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    metadata = {_KEY: text, _SUMS: json.dumps(_sums(text, dict(order)))}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    # One part after the other: a learner is not in memory twice while it is saved.
    replace_file(path, _parts(header, [t for _, t in order]))


def _parts(header: bytes, tensors: list[Tensor]) -> Iterator[Any]:
    yield struct.pack("<Q", len(header))
    yield header
    for t in tensors:
        yield from _bytes(t)


def _bytes(tensor: Tensor) -> Iterator[Any]:
    """The bytes of a tensor, in parts."""
    flat = tensor.detach().contiguous().reshape(-1)
    if not flat.numel():
        return
    flat = flat.view(torch.uint8)
    for start in range(0, len(flat), _PART):
        yield flat[start : start + _PART].cpu().numpy().data


def _sums(text: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Of each tensor the first half of a SHA-256, to name what is damaged; the whole has all of it."""
    of_tensors, whole = {}, hashlib.sha256(text.encode())
    for name, t in sorted(tensors.items()):
        digest = hashlib.sha256(json.dumps([name, _TYPES.get(t.dtype, str(t.dtype)), list(t.shape)]).encode())
        for part in _bytes(t):
            digest.update(part)
        whole.update(digest.digest())
        of_tensors[name] = digest.hexdigest()[:32]
    return {
        "whole": whole.hexdigest(),
        "record": hashlib.sha256(text.encode()).hexdigest(),
        "tensors": of_tensors,
    }


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and JSON of a checkpoint.

    The tensors are copies in memory: whatever happens to the file afterwards does not reach them. A file that
    an earlier version wrote has no sums, which a warning says.

    Raises:
        FileNotFoundError: if there is no such file; another OSError if it is none, or cannot be read.
        ValueError: naming the path, if the file is damaged or not one of ours.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    with _opened(path) as file, naming(path):
        text, sums, end = _header(file)
        record = _json(text)
        number = record.get("format")
        if sums is None and type(number) is int and number >= _WITH_SUMS:
            raise ValueError(f"is damaged: it carries no sum, and files of format {number} have one")
        file.seek(0)
        try:
            # Not the library's safe_open, which maps the file.
            tensors = load(_whole(file, end))
        except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"is not a checkpoint, or damaged: {error}") from error
        if sums is None:
            warnings.warn(
                f"path: {os.fspath(path)!r} carries no sum, so that damage to it cannot be seen: an earlier "
                "version wrote it; save it again",
                stacklevel=4,  # who called load
            )
        else:
            _check_sums(text, tensors, sums)
    return tensors, record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of a checkpoint; its tensors are not looked at.

    Raises:
        OSError, ValueError: as :func:`read`.
    """
    with _opened(path) as file, naming(path):
        text, sums, _ = _header(file)
        if sums is not None and hashlib.sha256(text.encode()).hexdigest() != sums["record"]:
            raise ValueError("is damaged: its record has another sum than when it was written")
        return _json(text)


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes that a learner was saved with; empty where there are none.

    Raises:
        OSError, ValueError: as :func:`read`.
    """
    notes = read_record(path).get("notes", {})
    return notes if isinstance(notes, dict) else {}


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """ValueErrors name the path."""
    try:
        yield
    except ValueError as error:
        said = f"path: {os.fspath(path)!r} "
        if str(error).startswith(said):
            raise
        raise ValueError(f"{said}{error}") from error


# ------------------------------------------------------------------ the file


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    name = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "path: a folder, not a checkpoint", name)
    if not os.path.exists(path):
        raise FileNotFoundError(f"path: no checkpoint at {name!r}")
    if not os.path.isfile(path):
        raise OSError(errno.EINVAL, "path: no regular file, so no checkpoint", name)
    with open(path, "rb") as file:
        yield file


def _header(file: BinaryIO) -> tuple[str, dict[str, Any] | None, int]:
    """The record as it was written, the sums, and where the file ends by what its header says."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError("is not a checkpoint, or damaged: it has no header")
    header = _parsed(file.read(length), "its header")
    ends = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
            raise ValueError(f"is damaged: its header does not say where {name!r} is")
        ends.append(offsets[1])
    end = 8 + length + max(ends, default=0)
    if end != size:
        raise ValueError(f"is damaged: it has {size:,} bytes, and its header says {end:,}")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise ValueError("was not written by flexkern, or is damaged: it has no record")
    unknown = sorted(set(metadata) - {_KEY, _SUMS})
    if unknown:
        raise ValueError(f"is damaged, or of a later version: its metadata has {unknown[0]!r}")
    if _SUMS not in metadata:
        return metadata[_KEY], None, end
    sums = _parsed(metadata[_SUMS], "its list of sums")
    if sorted(sums) != ["record", "tensors", "whole"] or not isinstance(sums["tensors"], dict):
        raise ValueError("is damaged: its list of sums is none")
    return metadata[_KEY], sums, end


def _whole(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise ValueError("became shorter while it was read")
    return content


def _check_sums(text: str, tensors: dict[str, Tensor], sums: dict[str, Any]) -> None:
    found = _sums(text, tensors)
    if found == sums:
        return
    damaged = [] if found["record"] == sums["record"] else ["its record"]
    known, now = sums["tensors"], found["tensors"]
    damaged += [
        name if name in known and name in now else f"{name} ({'missing' if name in known else 'unknown'})"
        for name in sorted(known.keys() | now.keys())
        if known.get(name) != now.get(name)
    ]
    what = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
    raise ValueError(
        f"is damaged: {what or 'its sum of all'} {'have' if len(damaged) > 1 else 'has'} another sum than when "
        "it was written; take an earlier copy"
    )


# ------------------------------------------------------------------ JSON


def _json(text: str) -> dict[str, Any]:
    record = _parsed(text, "its record")
    _check_depth(record)
    return record


def _parsed(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object without what JSON does not have (NaN), or says twice."""
    try:
        value = json.loads(
            text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_without_repeats
        )
    except RecursionError:
        raise ValueError(f"is damaged: {what} nests too deep") from None
    except (
        ValueError
    ) as error:  # JSONDecodeError, UnicodeDecodeError and numbers of thousands of digits are some
        raise ValueError(f"is not a checkpoint, or damaged: {what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"is not a checkpoint, or damaged: {what} is no JSON object")
    return value


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is too large")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return values


def _check_depth(record: dict[str, Any]) -> None:
    level: list[Any] = [record]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError("is damaged: its record nests too deep")


# ------------------------------------------------------------------ optimizers


def split_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors and JSON with a mark in place of each tensor."""
    tensors: dict[str, Tensor] = {}

    def split(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return _MARK
        if isinstance(value, dict):
            return {str(k): split(v, f"{name}.{k}") for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [split(v, f"{name}.{i}") for i, v in enumerate(value)]
        return value

    return tensors, split(state_dict, "optimizer")


def join_optimizer(tensors: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`split_optimizer`.

    Raises:
        ValueError: naming what is missing, or left over.
    """
    left = {name for name in tensors if name.startswith("optimizer.")}

    def join(value: Any, name: str) -> Any:
        if value == _MARK:
            if name not in tensors:
                raise ValueError(f"{name}: the record has it, the tensors have not")
            left.discard(name)
            return tensors[name]
        if isinstance(value, dict):
            return {k: join(v, f"{name}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [join(v, f"{name}.{i}") for i, v in enumerate(value)]
        return value

    state_dict = join(record, "optimizer")
    if left:
        raise ValueError(f"{min(left)}: the tensors have it, the record has not")
    # JSON has only names for keys; an optimizer numbers its parameters.
    state = {}
    for key, value in state_dict["state"].items():
        if not key.isdecimal() or len(key) > 9:
            raise ValueError(f"optimizer.state: {key[:40]!r} is no number of a parameter")
        state[int(key)] = value
    return {**state_dict, "state": state}
