"""Procedural fields in plain PyTorch (docs/design.md, Procedural fields).

Defined operation by operation in float32, each rounded once; the kernels repeat exactly these operations, so
that all backends agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Field, Kind
from flexkern.spec.constants import (
    NORMAL_CENTRE,
    NORMAL_TAIL,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    SQRT_HALF_BITS,
)
from flexkern.spec.normal_table import FIRST, ROWS, SHIFT

__all__ = ["field", "field_values", "fill_field_", "materialize", "philox", "sources_to_tensors"]

_LOW32 = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], seed: int, rounds: int = PHILOX_ROUNDS) -> list[Tensor]:
    """Four 32-bit random words for each counter of four words.

    Words are int64 tensors that hold 0 .. 2**32 - 1. The product of two such words may wrap past
    2**63, which keeps all 64 of its bits; the shift below is masked because it extends the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(rounds):
        p0, p1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW32) ^ c1 ^ k0,
            p1 & _LOW32,
            ((p0 >> 32) & _LOW32) ^ c3 ^ k1,
            p0 & _LOW32,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & _LOW32, (k1 + PHILOX_WEYL[1]) & _LOW32
    return [c0, c1, c2, c3]


def _float32(value: float) -> float:
    """``value`` rounded to float32, so that tensor arithmetic with it rounds once, in the result."""
    return torch.tensor(value, dtype=torch.float32).item()


def _sqrt(x: Tensor) -> Tensor:
    """Square root, rounded correctly: by way of float64, because torch's own may be an ulp off on a CPU."""
    return torch.sqrt(x.double()).float()


def _horner(coefficients: Sequence[float | Tensor], t: Tensor) -> Tensor:
    p = torch.zeros_like(t) + coefficients[-1]
    for c in reversed(coefficients[:-1]):
        p = p * t + c
    return p


def _log(y: Tensor) -> Tensor:
    """Logarithm of float32 y in (0, 1]: log m = 2 atanh((m - 1) / (m + 1)) with m in [sqrt(.5), sqrt(2))."""
    bits = y.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).view(torch.float32)
    s = (m - 1.0) / (m + 1.0)
    odd = s * _horner([_float32(2 / n) for n in (1, 3, 5, 7, 9)], s * s)
    return exponent.float() * _float32(math.log(2)) + odd


def _normal_quantile(u: Tensor) -> Tensor:
    x = 2.0 * u - 1.0
    w = -_log((1.0 - x) * (1.0 + x))
    centre = _horner(NORMAL_CENTRE, w - 2.5)
    tail = _horner(NORMAL_TAIL, _sqrt(w) - 3.0)
    return x * torch.where(w < 5.0, centre, tail)


def _normal_by_table(word: Tensor) -> Tensor:
    """The quantile of a word's lower 31 bits, of which the last is set, so that they are not 0; the top bit is
    the sign."""
    v = ((word | 1) & 0x7FFFFFFF).float()  # rounded to nearest
    rows = torch.tensor(ROWS, dtype=torch.float32, device=word.device)[(v.view(torch.int32) >> SHIFT) - FIRST]
    x = _horner(rows.unbind(-1), v)
    return torch.where(word >> 31 == 1, -x, x)


def field_values(word: Tensor, kind: Kind, parameters: Sequence[float]) -> Tensor:
    """Random words (int64, 32 bits each) to float32 values of the distribution, by inverse CDF."""
    p0, p1 = parameters
    u = ((word >> 9).float() + 0.5) * 2.0**-23  # exact, in (0, 1)
    if kind == Kind.UNIFORM:
        return u * _float32(p1 - p0) + _float32(p0)
    if kind == Kind.NORMAL:
        return _normal_quantile(u) * _float32(p1) + _float32(p0)
    if kind == Kind.NORMAL_TABLE:
        return _normal_by_table(word) * _float32(p1) + _float32(p0)
    # CDF x^2/2 + x/2 = u has the root (sqrt(1 + 8u) - 1) / 2, written without its cancellation.
    high = (4.0 * u) / (_sqrt(8.0 * u + 1.0) + 1.0)
    return high if kind == Kind.BIASED_HIGH else 1.0 - high


def field(
    shape: Sequence[int],
    source: Sequence[int],
    parameters: Sequence[float],
    device: torch.device | None = None,
) -> Tensor:
    """The float32 tensor that a procedural source, ``[kind, seed, stream, offset, purpose]``, stands for."""
    kind, seed, stream, offset, purpose = source
    numel = math.prod(shape)
    if kind == Kind.CONSTANT:
        return torch.full(tuple(shape), parameters[0], dtype=torch.float32, device=device)
    index = torch.arange(numel, dtype=torch.int64, device=device) + offset
    block = index >> 2
    counter = [
        block & _LOW32,
        (block >> 32) & _LOW32,
        torch.full_like(index, stream),
        torch.full_like(index, purpose),
    ]
    words = torch.stack(philox(counter, seed & (2**64 - 1)))
    word = words.gather(0, (index & 3).unsqueeze(0)).squeeze(0)
    return field_values(word, Kind(kind), parameters).reshape(tuple(shape))


def materialize(source: Field, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """:func:`field` of a :class:`flexkern.Field`."""
    ints, floats = source.source()
    return field(shape, ints, floats, device)


def sources_to_tensors(
    stored: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float], like: Sequence[Tensor]
) -> list[Tensor]:
    """One tensor for each of ``like``: stored ones in order, the others materialised.

    ``sources`` holds SOURCE_INTS numbers for each tensor, ``parameters`` SOURCE_FLOATS; empty: all are stored.
    """
    if not sources:
        return list(stored)
    remaining = iter(stored)
    tensors = []
    for i, target in enumerate(like):
        source = sources[SOURCE_INTS * i : SOURCE_INTS * (i + 1)]
        if source[0] == Kind.STORED:
            tensors.append(next(remaining))
        else:
            p = parameters[SOURCE_FLOATS * i : SOURCE_FLOATS * (i + 1)]
            # float32 values; what is computed from them has the dtype of the weight
            tensors.append(field(target.shape, source, p, target.device).to(target.dtype))
    return tensors


def fill_field_(out: Tensor, source: Sequence[int], parameters: Sequence[float]) -> None:
    """``flexkern::fill_field_``."""
    out.copy_(field(out.shape, source, parameters, out.device))
