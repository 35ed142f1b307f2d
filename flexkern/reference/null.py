"""The template of an operator in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

__all__ = ["null"]


def null(x: Tensor, factor: float) -> Tensor:
    """``flexkern::null``: x times a factor."""
    return x * factor
