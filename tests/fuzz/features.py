"""Features of random inputs through a folder, whose files are damaged at random: always those that there
would be without one."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexkern.features import FeatureCache, extract_from
from fuzz.harness import fuzzer
from helpers.made_images import Flat, Made

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_KINDS = ("source", "part", "bytes", "float", "strided")


@functools.cache
def _folder() -> Path:
    """Of this process."""
    folder = tempfile.mkdtemp(prefix="flexkern-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _inputs(rng: np.random.Generator) -> Any:
    source = Made(int(rng.integers(0, 14)), size=2, seed=int(rng.integers(3)))
    kind = _KINDS[rng.integers(len(_KINDS))]
    if kind == "source":
        return source
    if kind == "part":
        return source[rng.integers(0, len(source), rng.integers(0, 9))] if len(source) else source[:0]
    pixels = source.tensor()
    if kind == "bytes":
        return pixels
    return pixels.float().transpose(1, 3) if kind == "strided" else pixels.float()


def _damage(rng: np.random.Generator, path: Path) -> None:
    """Something else is in the file: whoever has it open keeps it."""
    content = bytearray(path.read_bytes())
    how = rng.integers(5)
    at = int(rng.integers(len(content)))
    if how == 0:
        content[at] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del content[at:]
    elif how == 2:
        content[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif how == 3:  # in the header, where sizes are
        digits = [i for i, byte in enumerate(content[: len(content) // 2]) if chr(byte).isdigit()]
        content[digits[rng.integers(len(digits))]] = ord("0") + int(rng.integers(10))
    else:
        content[at : at + 8] = rng.bytes(8)
    path.unlink()
    path.write_bytes(content)


@fuzzer("features", quick=800, full=10_000)
def features(rng: np.random.Generator) -> str:
    module, inputs = Flat(2, int(rng.integers(1, 6)), seed=int(rng.integers(2))), _inputs(rng)
    options: dict[str, Any] = {
        "dtype": _DTYPES[rng.integers(3)], "batch_size": int(rng.integers(1, 17)),
        "name": "a name"[: rng.integers(7)],
    }  # fmt: skip
    expected = extract_from(module, inputs, **options)
    cache = FeatureCache(_folder())
    cache.clear()
    assert torch.equal(extract_from(module, inputs, cache=cache, **options), expected)
    (path,) = _folder().iterdir()
    damaged = bool(rng.integers(4))
    if damaged:
        _damage(rng, path)
    module.batches.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = extract_from(module, inputs, cache=cache if rng.integers(2) else _folder(), **options)
    assert torch.equal(found, expected), "other features"
    assert found.dtype is expected.dtype
    if not damaged:
        assert not said, str(said[0].message)
        assert module.batches == [1][: len(inputs)], "computed again"
        return "found"
    if not said:
        # The same byte again, or nothing that the file is read by.
        assert module.batches == [1][: len(inputs)], "computed again without a word"
        return "no harm"
    assert "is damaged" in str(said[0].message)
    assert torch.equal(extract_from(module, inputs, cache=cache, **options), expected)
    return "mended"
