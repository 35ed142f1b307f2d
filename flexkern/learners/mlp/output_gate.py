"""The class-gated error: an output learns from an item as much as the item tells of its class."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

__all__ = ["OUTPUT_GATES", "class_gates", "gated"]

OUTPUT_GATES = ("none", "frequency")


def class_gates(counts: Tensor) -> Tensor:
    """The share of its error that each output learns from: ``g_c = (n_c / max n)^2``.

    Args:
        counts: n, how often an item's training set has each class; >= 0, any number, one at least above 0;
            [classes].

    Returns:
        g in [0, 1], float32 [classes]: 1 for the classes that the item has most of, 0 for those it has none of.
    """
    return (counts.double() / counts.max()).square().to(torch.float32)


def gated(logits: Tensor, gates: Tensor) -> Tensor:
    """``g z + (1 - g) stop(z)``: the same logits, of which a loss reaches output c by the share g_c only.

    ``stop(z)`` is z without its gradient, so the values are those of z to the bit, and so is the loss; the
    gradient of the loss by z_c is multiplied by g_c on its way back.

    Args:
        logits: z, [n, classes].
        gates: g, [classes].

    Returns:
        ``logits`` itself.
    """
    if logits.requires_grad:
        # The sum, written out, would be NaN where z is infinite, and rounds where g z does.
        logits.register_hook(partial(torch.mul, gates))
    return logits
