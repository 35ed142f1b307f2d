"""Sums that say whether two extractors are the same."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_tensors", "extractor_key", "fingerprint"]


def fingerprint(module: nn.Module | None) -> str | None:
    """SHA-256 of a module's type and all its tensors, whole: whether two extractors give the same features.

    It takes about a second for 600 MB, and is taken anew each time: a kept sum could be of other values.
    """
    if module is None:
        return None
    sha = hashlib.sha256(type(module).__qualname__.encode())
    add_tensors(sha, module)
    return sha.hexdigest()


def add_tensors(sha: Any, module: nn.Module) -> None:
    """Adds names, dtypes, shapes and bytes of all that a module's ``state_dict`` has to a sum of hashlib."""
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):  # what get_extra_state gave
            sha.update(f"{name} {tensor!r}".encode())
            continue
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _add_bytes(sha, tensor)


def extractor_key(module: nn.Module) -> str:
    """SHA-256 of what decides a module's features, as far as the module shows it.

    More than :func:`fingerprint`, whose values are in checkpoints: also its parts as ``repr`` writes them (a
    ReLU and a GELU have the same tensors) and buffers that are not saved.
    """
    parts = re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # functions have another address in each process
    sha = hashlib.sha256(f"{fingerprint(module)} {parts}".encode())
    saved = module.state_dict().keys()
    for name, buffer in sorted(module.named_buffers()):
        if name not in saved:
            sha.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
            _add_bytes(sha, buffer)
    return sha.hexdigest()


def _add_bytes(sha: Any, tensor: Tensor) -> None:
    if math.prod(tensor.shape):
        flat = tensor.detach().cpu().contiguous().view(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
