"""Sums that say whether two extractors, or two sets of inputs, are the same."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.streams.image_source import ImageSource

__all__ = ["add_tensors", "extractor_key", "fingerprint", "inputs_key"]

_PART = 1 << 24  # bytes that are summed at once


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
        if math.prod(tensor.shape):
            flat = tensor.detach().cpu().contiguous().view(-1)
            sha.update(flat.view(torch.uint8).numpy().data)


def extractor_key(module: nn.Module) -> str:
    """SHA-256 of what decides a module's features, as far as the module shows it.

    More than :func:`fingerprint`, whose values are in checkpoints: also its parts as ``repr`` writes them (a
    ReLU and a GELU have the same tensors) and buffers that are not saved.
    """
    sha = hashlib.sha256(f"{fingerprint(module)} {module!r}".encode())
    saved = module.state_dict().keys()
    for name, buffer in sorted(module.named_buffers()):
        if name not in saved:
            sha.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
            _add_rows(sha, buffer.detach().reshape(-1))
    return sha.hexdigest()


def inputs_key(inputs: Tensor | ImageSource) -> str:
    """SHA-256 of all values of a tensor, read once; or of the ``identity`` of each image of a source."""
    sha = hashlib.sha256(f"{inputs.dtype} {tuple(inputs.shape)}".encode())
    if isinstance(inputs, Tensor):
        sha.update(b"tensor")
        _add_rows(sha, inputs.detach())
    else:
        sha.update(b"source")
        for i in range(len(inputs)):
            identity = inputs.identity(i).encode("utf-8", "surrogateescape")
            sha.update(len(identity).to_bytes(8, "little") + identity)
    return sha.hexdigest()


def _add_rows(sha: Any, values: Tensor) -> None:
    """Part by part: a tensor may be larger than the memory, or lie on another device."""
    if not values.numel():
        return
    each = max(1, _PART // (values[:1].numel() * values.element_size()))
    for part in values.split(each):
        sha.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
