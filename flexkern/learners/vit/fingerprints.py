"""Which backbone a learner was made with, as its checkpoints know it."""

from __future__ import annotations

import hashlib
import os

from torch import nn

from flexkern.features import add_tensors

__all__ = ["WHOLE", "fingerprint", "name_of", "old_fingerprint"]

WHOLE = "sha256:"
"""Begins the fingerprint of all of a backbone; that of earlier versions, of a part, is bare."""

# Of layers: what no tensor shows, and what two networks of the same weights can differ in.
_NUMBERS = ("num_heads", "num_attention_heads", "eps")


def fingerprint(backbone: nn.Module) -> str:
    """SHA-256 of a backbone: all its tensors, whole, and the numbers of its layers."""
    digest = hashlib.sha256()
    add_tensors(digest, backbone)
    for name, module in sorted(backbone.named_modules()):
        numbers = [(n, getattr(module, n, None)) for n in _NUMBERS]
        digest.update("".join(f"{name} {n} {v}" for n, v in numbers if isinstance(v, (int, float))).encode())
    return WHOLE + digest.hexdigest()


def old_fingerprint(backbone: nn.Module) -> str:
    """What checkpoints of format 1 have: of the sizes of a backbone, and of a part of its weights."""
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def name_of(backbone: str | os.PathLike[str] | nn.Module) -> str | None:
    """The name of a backbone, or where its folder is, whatever the working directory; None of a module."""
    if isinstance(backbone, nn.Module):
        return None
    if backbone == "small":
        return "small"
    name = os.fspath(backbone)
    folder = os.path.expanduser(name.removeprefix("local-dir:"))
    return os.path.abspath(folder) if os.path.isdir(folder) else name
