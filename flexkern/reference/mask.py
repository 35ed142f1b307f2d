"""Packed masks in plain PyTorch (docs/design.md, Silent and functional synapses)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack_mask", "unpack_mask"]


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
