"""Images that are decoded when they are needed, and how batches of them come off the disk."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexkern.plain import whole_number

__all__ = ["ImageSource", "ahead", "batches", "default_workers", "identity_of"]

_T = TypeVar("_T")

_MOST_WORKERS = 8
# Fewer images than this are decoded in the process itself: starting workers takes as long as some hundred.
_FEW = 64
_AT_ONCE = 64  # images of a whole source that are decoded between two looks at how far it is


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

    def look(self, i: int) -> None:
        """Raises what :meth:`decode` would, as far as can be told without decoding; by default nothing."""

    def __getattr__(self, name: str) -> Any:
        hint = "; its pixels in memory are source.tensor()" if hasattr(Tensor, name) else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} images, {self.size} x {self.size}>"

    def __getitem__(self, index: Any) -> Any:
        """The pixels of one image, or a source of some of them."""
        if isinstance(index, slice):
            return _Part(self, np.arange(len(self))[index])
        if isinstance(index, (Sequence, np.ndarray)) or (isinstance(index, Tensor) and index.dim()):
            return _Part(self, _rows(index, len(self)))
        i = whole_number(index, "number of an image", least=None)
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a source of {len(self)} images")
        return self.take([i % len(self)])[0]

    def take(self, rows: Sequence[int]) -> Tensor:
        """The pixels of some images, decoded in this process: uint8 [len(rows), 3, size, size]."""
        # NumPy's memory: torch's is aligned, and glibc before 2.38 does not use such memory again once it is
        # freed, so that a process that decodes would grow by every batch.
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for at, i in enumerate(rows):
            pixels[at] = self.decode(i).transpose(2, 0, 1)
        return torch.from_numpy(pixels)

    def tensor(self, tell: Callable[[int, int], None] | None = None) -> Tensor:
        """All pixels, in memory; ``tell`` is told how many images of how many are decoded."""
        everything = torch.empty(self.shape, dtype=torch.uint8)
        rows = torch.arange(len(self)).split(_AT_ONCE)
        for at, part in zip(rows, batches(self, rows), strict=True):
            everything[at] = part
            if tell is not None and len(at):
                tell(int(at[-1]) + 1, len(self))
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

    def look(self, i: int) -> None:
        self._whole.look(int(self._rows[i]))


def _rows(index: Sequence[int] | np.ndarray | Tensor, count: int) -> np.ndarray:
    given = index.numpy(force=True) if isinstance(index, Tensor) else np.asarray(index)
    if given.dtype == bool and given.shape == (count,):
        return np.flatnonzero(given)
    rows = given.astype(np.int64) if given.dtype.kind in "iu" or not given.size else None
    if rows is None or rows.ndim != 1 or (rows.size and not -count <= rows.min() <= rows.max() < count):
        raise IndexError(f"numbers of images must be a list, each under {count}")
    return rows % count if count else rows


def batches(
    images: Tensor | ImageSource, rows: Iterable[Tensor | slice], *, pin: bool = False
) -> Generator[Tensor, None, None]:
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
    yield from ahead(images.take, numbers, images.workers, pin=pin)


def ahead(
    work: Callable[[list[int]], _T],
    rows: Sequence[list[int]],
    workers: int | None = None,
    *,
    pin: bool = False,
    few: int | None = None,
) -> Iterator[_T]:
    """``work(rows[0])``, ``work(rows[1])`` ..., done by processes before it is asked for.

    Args:
        work: can be pickled.
        rows: of each call.
        workers: as of an :class:`ImageSource`.
        pin: whether tensors that it returns are moved to pinned memory.
        few: less rows than this are no work for which processes are started; None: 64, which is about what
            could be decoded meanwhile.

    Raises:
        Exception: what ``work`` raised, at its place.
        RuntimeError: if a process has been killed.
    """
    workers = default_workers() if workers is None else workers
    # A worker of somebody else's pool may not have processes of its own.
    if multiprocessing.current_process().daemon or sum(map(len, rows)) < (_FEW if few is None else few):
        workers = 0
    loader = DataLoader(
        _Work(work), batch_sampler=rows, num_workers=min(workers, len(rows)), collate_fn=_as_it_is,
        pin_memory=pin, worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # of seeds for workers, which use none: torch's own is the caller's
    )  # fmt: skip
    with _no_interrupt():
        made = iter(loader)
    try:
        while True:
            try:
                done = next(made, None)
            except (OSError, RuntimeError) as error:  # of DataLoader's: what the work raises is handed over
                if not loader.num_workers:
                    raise
                ended = "a process that decodes images has ended (killed, or out of memory)"
                raise RuntimeError(f"{ended}; workers=0 has none: {error}") from error
            if done is None:
                return
            if isinstance(done[0], Exception):
                raise done[0]
            yield done[0]
    finally:
        # At once: else they would stay for as long as somebody keeps the traceback of an exception.
        getattr(made, "_shutdown_workers", _nothing)()


def _nothing() -> None:
    pass


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits, and the processes that are started meanwhile never see one: it is for who started them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Work(Dataset[Any]):
    """Work as DataLoader does it: a whole batch, and an exception as it was raised, not as a text."""

    def __init__(self, work: Callable[[list[int]], Any]) -> None:
        self.work = work

    def __getitems__(self, rows: list[int]) -> tuple[Any]:
        try:
            return (self.work(rows),)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                return (RuntimeError(f"{type(error).__name__}: {error}"),)
            return (error,)


def identity_of(inputs: Tensor | ImageSource) -> str:
    """A fingerprint of images, 32 hexadecimal digits: equal ones have equal pixels, in the same order.

    Of a tensor it is that of its bytes, shape and dtype; of a source, that of the identities of its images
    (:meth:`ImageSource.identity`: of files their paths, sizes and times) and their shape, so that nothing is
    decoded.
    """
    blake = hashlib.blake2b(digest_size=16)
    blake.update(f"{tuple(inputs.shape)} {inputs.dtype}\n".encode())
    if isinstance(inputs, Tensor):
        for part in inputs.split(4096) if inputs.dim() else [inputs]:
            blake.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return blake.hexdigest()
    for i in range(len(inputs)):
        blake.update(f"{inputs.identity(i)}\0".encode("utf-8", "surrogateescape"))
    return blake.hexdigest()


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Of EXIF data in many photographs, once for each worker and epoch; they say nothing about the pixels.
    warnings.filterwarnings("ignore", module=r"PIL\.")
