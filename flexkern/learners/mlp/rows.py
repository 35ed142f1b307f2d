"""Training inputs that come to the device a batch at a time, as float32 features."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from flexkern.features.loading import loaded
from flexkern.streams.image_source import ImageSource

__all__ = ["Rows", "gathered", "read", "rows_of", "together"]

# Inputs of up to this many bytes go to another device as a whole, in the dtype that they have: batch by batch,
# each step would wait for its copy.
_MOVED_WHOLE = 1 << 30
_AT_ONCE = 256  # rows that are read where the caller has no batches of his own


class Rows:
    """Inputs as what a network takes, float32 [n, width] on a device, of which only what is asked for is made.

    Args:
        inputs: of any floating-point dtype or uint8, [n, ...], on any device; or a source of images.
        device: where rows are wanted.
    """

    def __init__(self, inputs: Tensor | ImageSource, device: torch.device) -> None:
        self._inputs, self.device = inputs, device
        self.shape = torch.Size((len(inputs), math.prod(inputs.shape[1:])))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """These rows, float32 [len(rows), width], a copy."""
        return gathered(self, rows)

    def read(self, rows: Sequence[Tensor | slice]) -> Generator[Tensor, None, None]:
        """The rows of each batch; those of a source are decoded ahead."""
        with contextlib.closing(loaded(self._inputs, rows, self.device)) as taken:
            for batch in taken:
                yield batch.to(torch.float32).flatten(1)

    def tensor(self) -> Tensor:
        """All rows, in memory."""
        if isinstance(self._inputs, Tensor):
            return self._inputs.to(self.device, torch.float32).flatten(1)
        return together(torch.empty((0, self.shape[1]), dtype=torch.float32, device=self.device), self)


def rows_of(inputs: Tensor | ImageSource, device: torch.device) -> Tensor | Rows:
    """Inputs as rows: a tensor where that takes little memory or none; else each batch is converted."""
    device = torch.empty(0, device=device).device  # with its number, as a tensor there has it
    if not isinstance(inputs, Tensor):
        return Rows(inputs, device)
    if inputs.device != device and inputs.numel() * inputs.element_size() <= _MOVED_WHOLE:
        inputs = inputs.to(device)
    if inputs.device == device and inputs.dtype is torch.float32 and inputs.is_contiguous():
        return inputs.flatten(1)
    return Rows(inputs, device)


def read(inputs: Tensor | Rows, rows: Sequence[Tensor | slice]) -> Generator[Tensor, None, None]:
    """The rows of each batch, in the order of ``rows``."""
    if isinstance(inputs, Tensor):
        return (inputs[batch] for batch in rows)
    return inputs.read(rows)


def gathered(inputs: Tensor | Rows, rows: Tensor) -> Tensor:
    """Some rows, a copy in memory."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    taken = torch.empty((len(rows), inputs.shape[1]), dtype=torch.float32, device=inputs.device)
    return _filled(taken, inputs, rows.split(_AT_ONCE))


def together(kept: Tensor, inputs: Tensor | Rows) -> Tensor:
    """Rows that are kept, and after them all others, a copy in memory."""
    if isinstance(inputs, Tensor):
        return torch.cat([kept, inputs])
    joined = torch.empty((len(kept) + len(inputs), kept.shape[1]), dtype=torch.float32, device=kept.device)
    joined[: len(kept)] = kept
    _filled(joined[len(kept) :], inputs, torch.arange(len(inputs)).split(_AT_ONCE))
    return joined


def _filled(places: Tensor, inputs: Rows, rows: Sequence[Tensor]) -> Tensor:
    for to, batch in zip(places.split(_AT_ONCE), inputs.read(rows), strict=True):
        to.copy_(batch)
    return places
