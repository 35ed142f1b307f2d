"""Logits of a prototype classifier over subspaces, and prototypes of old classes in new subspaces.

docs/design.md, Artsy.

Both are a few library products, whatever the number of classes and tasks, and differentiable; the logits of a
small head on the CPU are one call, where no derivative is wanted. What they compute is written out as loops in
:mod:`flexkern.reference.prototype`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flexkern.backends import prefers_compiled_cpu
from flexkern.ops import checks
from flexkern.ops.choices import COMPLETIONS, REWEIGHTINGS
from flexkern.ops.direct import directly
from flexkern.ops.operator import is_refusal, is_word, tries_compiled
from flexkern.spec.prototype import LOGITS

__all__ = ["complete_prototypes", "prototype_logits"]

_DIRECT = directly("prototype_logits", LOGITS)
_TENSORS = (Tensor, torch.nn.Parameter)
_SMALL = 1 << 14  # multiplications that take one core less than the library takes to be called a dozen times


def prototype_logits(
    features: Tensor,
    prototypes: Tensor,
    own_subspace: Tensor,
    *,
    weight: float = 0.1,
    reweighting: str = "code",
    base: bool = False,
    base_weight: float = 0.0,
    openings: Tensor | None = None,
) -> Tensor:
    """Weighted sum over subspaces of the cosine between features and class prototypes (EASE, arXiv 2403.12030).

    ``logits[n, c] = sum_k openings[n, k] * w[c, k] * cos(features[n, k], prototypes[c, k])``, where w is 1 in
    the class's own subspace, ``base_weight`` in the pre-trained network's (with ``base``), and elsewhere
    ``weight / (tasks - 1)`` (``reweighting="code"``: ``forward_reweight`` of the published code) or ``weight``
    (``"paper"``: as the paper writes it). tasks is the number of subspaces without the pre-trained network's.

    Args:
        features: floating-point [N, K, dim], one feature vector of each sample in each of K subspaces. A vector
            of zeros (a silent synapse) adds exactly 0.
        prototypes: floating-point [C, K, dim].
        own_subspace: integers [C], the subspace of the task that the class was learned in.
        weight: alpha_r, of the other tasks' subspaces; EASE has 0.1.
        reweighting: ``"code"`` or ``"paper"``.
        base: subspace 0 is the pre-trained network's without an adapter (``use_init_ptm`` of EASE).
        base_weight: beta of EASE, weight of that subspace; used only with ``base``, and not for a class whose
            own subspace it is.
        openings: [N, K], how far each subspace counts for each sample; None for 1. The cosine does not see a
            feature's length, so that soft gates must be given here.

    Returns:
        [N, C], float32 (float64 if the features are), also under autocast.

    Raises:
        TypeError, ValueError: naming the argument. (An ``own_subspace`` that is none is seen on the CPU only.)
    """
    if type(weight) in (int, float) and type(base) is bool and is_word(reweighting, REWEIGHTINGS):
        logits = _small_logits(
            features, prototypes, own_subspace, openings, weight, reweighting == "code", base, base_weight
        )
        if logits is not None:
            return logits
    _check_prototypes(prototypes, own_subspace)
    subspaces, dim = prototypes.shape[1:]
    _check_floating(features, "features")
    if features.dim() != 3 or tuple(features.shape[1:]) != (subspaces, dim):
        raise ValueError(
            f"features must be [N, K, dim] = [N, {subspaces}, {dim}] as the prototypes are, got "
            f"{tuple(features.shape)}"
        )
    _check_device(features, "features", prototypes)
    checks.check_word(reweighting, "reweighting", REWEIGHTINGS)
    base = checks.check_switch(base, "base")
    weight, base_weight = _finite(weight, "weight"), _finite(base_weight, "base_weight")
    if openings is not None:
        _check_dense(openings, "openings")
        if openings.is_complex() or openings.is_quantized:
            raise TypeError(f"openings must be real numbers, got {openings.dtype}")
        if tuple(openings.shape) != tuple(features.shape[:2]):
            raise ValueError(
                f"openings must be [N, K] = {tuple(features.shape[:2])}, got {tuple(openings.shape)}"
            )
        _check_device(openings, "openings", prototypes)

    if features.dtype is not torch.float64:  # the same, whatever dtype and layout are
        f, p, o = (_as_float32(t) for t in (features, prototypes, openings))
        own = own_subspace.contiguous()
        logits = _small_logits(f, p, own, o, weight, reweighting == "code", base, base_weight)
        if logits is not None:
            return logits
    rest = _weight_of_others(weight, reweighting == "code", subspaces, base)
    with torch.autocast(features.device.type, enabled=False):
        dtype = torch.float64 if features.dtype is torch.float64 else torch.float32
        weights = torch.full(prototypes.shape[:2], rest, dtype=dtype, device=features.device)
        if base and subspaces:
            weights[:, 0] = base_weight
        weights.scatter_(1, own_subspace.to(torch.int64)[:, None], 1.0)
        x = normalize(features.to(dtype), dim=-1)
        if openings is not None:
            x = x * openings.to(dtype)[..., None]
        p = normalize(prototypes.to(dtype), dim=-1) * weights[..., None]
        return x.flatten(1) @ p.flatten(1).T


def _weight_of_others(weight: float, per_task: bool, subspaces: int, base: bool) -> float:
    return weight / max(subspaces - int(base) - 1, 1) if per_task else weight


def _as_float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _small_logits(
    features: Any,
    prototypes: Any,
    own_subspace: Any,
    openings: Any,
    weight: float,
    per_task: bool,
    base: bool,
    base_weight: Any,
) -> Tensor | None:
    """The logits of a small head on the CPU that are not differentiated, by one call, which looks at its
    arguments; None if it does not take them, or if it is another head."""
    if _DIRECT is None or not tries_compiled() or not prefers_compiled_cpu():
        return None
    if type(features) is not Tensor or type(prototypes) not in _TENSORS or not features.is_cpu:
        return None
    if features.dim() != 3 or prototypes.dim() != 3 or features.numel() * prototypes.size(0) > _SMALL:
        return None
    if torch.is_grad_enabled() and (
        features.requires_grad or prototypes.requires_grad or getattr(openings, "requires_grad", False)
    ):
        return None
    try:
        rest = _weight_of_others(weight, per_task, features.size(1), base)
    except OverflowError:
        return None  # the checks say which number is too large
    try:
        logits = _DIRECT(features, prototypes, own_subspace, openings, rest, base_weight, base)
    except (RuntimeError, OverflowError) as error:
        if not is_refusal(error):
            raise
        return None
    return None if logits is NotImplemented else logits


def complete_prototypes(
    prototypes: Tensor, own_subspace: Tensor, known: Tensor | None = None, *, over: str = "later"
) -> Tensor:
    """Prototypes of old classes in subspaces that came after them (the semantic completion of EASE).

    ``P_hat[o, k] = sum_n softmax_n(cos(P[o, own], P[n, own])) * P[n, k]`` with own the subspace of class o. The
    sum is over

    - ``over="later"``: all classes whose prototypes in k are known, those of k's task and of the tasks since:
      EASE's published code (``solve_sim_reset``), which completes anew after each task;
    - ``over="new"``: only the classes that were learned with subspace k, as the paper has it.

    Args:
        prototypes: floating-point [C, K, dim]; rows that are not known are not read.
        own_subspace: integers [C].
        known: bool [C, K], where prototypes are means of features; None: in subspaces up to the class's own.
        over: ``"later"`` or ``"new"``: the classes that the sum is over.

    Returns:
        [C, K, dim]: known prototypes as they were, all others completed; 0 where no class can be summed over.
        The order of classes in memory does not matter.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _check_prototypes(prototypes, own_subspace)
    checks.check_word(over, "over", COMPLETIONS)
    classes, subspaces, _ = prototypes.shape
    own = own_subspace.to(torch.int64)
    columns = torch.arange(subspaces, device=prototypes.device)
    if known is None:
        known = columns <= own[:, None]
    else:
        _check_dense(known, "known")
        if known.dtype is not torch.bool or tuple(known.shape) != (classes, subspaces):
            raise ValueError(
                f"known must be bool [C, K] = {(classes, subspaces)}, got {known.dtype} {tuple(known.shape)}"
            )
        _check_device(known, "known", prototypes)
    dtype = torch.float64 if prototypes.dtype is torch.float64 else torch.float32
    p = prototypes.to(dtype).masked_fill(~known[..., None], 0.0)
    unit = normalize(p, dim=-1)
    # Each class in its own subspace, and 0 in all others: then one product has every class's cosine in its own.
    in_own = unit * (columns == own[:, None])[..., None]
    similar = torch.exp(in_own.flatten(1) @ unit.flatten(1).T)  # of numbers in [-1, 1]: no overflow
    similar = similar * known.to(dtype)[:, own].T  # class n must be known in the subspace of class o
    source = known if over == "later" else known & (columns == own[:, None])
    p_source = p * source[..., None]
    total = similar @ source.to(dtype)
    completed = (similar @ p_source.flatten(1)).view_as(p) / total.masked_fill(total == 0, 1.0)[..., None]
    return torch.where(known[..., None], p, completed)


def _check_dense(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    checks.check_dense(tensor, name)


def _check_device(tensor: Tensor, name: str, prototypes: Tensor) -> None:
    if tensor.device != prototypes.device:
        raise ValueError(
            f"{name} must be on the device of prototypes, {prototypes.device}, got {tensor.device}"
        )


def _finite(value: Any, name: str) -> float:
    if not checks.is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    value = float(value) if isinstance(value, np.generic) else value
    if not -checks.LARGEST_NUMBER <= value <= checks.LARGEST_NUMBER:
        raise ValueError(
            f"{name} must be finite and at most {checks.LARGEST_NUMBER} in size, got {checks.shown(value)}"
        )
    return float(value)


def _check_floating(tensor: Tensor, name: str) -> None:
    _check_dense(tensor, name)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")


def _check_prototypes(prototypes: Tensor, own_subspace: Tensor) -> None:
    _check_floating(prototypes, "prototypes")
    if prototypes.dim() != 3:
        raise ValueError(f"prototypes must be [C, K, dim], got {tuple(prototypes.shape)}")
    _check_dense(own_subspace, "own_subspace")
    if own_subspace.dtype not in (torch.int64, torch.int32) or own_subspace.dim() != 1:
        raise TypeError(
            f"own_subspace must be integers [C], got {own_subspace.dtype} {tuple(own_subspace.shape)}"
        )
    if len(own_subspace) != len(prototypes):
        raise ValueError(f"own_subspace has {len(own_subspace)} classes and prototypes {len(prototypes)}")
    _check_device(own_subspace, "own_subspace", prototypes)
    # A traced program has no values to look at, and on a GPU the look would wait for the device.
    if torch.compiler.is_compiling() or prototypes.device.type != "cpu" or not len(own_subspace):
        return
    low, high = (int(bound) for bound in own_subspace.aminmax())
    if low < 0 or high >= prototypes.shape[1]:
        raise ValueError(
            f"own_subspace must be in [0, {prototypes.shape[1]}), the subspaces of prototypes, got values from "
            f"{low} to {high}"
        )
