"""Procedural fields: random values that are computed from their position instead of being stored.

A field gives every synapse of a tensor its value from ``(seed, stream, purpose, index)`` by the
counter-based generator Philox4x32-10 (Salmon et al., SC'11), so a flexibility or an anchor that is
drawn once and fixed for life costs no memory and no traffic. Every backend computes the same bits.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, TypeVar

from flexkern.spec.argument import shown

__all__ = ["Field", "Kind", "Purpose"]


_Member = TypeVar("_Member", bound=enum.IntEnum)


class Kind(enum.IntEnum):
    """How a value is found. The numbers are those of ``csrc/include/flexkern/field.h``."""

    STORED = 0  # read from a tensor
    CONSTANT = 1  # one number for all
    UNIFORM = 2
    NORMAL = 3
    BIASED_HIGH = 4
    BIASED_LOW = 5


class Purpose(enum.IntEnum):
    """Keeps two fields of one seed and stream apart: it is the last word of the Philox counter."""

    FLEXIBILITY = 0
    ANCHOR = 1
    SILENCE = 2  # which synapses start silent
    DROPOUT = 3  # which hidden units of an adapter are dropped


_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_MOST_DEVIATIONS = 5.3  # a normal field is cut before that


def _member(kind: type[_Member], value: Any, name: str) -> _Member:
    """``value`` as a member of ``kind``."""
    try:
        if not isinstance(value, bool):
            return kind(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be one of {', '.join(map(str, kind))}, got {shown(value)}")


def _integer(value: Any, name: str, bits: int) -> int:
    """``value``, also a scalar of numpy, as an int in [0, 2**bits)."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {shown(value)}") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} must be in [0, 2**{bits}), got {shown(number)}")
    return number


def _floats(values: Any, name: str) -> tuple[float, float]:
    """A pair of numbers, also of numpy."""
    is_pair = isinstance(values, (tuple, list)) and len(values) == 2
    if not is_pair or not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        raise TypeError(f"{name} must be two numbers, got {shown(values)}")
    try:
        return float(values[0]), float(values[1])
    except OverflowError:
        raise ValueError(f"{name} must be finite in float32, got an integer that no float holds") from None


@dataclass(frozen=True)
class Field:
    """A random tensor that is not stored (docs/design.md, Procedural fields).

    The value at ``index``, the position in the whole, unsharded tensor in row-major order, comes
    from lane ``index % 4`` of Philox4x32-10 with the 64-bit ``seed`` as key and the counter
    ``(index // 4, stream, purpose)``. Make one by :meth:`uniform`, :meth:`normal`,
    :meth:`biased_high` or :meth:`biased_low`.

    Args:
        kind: the distribution.
        seed: 0 <= seed < 2**64.
        stream: 0 <= stream < 2**32; give each tensor of a network its own.
        purpose: what the value is for; flexibility and anchor of one stream are independent.
        offset: index of the first element, for a shard of a larger tensor; 0 <= offset < 2**62.
        parameters: ``(low, high)`` of a uniform field, ``(mean, std)`` of a normal one.

    Raises:
        TypeError, ValueError: if a number is not an int where it must be (numpy's integers are), outside its
            range, or so large that the values would overflow float32.
    """

    kind: Kind
    seed: int
    stream: int = 0
    purpose: Purpose = Purpose.FLEXIBILITY
    offset: int = 0
    parameters: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, kind in (("kind", Kind), ("purpose", Purpose)):
            object.__setattr__(self, name, _member(kind, getattr(self, name), name))
        if self.kind in (Kind.STORED, Kind.CONSTANT):
            raise ValueError(
                f"kind: {self.kind!r} is not a distribution; pass a tensor or a number instead of a Field"
            )
        for name, bits in (("seed", 64), ("stream", 32), ("offset", 62)):
            object.__setattr__(self, name, _integer(getattr(self, name), name, bits))
        names = {Kind.UNIFORM: " (low, high)", Kind.NORMAL: " (mean, std)"}.get(self.kind, "")
        object.__setattr__(self, "parameters", _floats(self.parameters, f"parameters{names}"))
        self._check_range(f"parameters{names}")
        if self.kind == Kind.NORMAL and self.parameters[1] < 0:
            raise ValueError(f"std must not be negative, got {self.parameters[1]}")

    def _check_range(self, name: str) -> None:
        """The arithmetic of float32 that makes the values does not overflow."""
        first, second = self.parameters
        if not all(abs(p) <= _LARGEST for p in self.parameters):  # NaN is not
            raise ValueError(f"{name} must be finite in float32, got {self.parameters}")
        if self.kind == Kind.UNIFORM and not abs(second - first) <= _LARGEST:
            raise ValueError(f"high - low must be finite in float32, got low={first}, high={second}")
        if self.kind == Kind.NORMAL and not abs(first) + _MOST_DEVIATIONS * abs(second) <= _LARGEST:
            raise ValueError(
                f"mean + {_MOST_DEVIATIONS} std must be finite in float32, got mean={first}, std={second}"
            )

    @classmethod
    def uniform(
        cls,
        seed: int,
        stream: int = 0,
        *,
        low: float = 0.0,
        high: float = 1.0,
        purpose: Purpose = Purpose.FLEXIBILITY,
        offset: int = 0,
    ) -> Field:
        """Uniform on (low, high); the paper's hybrid network has flexibility uniform on (0, 1)."""
        return cls(Kind.UNIFORM, seed, stream, purpose, offset, (low, high))

    @classmethod
    def normal(
        cls,
        seed: int,
        stream: int = 0,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        purpose: Purpose = Purpose.ANCHOR,
        offset: int = 0,
    ) -> Field:
        """Normal, cut at 5.29 standard deviations by the 23 bits that each value is drawn from."""
        return cls(Kind.NORMAL, seed, stream, purpose, offset, (mean, std))

    @classmethod
    def biased_high(cls, seed: int, stream: int = 0, *, offset: int = 0) -> Field:
        """Flexibility with CDF 0.5 x^2 + 0.5 x on (0, 1): more flexible synapses (supplement)."""
        return cls(Kind.BIASED_HIGH, seed, stream, Purpose.FLEXIBILITY, offset)

    @classmethod
    def biased_low(cls, seed: int, stream: int = 0, *, offset: int = 0) -> Field:
        """The mirror image of :meth:`biased_high`, 1 - f: more stable synapses (supplement)."""
        return cls(Kind.BIASED_LOW, seed, stream, Purpose.FLEXIBILITY, offset)

    def shard(self, start: int) -> Field:
        """The field of a contiguous part that begins ``start`` elements into this one.

        Raises:
            TypeError, ValueError: if there is no such part.
        """
        if isinstance(start, bool) or not isinstance(start, Integral):
            raise TypeError(f"start must be an int, got {shown(start)}")
        return replace(self, offset=self.offset + int(start))

    def is_flexibility(self) -> bool:
        """Whether all values lie in [0, 1], as those of a flexibility must."""
        low, high = self.parameters
        return self.kind != Kind.NORMAL and (self.kind != Kind.UNIFORM or 0 <= low < high <= 1)

    @cached_property
    def row(self) -> tuple[list[int], list[float]]:
        """:meth:`source`, made once: not to be written to."""
        return self.source()

    def source(self) -> tuple[list[int], list[float]]:
        """This field as the operators take it: ``[kind, seed, stream, offset, purpose]`` and its parameters."""
        # Operators take signed 64-bit integers: the upper half of the seeds goes through as negative.
        seed = self.seed - (1 << 64) if self.seed >> 63 else self.seed
        return [int(self.kind), seed, self.stream, self.offset, int(self.purpose)], list(self.parameters)


def constant_source(value: float) -> tuple[list[int], list[float]]:
    """A number as a source: the same value for every synapse."""
    return [int(Kind.CONSTANT), 0, 0, 0, 0], [value, 0.0]


STORED_SOURCE: tuple[Sequence[int], Sequence[float]] = ([int(Kind.STORED), 0, 0, 0, 0], [0.0, 0.0])
SOURCE_INTS = 5
SOURCE_FLOATS = 2
