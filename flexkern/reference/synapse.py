"""Silent and functional synapses in plain PyTorch (arXiv 2410.05899; docs/design.md, One pass)."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.reference.field import sources_to_tensors
from flexkern.reference.mask import pack_mask, unpack_mask
from flexkern.reference.metaplastic import exact_weight, gate, number, step_in_place, tensors_of
from flexkern.reference.rules import step
from flexkern.spec.layers import Layer
from flexkern.spec.synapse import Synapse

__all__ = ["activity", "anchor_and_alpha", "coincidence", "pass_over", "synapse_step_"]


def activity(value: Tensor) -> Tensor:
    """What a unit does: the part of ``value`` that is not negative. NaN stays, so that it converts nothing."""
    return value.clamp(min=0)


def coincidence(pre: Tensor, post: Tensor) -> Tensor:
    """c[j, i] (docs/design.md, Silent and functional synapses).

    Hebbian: mean_b post[b, j] pre[b, i], from activities pre [B, in] and post [B, out] of a batch. Rate:
    post[j] pre[i], from their means over it, [in] and [out].
    """
    if pre.dim() == 1:
        return torch.outer(activity(post), activity(pre))
    return activity(post).T @ activity(pre) / len(pre)


def synapse_step_(given: Synapse) -> Tensor:
    """``flexkern::synapse_step_``."""
    given.check_memory()
    if given.silent is None:
        raise ValueError("silent must be given: a pass over a layer without silent synapses is a plain step")
    c = given.activities[0] if len(given.activities) == 1 else coincidence(*given.activities)
    return pass_over(given, given.grad, c)


def pass_over(given: Layer, grad: Tensor, c: Tensor | None) -> Tensor:
    """One pass over a layer: functional synapses step, silent ones whose coincidence is high enough convert.

    The weight [out, in] is exactly 0 where ``silent`` (packed) is set. Weight, master and states stay untouched
    there, whatever they hold, until the coincidence ``c`` [out, in] reaches the threshold. A converted synapse
    has its weight as its anchor and states of 0. Neither an infinite or NaN coincidence nor such a weight
    converts anything. Bits of ``silent`` past the last column are neither looked at nor changed.

    Returns:
        int32 [2, out]: how many synapses of each unit were converted, and how many pruned.
    """
    exact = exact_weight(given.weight, given.master)
    anchor, alpha = anchor_and_alpha(given, exact)
    states = [state for state in given.states if state is not None]
    lr = number(given.lr, given.lr_tensor, given.weight)
    stepped, new_states = step(
        given.rule, exact, grad.to(exact.dtype), alpha, states, lr, given.skip_nonfinite, given.step
    )
    if given.silent is None:
        step_in_place(given.weight, given.master, states, stepped, new_states)
        return torch.zeros((2, len(exact)), dtype=torch.int32, device=exact.device)
    assert c is not None
    was_silent = unpack_mask(given.silent, exact.shape[1])
    inserted = given.eta * c if given.hebbian else anchor
    theta = given.threshold if given.threshold_tensor is None else given.threshold_tensor.reshape(-1, 1)
    converts = was_silent & (c >= theta) & torch.isfinite(c) & torch.isfinite(inserted)
    prunes = ~was_silent & (exact.abs() < given.prune) & (stepped.abs() < given.prune)

    new_weight = torch.where(converts, inserted, torch.where(was_silent, exact, stepped))
    new_weight = torch.where(prunes, 0.0, new_weight)
    kept = [torch.where(was_silent, old, new) for old, new in zip(states, new_states, strict=True)]
    new_states = [torch.where(converts | prunes, 0.0, state) for state in kept]
    asleep, old_weight = was_silent & ~converts, given.weight.clone()
    old_master = exact if given.master is None else given.master
    step_in_place(given.weight, given.master, states, torch.where(asleep, old_master, new_weight), new_states)
    given.weight.copy_(torch.where(asleep, old_weight, given.weight))
    if given.hebbian:
        anchor.copy_(torch.where(converts, inserted, anchor))
    given.silent.bitwise_xor_(pack_mask(converts | prunes))
    return torch.stack((converts.sum(1), prunes.sum(1))).to(torch.int32)


def anchor_and_alpha(given: Layer, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor and gate of a layer whose exact weight this is."""
    stored_a, stored_f = ([] if t is None else [t] for t in (given.anchor, given.flexibility))
    if given.alpha is not None:
        rows = given.sources[: len(given.sources) // 2], given.parameters[: len(given.parameters) // 2]
        return sources_to_tensors(stored_a, *rows, [exact])[0], given.alpha
    a, f = tensors_of([exact], stored_a, stored_f, given.sources, given.parameters)
    return a[0], gate(exact, a[0], f[0], number(given.scale, given.scale_tensor, exact))
