"""Long streams: what must stay flat stays flat, and what a method adds with each task is what it says.

Sizes are tiny, so that what grows shows against them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from flexkern.learners import ArtsyViT, Learner, MetaplasticMLP
from flexkern.streams import Experience
from helpers import tiny_vit
from reliability.forks import fast_folder

__all__ = ["SUBJECTS", "Subject", "faults", "soak"]

Series = dict[str, list[float]]  # a column for each quantity
_POINTS = 40  # at which everything is measured


class Subject(NamedTuple):
    """A learner and its stream.

    make: the learner. items: of the stream, for ever. full, quick: how many are learned in the full run and in
    the tests. grows: bytes of tensors that each item adds to a checkpoint. square: up to how many items the
    time of one may grow by their square.
    """

    name: str
    make: Callable[[], Any]
    items: Callable[[], Iterator[Experience]]
    full: int
    quick: int
    grows: int = 0
    square: int = 0


COLUMNS = ("items", "resident", "blocks", "seconds", "files", "threads", "tensors", "checkpoint")


def soak(subject: Subject, count: int) -> Series:
    """Learns ``count`` items; returns what was measured every so many.

    items: how many were learned then.
    resident: bytes of memory, after a collection; blocks: that Python's allocator holds; seconds: of the
    processor, for one item, the least since the last point (neighbours on a machine only add); files, threads:
    open, running; tensors,
    checkpoint: bytes of a saved file, without and with its head.
    """
    learner, items = subject.make(), subject.items()
    points = np.linspace(0, count, min(_POINTS, count) + 1).round().astype(int)[1:].tolist()
    # Made before, so that what is measured here does not grow by what is written down.
    rows, times = np.zeros((len(points), len(COLUMNS))), np.zeros(count)
    learned, row = 0, 0
    gc.collect()
    gc.freeze()  # a collection then looks at what came since, and not at all modules: 0.2 s less, at each point
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        path = Path(folder) / "learner.safetensors"
        for point in points:
            begin = learned
            for learned in range(begin, point):
                item = next(items)
                start = time.process_time()
                learner.learn(item, epochs=1)
                times[learned] = time.process_time() - start
            learned, item = point, None
            learner.save(path)
            rows[row] = (point, *_memory(), times[begin:point].min(), *_handles(), *_sizes(path))
            row += 1
        # What was saved at the end of a long stream is a learner like any other.
        again = type(learner).load(path, **_given(learner))
        assert again.items_learned == count
    gc.unfreeze()
    return {name: rows[:, i].tolist() for i, name in enumerate(COLUMNS)}


def _memory() -> tuple[int, int]:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # it keeps what was freed; only glibc has this
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), sys.getallocatedblocks()


def _handles() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def _sizes(path: Path) -> tuple[int, int]:
    with safe_open(path, framework="np") as file:
        slices = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118 - not a dict
    return sum(slices), path.stat().st_size


def _given(learner: Learner) -> dict[str, Any]:
    return {"backbone": _backbone()} if isinstance(learner, ArtsyViT) else {}


def faults(found: Series, per_item: int, square: int = 0) -> list[str]:
    """What has grown that should not have, in words.

    The first quarter warms up; the second is compared with the last. Limits: nothing at all for files, threads
    and tensors, which are counted; for the rest what noise makes of a constant here:

    - resident memory: 400 bytes per item, or 4 MiB in a short run: the allocator takes from the system in steps
      of up to 1 MiB and does not give back at once. A float32 weight of these networks has 1 to 2 KiB, so one
      tensor left behind per item is over it. Where an item adds tensors: three times those bytes, because they
      lie in tensors that double, the old one beside the new one; and 20 KiB for the objects of its adapters, 24
      parameters and views of 0.6 KiB each, and what Python has of them.
    - Python's blocks: 0.05 per item and 100 in all (its caches fill), so that not even a number may be left
      behind; where an item adds parameters, as many more in the last quarter as in the second, and a tenth.
    - seconds: half more in the last quarter than in the second, after what ``square`` allows; where an item
      adds parameters, 0.3 ms more for each that came between: Python looks at all of them, 0.13 ms for twelve.
    """
    wrong = []
    quarter = len(found["items"]) // 4
    second, last = slice(quarter, 2 * quarter), slice(-quarter, None)
    said = {name: np.asarray(values) for name, values in found.items()}
    between = float(np.mean(said["items"][last]) - np.mean(said["items"][second]))

    def grown(name: str) -> float:
        return float(np.median(said[name][last]) - np.median(said[name][second]))

    for name in ("files", "threads"):
        if grown(name) > 0:
            wrong.append(f"{name} grew by {grown(name):.0f}")
    steps, sizes = np.diff(said["items"]), np.diff(said["tensors"])
    if not np.array_equal(sizes, steps * per_item):
        wrong.append(f"a checkpoint's tensors grow by {sizes / steps} bytes per item, and not by {per_item}")
    room = max(400 * between, 4 * 2**20) + (3 * per_item + 20 * 2**10 * bool(per_item)) * between
    if grown("resident") > room:
        wrong.append(f"resident memory grew by {grown('resident'):.0f} bytes in {between:.0f} items")
    rates = np.diff(said["blocks"]) / steps
    early, late = float(np.median(rates[second])), float(np.median(rates[last]))
    if late > (0.05 + 100 / between if not per_item else 1.1 * early):
        wrong.append(f"Python's blocks grow by {late:.2f} per item, {early:.2f} before")
    sooner, later = (float(np.median(said["seconds"][part])) for part in (second, last))
    before, after = (min(square, float(np.mean(said["items"][part]))) for part in (second, last))
    allowed = 1.5 * sooner * ((after / before) ** 2 if square else 1) + 3e-4 * between * bool(per_item)
    if later > allowed:
        wrong.append(f"an item takes {later / sooner:.2f} times as long as before")
    return wrong


# ------------------------------------------------------------------ subjects


def _blobs() -> Iterator[Experience]:
    """Two of six classes at a time, in turns."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 16, generator=generator)
    number = 0
    while True:
        labels = (torch.arange(32) % 2) + 2 * (number % 3)
        inputs = centres[labels] + 0.3 * torch.randn(32, 16, generator=generator)
        yield Experience(f"item {number}", number, inputs, labels, inputs[:4], labels[:4])
        number += 1


def _colours() -> Iterator[Experience]:
    """Two new classes at a time, each a colour with noise."""
    generator = torch.Generator().manual_seed(0)
    number = 0
    while True:
        labels = torch.arange(16) % 2 + 2 * number
        colours = torch.randint(40, 216, (2, 3, 1, 1), generator=generator)[labels - 2 * number]
        images = (colours + 20 * torch.randn(16, 3, 16, 16, generator=generator)).clamp(0, 255).byte()
        yield Experience(f"task {number}", number, images, labels, images[:2], labels[:2])
        number += 1


_KNOWN: list[torch.nn.Module] = []


def _backbone() -> torch.nn.Module:
    if not _KNOWN:
        _KNOWN.append(tiny_vit.backbone())
    return _KNOWN[0]


def _mlp(**options: Any) -> Callable[[], MetaplasticMLP]:
    return lambda: MetaplasticMLP((16,), 6, widths=(24, 16), batch_size=16, scale=1e3, seed=1, **options)


def _artsy(**options: Any) -> Callable[[], ArtsyViT]:
    return lambda: ArtsyViT.make(_backbone(), rank=2, seed=1, batch_size=16, lr=0.05, **options)


# What a task of two classes adds to a checkpoint, in bytes. Features: 24 numbers; adapters: rank 2, 3 blocks.
_BANK = 4 * 3 * (2 * 24 * 2 + 2 + 24)
_PROTOTYPES = 2 * (8 * 24 + 8 + 8)  # of a class: a float64 sum, a count, and its subspace's number
_GATE = 8 + 3 * 4 + 2 * 8  # ready, threshold, slope, offset; and the task of each class
_BEST = {
    "head": "experts", "evidence": "class+mean",
    "gate": {"gate": "ridge", "gating": "topk", "k": 2, "fill": True, "features": 32},
}  # fmt: skip


def _means(width: int) -> int:
    """A float64 sum and a count of each class."""
    return 2 * (8 * width + 8)


SUBJECTS: Sequence[Subject] = (
    Subject("MetaplasticMLP, gate item", _mlp(), _blobs, 10_000, 2000),
    Subject("MetaplasticMLP, gate step", _mlp(gate="step", momentum=0.9), _blobs, 10_000, 2000),
    # The ridge head has a float64 column for each class, the experts two vectors in float32 and a
    # number; and of each task two numbers.
    Subject("ArtsyViT, ridge and experts", _artsy(**_BEST), _colours, 500, 30,
            _BANK + _GATE + _means(48) + 2 * (8 * 32 + 8) + 2 * (2 * 4 * 24 + 8) + 2 * 4,
            64),  # whose gates are calibrated together, by scores of each task by each: see synapse_gate.py
    # A gate is a network 24-64-1.
    Subject("ArtsyViT, mlp", _artsy(combine="sum"), _colours, 500, 30,
            _BANK + _PROTOTYPES + _GATE + _means(24) + 4 * (64 * 24 + 64 + 64 + 1)),
    Subject("ArtsyViT, none", _artsy(combine="sum", gate={"gate": "none"}), _colours, 500, 30,
            _BANK + _PROTOTYPES + _GATE),
)  # fmt: skip
