"""Images that are decoded when they are needed, and how batches of them come off the disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexkern.plain import whole_number

__all__ = ["ImageSource", "batches", "default_workers"]

_MOST_WORKERS = 8
# Fewer images than this are decoded in the process itself: starting workers takes as long as some hundred.
_FEW = 64


def default_workers() -> int:
    """Processes that decode where nothing is said: one for each processor at hand, at most 8."""
    at_hand = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(at_hand, _MOST_WORKERS)


class ImageSource(Dataset[Tensor], ABC):
    """Images of one size that are decoded when they are asked for; memory does not grow with their number.

    An :class:`flexkern.streams.Experience` holds one where it holds a tensor of images. It has the length, the
    shape and the dtype of that tensor: uint8 [n, 3, height, width]. ``source[i]`` decodes image i;
    ``source[rows]``, of a slice or a list of numbers, is a source of these images, and decodes nothing.

    A source can be pickled (processes decode), and gives the same pixels each time: what is random in training
    is done to batches on the device.

    Args:
        size: pixels of each side.
        workers: processes that decode while the network computes; 0: none, decode in between; None: one for
            each processor, at most 8.
    """

    def __init__(self, size: int, workers: int | None = None) -> None:
        self.size = whole_number(size, "size")
        self.workers = workers if workers is None else whole_number(workers, "workers", least=0)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def decode(self, i: int) -> np.ndarray:
        """Image i, uint8 [size, size, 3].

        Raises:
            ValueError, OSError: naming the image, if it cannot be read.
        """

    @abstractmethod
    def name(self, i: int) -> str:
        """What image i is called: its path, or its place in a larger file."""

    @abstractmethod
    def identity(self, i: int) -> str:
        """What decides the pixels of image i, as far as it is known without decoding: path, bytes, time."""

    @property
    def shape(self) -> torch.Size:
        """As of a tensor: (n, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    def __getitem__(self, index: Any) -> Any:
        """The pixels of one image, or a source of some of them."""
        if isinstance(index, slice):
            return _Part(self, np.arange(len(self))[index])
        if isinstance(index, (Sequence, np.ndarray)) or (isinstance(index, Tensor) and index.dim()):
            return _Part(self, _rows(index, len(self)))
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a source of {len(self)} images")
        return self.take([i % len(self)])[0]

    def take(self, rows: Sequence[int]) -> Tensor:
        """The pixels of some images, decoded in this process: uint8 [len(rows), 3, size, size]."""
        taken = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        for at, i in enumerate(rows):
            taken[at] = torch.from_numpy(self.decode(i)).permute(2, 0, 1)
        return taken

    def tensor(self) -> Tensor:
        """All pixels, in memory."""
        everything = torch.empty(self.shape, dtype=torch.uint8)
        rows = torch.arange(len(self)).split(256)
        for at, part in zip(rows, batches(self, rows), strict=True):
            everything[at] = part
        return everything


class _Part(ImageSource):
    """Some images of a source."""

    def __init__(self, whole: ImageSource, rows: np.ndarray) -> None:
        super().__init__(whole.size, whole.workers)
        inner = isinstance(whole, _Part)
        self._whole: ImageSource = whole._whole if inner else whole  # type: ignore[attr-defined]
        self._rows: np.ndarray = whole._rows[rows] if inner else rows  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._rows)

    def decode(self, i: int) -> np.ndarray:
        return self._whole.decode(int(self._rows[i]))

    def name(self, i: int) -> str:
        return self._whole.name(int(self._rows[i]))

    def identity(self, i: int) -> str:
        return self._whole.identity(int(self._rows[i]))


def _rows(index: Sequence[int] | np.ndarray | Tensor, count: int) -> np.ndarray:
    given = index.numpy(force=True) if isinstance(index, Tensor) else np.asarray(index)
    given = np.flatnonzero(given) if given.dtype == bool and len(given) == count else given
    rows = given.astype(np.int64)
    if rows.ndim != 1 or (rows.size and not -count <= rows.min() <= rows.max() < count):
        raise IndexError(f"numbers of images must be a list, each under {count}")
    return rows % count if count else rows


def batches(
    images: Tensor | ImageSource, rows: Iterable[Tensor | slice], *, pin: bool = False
) -> Iterator[Tensor]:
    """The pixels of each batch, in the order of ``rows``; a source's are decoded ahead by its workers.

    Args:
        images: in memory, or on the disk.
        rows: which images each batch has.
        pin: whether a source's batches lie in pinned memory, from which a GPU copies while it computes.

    Raises:
        ValueError, OSError: of :meth:`ImageSource.decode`, naming the image.
    """
    if isinstance(images, Tensor):
        yield from (images[of_batch] for of_batch in rows)
        return
    every = np.arange(len(images))
    numbers = [every[b if isinstance(b, slice) else b.numpy(force=True)].tolist() for b in rows]
    workers = default_workers() if images.workers is None else images.workers
    # A worker of somebody else's pool may not have processes of its own.
    if multiprocessing.current_process().daemon or sum(map(len, numbers)) < _FEW:
        workers = 0
    loader = DataLoader(
        _Batches(images), batch_sampler=numbers, num_workers=min(workers, len(numbers)), collate_fn=_as_it_is,
        pin_memory=pin, worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # of seeds for workers, which use none: torch's own is the caller's
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


class _Batches(Dataset[Any]):
    """A source as DataLoader reads it: whole batches, and an exception as it was raised, not as a text."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitems__(self, rows: list[int]) -> Tensor | Exception:
        try:
            return self.source.take(rows)
        except Exception as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    """Ctrl-C is for the process that started the workers: it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
