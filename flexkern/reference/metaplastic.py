"""The flexible update in plain PyTorch (arXiv 2407.07133, section 2; docs/design.md, The flexible update)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.reference.field import sources_to_tensors
from flexkern.reference.rules import step
from flexkern.spec.metaplastic import MetaplasticGate, Step

__all__ = [
    "exact_weight",
    "gate",
    "metaplastic_gate",
    "metaplastic_step_",
    "number",
    "step_in_place",
    "tensors_of",
]


def gate(weight: Tensor, anchor: Tensor, flexibility: Tensor, scale: float | Tensor) -> Tensor:
    """alpha = sech(k)^2 with k = scale (1 - f) / f |w - a| (2407.07133, section 2; docs/design.md).

    Written as 4 e / (1 + e)^2 with e = exp(-2k), which does not cancel. The division by f comes last, where
    it may overflow to infinity (alpha = 0) but not make a NaN. f = 0 never moves, also where w = a, and so does
    an f under the smallest normal number of its dtype; f = 1 always moves, also where the anchor is NaN.
    """
    displacement = (weight - anchor).abs().clamp(max=torch.finfo(weight.dtype).max)
    k = scale * (1 - flexibility) * displacement / flexibility
    e = torch.exp(-2 * k)
    alpha = torch.where(flexibility == 1, 1.0, 4 * e / ((1 + e) * (1 + e)))
    return torch.where(flexibility.abs() < torch.finfo(weight.dtype).tiny, 0.0, alpha)


def metaplastic_gate(given: MetaplasticGate) -> Tensor:
    """``flexkern::metaplastic_gate``."""
    stored_a, stored_f = ([] if t is None else [t] for t in (given.anchor, given.flexibility))
    a, f = tensors_of([given.weight], stored_a, stored_f, given.sources, given.parameters)
    return gate(given.weight, a[0], f[0], number(given.scale, given.scale_tensor, given.weight))


def metaplastic_step_(given: Step) -> None:
    """The step of every tensor of a list, by any rule; computed in the dtype of the weight or its master."""
    if not given.weight:
        return
    given.check_memory()
    masters: Sequence[Tensor | None] = given.master or [None] * len(given.weight)
    exact = [exact_weight(w, m) for w, m in zip(given.weight, masters, strict=True)]
    if given.alpha:
        alphas: list[Any] = [
            1.0 if alpha.numel() < w.numel() else alpha.to(w.dtype)
            for alpha, w in zip(given.alpha, exact, strict=True)
        ]
    else:
        a, f = tensors_of(exact, given.anchor, given.flexibility, given.sources, given.parameters)
        scale = number(given.scale, given.scale_tensor, given.weight[0])
        alphas = [gate(*of_weight, scale) for of_weight in zip(exact, a, f, strict=True)]
    lr = number(given.lr, given.lr_tensor, given.weight[0])
    results = []  # all of them, before any is written: an argument that does not fit must not leave half a call
    for i, weight in enumerate(given.weight):
        states = [state[i] for state in given.states if state]
        count = given.step[i] if given.step else None
        grad = given.grad[i].to(exact[i].dtype)
        stepped = step(given.rule, exact[i], grad, alphas[i], states, lr, given.skip_nonfinite, count)
        check_shape(stepped[0], weight)
        results.append((states, *stepped))
    for weight, master, result in zip(given.weight, masters, results, strict=True):
        step_in_place(weight, master, *result)


def check_shape(result: Tensor, weight: Tensor) -> None:
    """ValueError where the other arguments have been broadcast to another shape than the weight's."""
    if result.shape != weight.shape:
        raise ValueError(
            f"all tensors of a weight must have its shape, {tuple(weight.shape)}, got together "
            f"{tuple(result.shape)}"
        )


def exact_weight(weight: Tensor, master: Tensor | None) -> Tensor:
    """What a step begins with: the weight, or its master where there is one. An element that is not the
    rounding of its master was written from outside since the last step, and its master takes its value."""
    if master is None:
        return weight
    return torch.where(weight == master.to(weight.dtype), master, weight.to(master.dtype))


def step_in_place(
    weight: Tensor,
    master: Tensor | None,
    states: Sequence[Tensor],
    new_weight: Tensor,
    new_states: Sequence[Tensor],
) -> None:
    """Writes the new values. Where there is a master it has them, and the weight is its rounding."""
    weight.copy_(new_weight)
    if master is not None:
        master.copy_(new_weight)
    for state, new_state in zip(states, new_states, strict=True):
        state.copy_(new_state)


def number(value: float, tensor: Tensor | None, like: Tensor) -> float | Tensor:
    """lr, scale or a threshold: the tensor where there is one."""
    return value if tensor is None else tensor.reshape(()).to(like.device)


def tensors_of(
    weight: Sequence[Tensor],
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
) -> tuple[list[Tensor], list[Tensor]]:
    """Anchors and flexibilities as tensors. The rows of ``sources`` are the anchors, then the flexibilities."""
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    a = sources_to_tensors(anchor, sources[:half_ints], parameters[:half_floats], weight)
    f = sources_to_tensors(flexibility, sources[half_ints:], parameters[half_floats:], weight)
    return a, f
