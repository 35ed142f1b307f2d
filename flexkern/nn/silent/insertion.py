"""How silent synapses become functional, and functional ones silent again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexkern.nn.silent.adaptive_threshold import AdaptiveThreshold
from flexkern.ops.choices import INSERTS, RULES
from flexkern.plain import choice, number

__all__ = ["Insertion", "numbers_of_units"]


@dataclass(frozen=True, eq=False)
class Insertion:
    """When a silent synapse becomes functional, and with what weight: AMPA receptors are inserted.

    The synapse from unit i to unit j converts where its coincidence c[j, i] reaches the threshold of unit j.

    Args:
        threshold: theta >= 0: a number, a floating-point tensor with one for each unit, or an
            :class:`flexkern.nn.AdaptiveThreshold`.
        rule: "rate": c[j, i] = mean post[j] * mean pre[i]. "hebbian": c[j, i] = mean of post[j] pre[i] over the
            samples; without a fused step this costs a second matrix of the weight's size and a second product
            in forward.
        insert: the weight that a converted synapse gets. "init": the layer's own draw for it. "hebbian":
            eta * c; the optimizer then stores an anchor.
        eta: of insert="hebbian", finite and >= 0.
        prune: a functional synapse whose |w| is under it before and after a step goes silent again; finite and
            >= 0, 0: none.

    Raises:
        TypeError, ValueError: naming the argument. The threshold is checked by the layer, which knows how many
            units it has.

    Source: arXiv 2410.05899 for silent and functional synapses; the rules are those of docs/design.md, Silent
    and functional synapses.
    """

    threshold: float | Tensor | AdaptiveThreshold = 1.0
    rule: str = "rate"
    insert: str = "init"
    eta: float = 1.0
    prune: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("rule", RULES), ("insert", INSERTS)):
            choice(getattr(self, name), name, allowed)
        if isinstance(self.threshold, np.generic) or (
            isinstance(self.threshold, np.ndarray) and not self.threshold.ndim
        ):
            object.__setattr__(self, "threshold", self.threshold.item())
        for name in ("eta", "prune"):
            value = number(getattr(self, name), name, 0)
            if value > 1e38:
                raise ValueError(f"{name} must be finite and >= 0 in float32, got {value}")
            object.__setattr__(self, name, value)

    def initial_threshold(self, units: int) -> Tensor:
        """theta before the first pass, float64: one element, or one for each of ``units``.

        Raises:
            TypeError, ValueError: if ``threshold`` is no threshold of so many units.
        """
        if isinstance(self.threshold, AdaptiveThreshold):
            return torch.full((units,), self.threshold.start, dtype=torch.float64, device="cpu")
        theta = numbers_of_units(self.threshold, "threshold", units, " or a flexkern.nn.AdaptiveThreshold")
        if not bool((theta >= 0).all()):
            raise ValueError(f"threshold must be >= 0, got {self.threshold}")
        return theta.reshape(-1).clone()


def numbers_of_units(value: object, name: str, units: int, other: str) -> Tensor:
    """A number, or a floating tensor with one for each unit, as a float64 tensor.

    Args:
        value: what was given.
        name: of the argument.
        units: how many there are.
        other: what else the argument takes, for the message.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(value, Tensor) and (value.dim() or value.is_floating_point()):
        if not value.is_floating_point() or tuple(value.shape) not in ((), (1,), (units,)):
            raise ValueError(
                f"{name} as a tensor must be floating-point with one value, or one for each of the {units} "
                f"units{other}, got {value.dtype} {tuple(value.shape)}"
            )
        return value.detach().double()
    if not isinstance(value, float):  # callers say what a float may be, NaN and infinity too
        value = number(value, name, kind=f"a number, a tensor [{units}]{other}")
    # Its values are looked at, also where the default device has none (meta).
    return torch.tensor(value, dtype=torch.float64, device="cpu")
