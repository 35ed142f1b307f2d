"""Every operator in plain PyTorch: the specification, and the implementation of last resort.

The functions read like the papers and compute in the dtype that they are given: with float64 inputs
they are the judge of every kernel. Procedural fields are defined here operation by operation in
float32, each rounded once; the kernels repeat exactly these operations, so all backends agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Field, Kind

__all__ = [
    "Insertion",
    "SgdRule",
    "activity",
    "coincidence",
    "field",
    "field_values",
    "finite",
    "gate",
    "linear_step_",
    "metaplastic_sgd_",
    "pack_mask",
    "philox",
    "sgd_step",
    "sources_to_tensors",
    "synapse_step_",
    "unpack_mask",
]

# --------------------------------------------------------------------------- Philox4x32-10

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers and Weyl increments of Salmon et al., SC'11, section 4.3
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW32 = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], seed: int, rounds: int = 10) -> list[Tensor]:
    """Four 32-bit random words for each counter of four words.

    Words are int64 tensors that hold 0 .. 2**32 - 1. The product of two such words may wrap past
    2**63, which keeps all 64 of its bits; the shift below is masked because it extends the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW32) ^ c1 ^ k0,
            p1 & _LOW32,
            ((p0 >> 32) & _LOW32) ^ c3 ^ k1,
            p0 & _LOW32,
        )
        k0, k1 = (k0 + _W0) & _LOW32, (k1 + _W1) & _LOW32
    return [c0, c1, c2, c3]


# --------------------------------------------------------------------------- procedural fields

# sqrt(2) erfinv(x) / x as a polynomial in t = w - 2.5 where w = -log(1 - x^2) < 5, and in t = sqrt(w) - 3
# beyond. Fitted at Chebyshev nodes to scipy.special.ndtri (least squares of the relative error), lowest
# power first; with the float32 operations below the error is at most 3.5e-7 of the value, and the quantile
# function stays monotone over all 2**23 inputs.
NORMAL_CENTRE = (
    2.1233136653900146, 0.34880268573760986, -0.00590812973678112, -0.001773041789419949,
    0.00030911510111764073, -6.207880232977914e-06, -4.981194706488168e-06, 4.851791004512052e-07,
    3.9583209598959e-08,
)  # fmt: skip
NORMAL_TAIL = (
    4.006434440612793, 1.416581153869629, 0.013353944756090641, -0.010778620839118958,
    0.008076466619968414, -0.0052047003991901875, 0.0020044303964823484, 0.00015645392704755068,
    -0.0003547525266185403,
)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3  # float32 bits of sqrt(0.5), where the range of the logarithm's mantissa begins


def _float32(value: float) -> float:
    """``value`` rounded to float32, so that tensor arithmetic with it rounds once, in the result."""
    return torch.tensor(value, dtype=torch.float32).item()


def _sqrt(x: Tensor) -> Tensor:
    """Square root, rounded correctly: by way of float64, because torch's own may be an ulp off on a CPU."""
    return torch.sqrt(x.double()).float()


def _horner(coefficients: Sequence[float], t: Tensor) -> Tensor:
    p = torch.full_like(t, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * t + c
    return p


def _log(y: Tensor) -> Tensor:
    """Logarithm of float32 y in (0, 1]: log m = 2 atanh((m - 1) / (m + 1)) with m in [sqrt(.5), sqrt(2))."""
    bits = y.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
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


def field_values(word: Tensor, kind: Kind, parameters: Sequence[float]) -> Tensor:
    """Random words (int64, 32 bits each) to float32 values of the distribution, by inverse CDF."""
    p0, p1 = parameters
    u = ((word >> 9).float() + 0.5) * 2.0**-23  # exact, in (0, 1)
    if kind == Kind.UNIFORM:
        return u * _float32(p1 - p0) + _float32(p0)
    if kind == Kind.NORMAL:
        return _normal_quantile(u) * _float32(p1) + _float32(p0)
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

    ``sources`` holds SOURCE_INTS numbers a tensor, ``parameters`` SOURCE_FLOATS; empty: all are stored.
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


# --------------------------------------------------------------------------- the flexible update


def gate(weight: Tensor, anchor: Tensor, flexibility: Tensor, scale: float | Tensor) -> Tensor:
    """alpha = sech(k)^2 with k = scale (1 - f) / f |w - a| (2407.07133, section 2; DESIGN 1.1).

    Written as 4 e / (1 + e)^2 with e = exp(-2k), which does not cancel. The division by f comes last, where
    it may overflow to infinity (alpha = 0) but not make a NaN; f = 0 never moves, also where w = a.
    """
    displacement = (weight - anchor).abs().clamp(max=torch.finfo(weight.dtype).max)
    k = scale * (1 - flexibility) * displacement / flexibility
    e = torch.exp(-2 * k)
    return torch.where(flexibility == 0, 0.0, 4 * e / ((1 + e) * (1 + e)))


class SgdRule(NamedTuple):
    """The numbers of an SGD step, with the meaning that they have in :class:`torch.optim.SGD`."""

    lr: float | Tensor
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    skip_nonfinite: bool = True


def sgd_step(
    weight: Tensor, grad: Tensor, alpha: Tensor | float, buffer: Tensor | None, rule: SgdRule
) -> tuple[Tensor, Tensor | None]:
    """New weight and momentum buffer. alpha scales the step, not what enters the buffer.

    With ``skip_nonfinite`` a synapse whose new weight would not be finite keeps its weight and its momentum.
    """
    g = -grad if rule.maximize else grad
    g = g + rule.weight_decay * weight
    new_buffer = None
    if buffer is not None:
        new_buffer = rule.momentum * buffer + (1 - rule.dampening) * g
        g = g + rule.momentum * new_buffer if rule.nesterov else new_buffer
    new_weight = weight - rule.lr * alpha * g
    if rule.skip_nonfinite:
        moved = torch.isfinite(new_weight)
        new_weight = torch.where(moved, new_weight, weight)
        if buffer is not None and new_buffer is not None:
            new_buffer = torch.where(moved, new_buffer, buffer)
    return new_weight, new_buffer


def metaplastic_sgd_(
    weight: Sequence[Tensor],
    grad: Sequence[Tensor],
    alpha: Sequence[Tensor | float],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    rule: SgdRule,
) -> None:
    """Steps every tensor in place. Where there are masters, those step, and the weights are their rounding."""
    for i, w in enumerate(weight):
        exact = master[i] if master else w
        buffer = momentum_buffer[i] if momentum_buffer else None
        new_weight, new_buffer = sgd_step(exact, grad[i].to(exact.dtype), alpha[i], buffer, rule)
        exact.copy_(new_weight)
        if master:
            w.copy_(new_weight)
        if buffer is not None and new_buffer is not None:
            buffer.copy_(new_buffer)


def finite(tensors: Sequence[Tensor]) -> list[bool]:
    """For each tensor, whether all its elements are finite."""
    return [bool(torch.isfinite(t).all()) for t in tensors]


# --------------------------------------------------------------------------- packed masks


def pack_mask(mask: Tensor) -> Tensor:
    """bool [rows, columns] to int32 words [rows, ceil(columns / 32)]: bit j of word k is column 32 k + j."""
    rows, columns = mask.shape
    padded = torch.nn.functional.pad(mask.long(), (0, -columns % 32)).reshape(rows, -(-columns // 32), 32)
    words = (padded << torch.arange(32, device=mask.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_mask(words: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack_mask`: bool [rows, columns]."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(1)[:, :columns].bool()


# --------------------------------------------------------------------------- silent and functional synapses


def activity(value: Tensor) -> Tensor:
    """What a unit does: the part of ``value`` that is not negative. NaN stays, so that it converts nothing."""
    return value.clamp(min=0)


def coincidence(pre: Tensor, post: Tensor) -> Tensor:
    """c[j, i] of DESIGN 1.3.

    Hebbian: mean_b post[b, j] pre[b, i], from activities pre [B, in] and post [B, out] of a batch. Rate:
    post[j] pre[i], from their means over it, [in] and [out].
    """
    if pre.dim() == 1:
        return torch.outer(activity(post), activity(pre))
    return activity(post).T @ activity(pre) / len(pre)


class Insertion(NamedTuple):
    """How silent synapses become functional, and functional ones silent again.

    threshold: theta, one for all or one for each postsynaptic unit.
    hebbian: the inserted weight is ``eta`` c; otherwise it is the anchor, the layer's own initial draw.
    prune: a functional synapse whose weight stays under it in a step goes silent; 0: none does.
    """

    threshold: float | Tensor
    hebbian: bool = False
    eta: float = 1.0
    prune: float = 0.0


def synapse_step_(
    weight: Tensor,
    grad: Tensor,
    anchor: Tensor,
    alpha: Tensor | float,
    silent: Tensor,
    drive: Tensor,
    insertion: Insertion,
    momentum_buffer: Tensor | None,
    master: Tensor | None,
    rule: SgdRule,
) -> Tensor:
    """One pass over a layer (DESIGN 1.3, 1.4): functional synapses step, silent ones that are driven convert.

    ``weight`` [out, in] is exactly 0 where ``silent`` (packed) is set, and stays untouched there until the
    coincidence ``drive`` reaches the threshold. A converted synapse has its weight as its anchor and no
    momentum. Neither an infinite or NaN coincidence nor such a weight converts anything.

    Returns:
        int32 [2, out]: how many synapses of each unit were converted, and how many pruned.
    """
    exact = weight if master is None else master
    was_silent = unpack_mask(silent, weight.shape[1])
    stepped, buffer = sgd_step(exact, grad.to(exact.dtype), alpha, momentum_buffer, rule)
    inserted = insertion.eta * drive if insertion.hebbian else anchor
    theta = insertion.threshold
    driven = drive >= (theta.reshape(-1, 1) if isinstance(theta, Tensor) else theta)
    converts = was_silent & driven & torch.isfinite(drive) & torch.isfinite(inserted)
    prunes = ~was_silent & (exact.abs() < insertion.prune) & (stepped.abs() < insertion.prune)

    new_weight = torch.where(converts, inserted, torch.where(was_silent, exact, stepped))
    new_weight = torch.where(prunes, 0.0, new_weight)
    exact.copy_(new_weight)
    if master is not None:
        weight.copy_(new_weight)
    if momentum_buffer is not None and buffer is not None:
        kept = torch.where(was_silent, momentum_buffer, buffer)
        momentum_buffer.copy_(torch.where(converts | prunes, 0.0, kept))
    if insertion.hebbian:
        anchor.copy_(torch.where(converts, inserted, anchor))
    silent.copy_(pack_mask((was_silent & ~converts) | prunes))
    return torch.stack((converts.sum(1), prunes.sum(1))).to(torch.int32)


def linear_step_(
    weight: Tensor,
    x: Tensor,
    grad_out: Tensor,
    anchor: Tensor,
    alpha: Tensor | float,
    silent: Tensor | None,
    drive: Tensor | None,
    insertion: Insertion,
    momentum_buffer: Tensor | None,
    master: Tensor | None,
    rule: SgdRule,
) -> Tensor:
    """:func:`synapse_step_` with the gradient grad_out^T x of a layer, x [B, in], grad_out [B, out]."""
    exact = weight if master is None else master
    grad = grad_out.to(exact.dtype).T @ x.to(exact.dtype)
    if silent is None:
        buffers, masters = (
            [b for b in [momentum_buffer] if b is not None],
            [m for m in [master] if m is not None],
        )
        metaplastic_sgd_([weight], [grad], [alpha], buffers, masters, rule)
        return torch.zeros((2, len(weight)), dtype=torch.int32, device=weight.device)
    assert drive is not None
    return synapse_step_(weight, grad, anchor, alpha, silent, drive, insertion, momentum_buffer, master, rule)
