"""Sums that say whether two extractors are the same."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Known", "add_tensors", "extractor_key", "fingerprint"]


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


Known = WeakKeyDictionary[nn.Module, tuple[Any, str]]
"""Modules as they were when they were summed, and their sums."""


def extractor_key(module: nn.Module, known: Known) -> str:
    """SHA-256 of what decides a module's features, as far as the module shows it.

    More than :func:`fingerprint`, whose values are in checkpoints: also its parts as ``repr`` writes them (a
    ReLU and a GELU have the same tensors) and buffers that are not saved.

    Args:
        module: the extractor.
        known: sums of before. One serves again unless torch has counted a change of a tensor since; what is
            written behind its back, by ``p.data``, it does not see.
    """
    parts = re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # functions have another address in each process
    state = module.state_dict()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in state}
    now = _as_it_is(parts, state | buffers)
    before = known.get(module)
    if now is not None and before is not None and before[0] == now:
        return before[1]
    sha = hashlib.sha256(f"{fingerprint(module)} {parts}".encode())
    for name, buffer in sorted(buffers.items()):
        sha.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
        _add_bytes(sha, buffer)
    known[module] = now, sha.hexdigest()
    return sha.hexdigest()


def _as_it_is(parts: str, state: dict[str, Any]) -> Any:
    """What changes when a tensor is replaced or written to; None where torch does not count that."""
    try:
        return parts, tuple(
            (name, value.data_ptr(), value._version) if isinstance(value, Tensor) else (name, repr(value))
            for name, value in state.items()
        )
    except RuntimeError:  # of torch.inference_mode()
        return None


def _add_bytes(sha: Any, tensor: Tensor) -> None:
    if math.prod(tensor.shape):
        flat = tensor.detach().cpu().contiguous().view(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
