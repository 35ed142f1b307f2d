"""Modules whose buffers grow as classes and tasks come."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexkern.distributed import sum_

__all__ = ["GrowingState", "check_features", "check_finite", "check_labels", "seeded"]


# What torch's allocators say; on a CPU it is no exception of its own.
_NO_MEMORY = re.compile("allocate|out of memory|overflowed")


class GrowingState(nn.Module):
    """A module whose state is buffers of sizes that a fresh object does not know.

    :meth:`load_state_dict` takes the sizes from the state. A buffer keeps its dtype when the module is cast:
    sums in float64 stay exact. Subclasses register their buffers as usual and say in :meth:`_check_state` which
    state fits.
    """

    _SIZES: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Sizes of the buffers of a state: numbers, names of attributes, or a capital for one that several have."""

    _DERIVED: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Sizes, as those of buffers, of what is made from these in float32 to answer, and kept."""

    adds_up: ClassVar[tuple[str, ...]] = ()
    """The buffers that are sums over samples: :func:`flexkern.nn.learning_together` adds them up."""

    def _grow(self, classes: int) -> None:
        """Makes room for so many classes."""

    def _add_up(self, group: Any) -> None:
        """Adds the sums of all processes of a group, which have learned apart; all know all classes."""
        sum_([buffer for name in self.adds_up if (buffer := self._buffers[name]) is not None], group)

    def _check_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError if these buffers, by name, cannot be the state of this object."""

    def _check_sizes(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError unless the buffers are of the sizes that they must be, and fit each other."""
        shared: dict[str, int] = {}
        for name, sizes in self._SIZES.items():
            if name not in state:
                continue
            shape = state[name].shape
            expected = [
                shared.setdefault(size, have) if size.isupper() else getattr(self, size, None) or int(size)
                for have, size in zip(shape, sizes, strict=False)
            ]
            if len(shape) != len(sizes) or list(shape) != expected:
                raise ValueError(
                    f"the state has {name} {list(shape)}, and must have [{', '.join(sizes)}]"
                    + "".join(f", {k} = {v}" for k, v in shared.items())
                )

    def bytes_with(self, **sizes: int) -> int:
        """Bytes of the state, and of what is kept to answer, if some sizes were others than they are.

        Args:
            sizes: by the capitals of ``_SIZES``: C classes, T tasks ... Others stay. Modules in this one do not
                count.
        """
        total, now = 0, dict(sizes)
        for name, letters in self._SIZES.items():
            buffer = self._buffers[name]
            if buffer is None:
                continue
            shape = zip(letters, buffer.shape, strict=True)
            shape_then = [now.setdefault(size, n) if size.isupper() else n for size, n in shape]
            total += math.prod(shape_then) * buffer.element_size()
        for derived in self._DERIVED:
            numbers = [now[n] if n.isupper() else int(n) if n.isdigit() else getattr(self, n) for n in derived]
            total += math.prod(numbers) * torch.float32.itemsize
        return total

    def _changed(self) -> None:
        """Called after the state was replaced or moved: drops what was derived from it."""

    def _written(self) -> None:
        """Called where a buffer was written from outside since :meth:`_look`: drops what came from values."""
        self._changed()

    def _look(self) -> None:
        """Drops what was derived from the buffers if something else, such as an average, wrote into them."""
        seen = self.__dict__.get("_seen", ())
        now = [buffer for buffer in self._buffers.values() if buffer is not None]
        if any(b.is_inference() for b in now):  # they have no version: look at them each time
            self._written()
            return
        same = len(seen) == len(now) and all(
            b is known and b._version == version for b, (known, version) in zip(now, seen, strict=True)
        )
        if not same:
            self._written()
            self._seen = tuple((b, b._version) for b in now)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        mine = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        self._check_state(mine)
        self._check_sizes(mine)
        for name, saved in mine.items():
            buffer = self._buffers[name]
            if buffer is not None and saved.is_floating_point() and not buffer.is_floating_point():
                # Averages of state_dicts are floating: counts and labels that all of them have in common come
                # back as they were.
                whole = saved > 0.5 if buffer.dtype is torch.bool else saved.round().to(buffer.dtype)
                state_dict = {**state_dict, prefix + name: whole}
        for name, saved in mine.items():
            buffer = self._buffers[name]
            if buffer is not None and buffer.shape != saved.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._changed()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GrowingState:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                # From the value before the cast, which may have rounded.
                self._buffers[name] = (moved if value.is_meta else value).to(moved.device, value.dtype)
        self._changed()
        return self

    def _append(self, name: str, rows: Tensor) -> None:
        """Appends rows to a buffer."""
        buffer = self._buffers[name]
        assert buffer is not None
        self._buffers[name] = torch.cat([buffer, rows.to(buffer)])

    def _make_room(self, classes: int, names: Mapping[str, int], **fill: int) -> None:
        """Makes buffers longer for so many classes: all of them, or none where the memory is not there.

        Args:
            classes: how many there are to be; where there are more, nothing happens.
            names: buffers, and the dimension that is of classes.
            fill: what new elements of a buffer are, where not 0.

        Raises:
            ValueError: naming the labels, if there is no memory for so many.
        """
        wanted = []
        for name, dim in names.items():
            buffer = self._buffers[name]
            assert buffer is not None
            shape = [*buffer.shape]
            shape[dim] = classes - shape[dim]
            if shape[dim] <= 0:
                return
            wanted.append((name, dim, buffer, shape))
        try:
            grown = {
                name: torch.cat([old, old.new_full(more, fill.get(name, 0))], dim)
                for name, dim, old, more in wanted
            }
        except RuntimeError as error:
            if not _NO_MEMORY.search(str(error)):
                raise
            raise ValueError(
                f"labels must be numbers of classes, counted from 0; the largest is {classes - 1}, and there "
                f"is no memory for {classes} classes"
            ) from error
        self._buffers.update(grown)


def check_features(h0: object, width: int, name: str = "h0") -> None:
    """Raises TypeError or ValueError unless ``h0`` is floating-point [n, width]."""
    if not isinstance(h0, Tensor) or not h0.is_floating_point():
        got = h0.dtype if isinstance(h0, Tensor) else type(h0).__name__
        raise TypeError(f"{name} must be a floating-point tensor [n, {width}], got {got}")
    if h0.dim() != 2 or h0.shape[1] != width:
        raise ValueError(f"{name} must be [n, {width}], got {tuple(h0.shape)}")


def check_finite(features: Tensor, name: str = "h0") -> float:
    """The largest size of an element, 0 if there are none.

    Raises ValueError for infinite or NaN features: one of them would spoil running sums for good.
    """
    if not features.numel():
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(features.detach()))
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{name} has infinite or NaN elements, which sums would keep for ever")
    return max(-low, high)


def check_labels(labels: object, n: int) -> None:
    """Raises TypeError or ValueError unless ``labels`` is int64 or int32 [n], all >= 0."""
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32):
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor [{n}], got {got}")
    if tuple(labels.shape) != (n,):
        raise ValueError(f"labels must be [{n}], one for each feature vector, got {tuple(labels.shape)}")
    if n and int(labels.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}")


def seeded(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on ``device``, seeded by a tuple of numbers (such as a seed, a task and a purpose)."""
    state = 0
    for number in numbers:
        # One round of splitmix64 per number: neighbouring tuples get unrelated seeds.
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state % 2**63)
