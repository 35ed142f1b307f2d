"""What a layer with silent synapses saves besides its weights, and what of it an average leaves."""

from __future__ import annotations

import struct
import weakref
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field, Kind, Purpose

__all__ = ["LastSeen", "began_of", "decode", "encode", "mended"]

_FIELD = struct.Struct("<5q2d")  # Field.source(): five integers, two parameters
_WORDS = _FIELD.size // 4
_HEADER = 1 + _WORDS + 1  # the field's checksum, its words, the number of items
_ITEMS = 256  # room for them comes in such steps: tools that average need one size in both models
_BEGAN = {None: 0, True: 1, False: 2}  # the last number; earlier versions have 0 there


def encode(field: Field, conversions: Sequence[int], began_as_init: bool | None = None) -> Tensor:
    """The field of a layer's initial weights, its conversions item by item, and whether its weights held the
    field's values when they began to train (None: not known), as float64 [n], on the CPU.

    All numbers are integers under 2**53. So an average of equal states, with float64's rounding, still rounds
    to what was saved, whatever the weights of the average.
    """
    integers, parameters = field.source()
    data = _FIELD.pack(*integers, *parameters)
    room = -(-(len(conversions) + 1) // _ITEMS) * _ITEMS
    numbers = [zlib.crc32(data), *struct.unpack(f"<{_WORDS}I", data), len(conversions), *conversions]
    numbers += [0] * (room - len(conversions) - 1) + [_BEGAN[began_as_init]]
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def decode(state: Tensor | dict[str, Any]) -> tuple[Field | None, list[int]]:
    """The inverse of :func:`encode`; also of the plain data that earlier versions saved.

    The field is None where the state is an average over layers of different fields: their checksum then does
    not fit.
    """
    if isinstance(state, dict):
        integers, parameters = state["init"]
        return _field(integers, parameters), [int(n) for n in state["conversions"]]
    numbers = [int(n) for n in state.detach().double().nan_to_num().round().tolist()]
    checksum, words = numbers[0], numbers[1 : 1 + _WORDS]
    items = max(0, min(numbers[1 + _WORDS], len(numbers) - _HEADER))
    conversions = numbers[_HEADER : _HEADER + items]
    if not all(0 <= word < 2**32 for word in words):
        return None, conversions
    data = struct.pack(f"<{_WORDS}I", *words)
    if zlib.crc32(data) != checksum:
        return None, conversions
    *integers, p0, p1 = _FIELD.unpack(data)
    return _field(integers, (p0, p1)), conversions


def began_of(state: Tensor | dict[str, Any]) -> bool | None:
    """What :func:`encode` was told of the beginning; None where the state does not say."""
    if isinstance(state, dict):
        return None
    items, last = float(state[_HEADER - 1].nan_to_num()), float(state[-1].nan_to_num())
    # In earlier versions conversions could fill all of the room.
    return {1.0: True, 2.0: False}.get(last) if items < len(state) - _HEADER else None


def _field(integers: Sequence[int], parameters: Sequence[float]) -> Field:
    kind, seed, stream, offset, purpose = integers
    p0, p1 = parameters
    return Field(Kind(kind), seed % 2**64, stream, Purpose(purpose), offset, (p0, p1))


def mended(weight: Tensor, words: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of silent synapses that fits a weight, and how many of each unit are silent.

    The words of a mask cannot be averaged, and whatever averages or copies buffers may leave any bits in them.
    A unit's words are right if every synapse that they call silent has the weight 0, and there are as many as
    were counted. Of another unit the synapses whose weight is exactly 0 are silent: in an average of layers,
    those that are silent in all of them.

    Args:
        weight: floating-point [out, in].
        words: int32 [out, ceil(in / 32)].
        count: integers [out].

    Returns:
        Words and counts (int64) as they should be. Nothing waits for the device.
    """
    zero = weight.detach() == 0
    said = ops.unpack_mask(words, weight.shape[1])
    right = ~(said & ~zero).any(1) & (said.sum(1) == count)
    mask = torch.where(right[:, None], said, zero)
    return ops.pack_mask(mask), mask.sum(1)


class LastSeen:
    """Which tensors a layer last saw, and in what version: whether something has been written since."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[weakref.ref[Tensor], int], ...] = ()

    def note(self, *tensors: Tensor) -> None:
        """This is how they are now."""
        try:
            self._seen = tuple((weakref.ref(t), t._version) for t in tensors)
        except RuntimeError:  # inference tensors have no version: look at them each time
            self._seen = ()

    def unchanged(self, *tensors: Tensor) -> bool:
        """Whether these are the first of the tensors that :meth:`note` saw, as they were."""
        if len(self._seen) < len(tensors):
            return False
        return all(
            ref() is tensor and version == tensor._version
            for (ref, version), tensor in zip(self._seen, tensors, strict=False)
        )
