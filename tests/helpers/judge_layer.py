"""The float64 judge of a pass over a layer: what steps, what converts, what is pruned (docs/design.md).

Activities that are small multiples of 1/8, in batches of a power of two, have exact coincidences: then every
decision is certain. Of random floats, only synapses within the counted bound of a threshold may go either way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flexkern import Field, ops, reference
from helpers import judge
from helpers.judge import SUBNORMAL, Rule, U, assert_within, float32, make_inputs, same_bits

__all__ = [
    "LOW",
    "RULES",
    "Batch",
    "Judgement",
    "Layer",
    "Opening",
    "clone",
    "eighths",
    "halfway",
    "judge_coincidence",
    "judge_pass",
    "judge_product",
    "judge_rate",
    "linear_layer",
    "make_batch",
    "make_layer",
    "mask_of",
    "materialized",
    "same_state",
    "step_layer",
]

LOW = (torch.bfloat16, torch.float16)
RULES = {
    "plain": Rule(),
    "decay": Rule(weight_decay=0.3, maximize=True),
    "dampening": Rule(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": Rule(momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True),
}


class Layer(NamedTuple):
    """Operands of a pass; ``weight`` is ``master`` rounded to its dtype, and 0 where ``silent`` is set."""

    weight: Tensor
    grad: Tensor
    anchor: Tensor
    flexibility: Tensor
    buffer: Tensor
    master: Tensor
    silent: Tensor

    @property
    def exact(self) -> Tensor:
        """The weight that decisions and arithmetic are made on."""
        return self.master if self.weight.dtype in LOW else self.weight


class Opening(NamedTuple):
    """How synapses convert, as it is passed to the operators."""

    threshold: float | Tensor
    insert: str = "init"
    eta: float = 1.0
    prune: float = 0.0


class Batch(NamedTuple):
    """A batch as a linear layer sees it: x [B, in], grad_out and post [B, out]."""

    x: Tensor
    grad_out: Tensor
    post: Tensor


def make_layer(
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    silent: float = 0.5,
) -> Layer:
    """:func:`judge.make_inputs`, with a share of the synapses ``silent``. These have a gradient too, NaN in
    every second column, and something in their momentum buffer, which must not matter."""
    x = make_inputs(shape, seed, dtype, grad_dtype)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1000)) < silent
    for tensor in (x.weight, x.master):
        tensor[mask] = 0.0
    x.grad[:, ::2][mask[:, ::2]] = torch.nan
    return Layer(*x, reference.pack_mask(mask))


def clone(layer: Layer) -> Layer:
    return Layer(*(t.clone() for t in layer))


def mask_of(layer: Layer) -> Tensor:
    """True: silent."""
    return reference.unpack_mask(layer.silent, layer.weight.shape[1])


def same_state(a: Layer, b: Layer) -> bool:
    return all(same_bits(s, t) for s, t in zip(a, b, strict=True))


def eighths(shape: tuple[int, ...], seed: int, low: int = -8, high: int = 16) -> Tensor:
    """Random multiples of 1/8 in [low / 8, high / 8]: with the default, a third of them negative."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).float() / 8


def make_batch(
    size: int, shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32, *, exact: bool
) -> Batch:
    """A batch for a weight of ``shape``: normal, or ``exact``, in multiples of 1/8."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(size, shape[1]), (size, shape[0]), (size, shape[0])]
    if exact:
        return Batch(*(eighths(s, seed + i).to(dtype) for i, s in enumerate(sizes)))
    return Batch(*(torch.randn(s, generator=generator).to(dtype) for s in sizes))


# --------------------------------------------------------------------------- coincidences and their thresholds


def judge_rate(pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
    """c of two vectors of means in float64, and its bound: one product."""
    c = torch.outer(post.double().clamp(min=0), pre.double().clamp(min=0))
    return c, U * c + SUBNORMAL


def judge_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left^T right of [B, rows] and [B, columns] in float64, and how far float32 may be from it.

    In whatever order B products are summed, no term is rounded more than B times: once as a product, at most
    B - 1 times in a sum. Terms are exact in float32 where the factors have 16 bits, which the bound leaves out.
    """
    a, b, size = left.double(), right.double(), len(left)
    return a.T @ b, (a.abs().T @ b.abs()) * size * U + size * SUBNORMAL


def judge_coincidence(x: Tensor, post: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """c of a batch in float64, and its bound.

    hebbian: that of the product, and two roundings, of 1 / B and of its product. rate: one product of two means
    of numbers >= 0, each with at most B roundings in its sum and two for 1 / B.
    """
    size = len(x)
    pre, post = x.double().clamp(min=0), post.double().clamp(min=0)
    if rule == "hebbian":
        c, bound = judge_product(post, pre)
        return c / size, bound / size + 2 * U * c / size + SUBNORMAL
    c = torch.outer(post.mean(0), pre.mean(0))
    return c, c * (2 * (size + 2) + 1) * U + SUBNORMAL


def halfway(c: Tensor, grid: float, *, per_unit: bool = False) -> Tensor:
    """A threshold between two multiples of ``grid``, near the median of c: float32, [] or one for each row."""
    if c.numel() == 0:
        return torch.full((len(c),) if per_unit else (), grid / 2)
    middle = c.median(1).values if per_unit else c.median()
    return ((middle / grid).floor() * grid + grid / 2).float()


# --------------------------------------------------------------------------- one pass


def step_layer(
    layer: Layer,
    rule: Rule,
    how: Opening,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    **change: object,
) -> ops.Conversions:
    """synapse_step_ on all operands of ``layer``, or on those in ``change``."""
    arguments: dict[str, object] = {
        "grad": layer.grad,
        "anchor": layer.anchor,
        "flexibility": layer.flexibility,
        "pre": pre,
        "post": post,
        "momentum_buffer": layer.buffer if rule.momentum else None,
        "master": layer.master if layer.weight.dtype in LOW else None,
        **rule._asdict(),
        **how._asdict(),
        **change,
    }
    return ops.synapse_step_(layer.weight, silent=layer.silent, **arguments)  # type: ignore[arg-type, return-value]


def linear_layer(
    layer: Layer, batch: Batch, rule: Rule, how: Opening | None, coincidence: str = "hebbian", **change: object
) -> ops.Conversions:
    """linear_step_ on all operands; without ``how`` all synapses are functional."""
    arguments: dict[str, object] = {
        "anchor": layer.anchor,
        "flexibility": layer.flexibility,
        "momentum_buffer": layer.buffer if rule.momentum else None,
        "master": layer.master if layer.weight.dtype in LOW else None,
        **rule._asdict(),
        **({} if how is None else how._asdict()),
        **({} if how is None else {"silent": layer.silent, "post": batch.post, "rule": coincidence}),
        **change,
    }
    return ops.linear_step_(layer.weight, batch.x, batch.grad_out, **arguments)  # type: ignore[arg-type]


class Judgement(NamedTuple):
    """How many synapses converted and were pruned; of how many the bounds leave open whether they should."""

    converted: int
    pruned: int
    open: int = 0
    open_prunings: int = 0


def judge_pass(
    before: Layer,
    after: Layer,
    done: ops.Conversions,
    coincidence: tuple[Tensor, Tensor],
    rule: Rule,
    how: Opening,
    *,
    alpha: Tensor | None = None,
    grad: tuple[Tensor, Tensor] | None = None,
    gate_factor: float = 1.0,
) -> Judgement:
    """``after`` is one pass away from ``before``, ``done`` says what happened, and nothing else has changed.

    Args:
        coincidence: c in float64 and its bound.
        alpha: the held gate; None: the formula's.
        grad: the gradient of a linear layer in float64 and its bound; None: ``before.grad``, exactly.
        gate_factor: how much farther than a CPU kernel's the formula's alpha may be off.
    """
    was, now = mask_of(before), mask_of(after)
    woke, slept = was & ~now, ~was & now
    assert same_bits(after.silent, reference.pack_mask(now))  # no bit past the last column is set
    for count, changed in ((done.converted, woke), (done.pruned, slept)):
        assert same_bits(count, changed.sum(1).to(torch.int32))

    # conversion
    old, new, (c, c_bound) = before.exact, after.exact, coincidence
    eta, prune = float32(how.eta), float32(how.prune)
    theta = (
        how.threshold.double().reshape(-1, 1) if isinstance(how.threshold, Tensor) else float32(how.threshold)
    )
    hebbian = how.insert == "hebbian"
    inserted = eta * c if hebbian else before.anchor.double()
    may_convert = was & c.isfinite() & inserted.isfinite()
    must_convert, may_convert = may_convert & (c - c_bound >= theta), may_convert & (c + c_bound >= theta)
    assert not (must_convert & ~woke).any(), "a driven synapse stayed silent"
    assert not (woke & ~may_convert).any(), "a synapse converted below its threshold"
    if hebbian:
        bound = eta * c_bound + U * inserted.abs() + SUBNORMAL
        assert_within(new[woke], inserted[woke], bound[woke])
        assert same_bits(after.anchor[woke], new[woke])
    else:
        assert same_bits(new[woke], before.anchor[woke])
    anchor_stays = ~woke if hebbian else torch.ones_like(woke)
    assert same_bits(after.anchor[anchor_stays], before.anchor[anchor_stays])
    if rule.momentum:
        assert (after.buffer[woke | slept] == 0).all()

    # the step and pruning
    if alpha is None:
        open_gate, bound = judge.judge_gate(old, before.anchor, before.flexibility, rule.scale)
        gate = (open_gate, gate_factor * bound)
    else:
        gate = (alpha.double(), torch.zeros_like(alpha, dtype=torch.float64))
    g, g_bound = (before.grad, torch.zeros_like(c)) if grad is None else grad
    judged = judge.judge_step(old, g, *gate, rule, before.buffer if rule.momentum else None, g_bound)
    small = ~was & (old.abs() < prune)
    must_prune = small & (judged.weight.abs() + judged.weight_bound < prune)
    may_prune = small & (judged.weight.abs() - judged.weight_bound < prune)
    assert not (must_prune & ~slept).any(), "a synapse under the bound stayed functional"
    assert not (slept & ~may_prune).any(), "a synapse was pruned above the bound"
    assert (new[slept] == 0).all()
    stepped = ~was & ~slept
    assert_within(new[stepped], judged.weight[stepped], judged.weight_bound[stepped])
    if judged.buffer is not None and judged.buffer_bound is not None:
        assert_within(after.buffer[stepped], judged.buffer[stepped], judged.buffer_bound[stepped])

    # what stays
    still = was & ~woke
    for name in ("weight", "master", "buffer"):
        assert same_bits(getattr(after, name)[still], getattr(before, name)[still]), name
    for name in ("grad", "flexibility", *(() if rule.momentum else ("buffer",))):
        assert same_bits(getattr(after, name), getattr(before, name)), name
    if before.weight.dtype in LOW:
        # rounded from it, once
        assert same_bits(after.weight[~still], after.master[~still].to(after.weight.dtype))
    else:
        assert same_bits(after.master, before.master)
    return Judgement(
        int(woke.sum()),
        int(slept.sum()),
        int((may_convert & ~must_convert).sum()),
        int((may_prune & ~must_prune).sum()),
    )


def materialized(source: Tensor | Field | float, like: Tensor) -> Tensor:
    """What a source stands for, as a tensor."""
    if isinstance(source, Tensor):
        return source
    return ops.materialize(source, like.shape) if isinstance(source, Field) else torch.full_like(like, source)
