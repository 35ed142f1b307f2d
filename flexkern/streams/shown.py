"""What streams and images look like where Python shows them: a line, and never their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["classes_shown", "inputs_shown"]

_NAMES = 3  # of classes, that are shown


def inputs_shown(inputs: Any) -> str:
    """The shape of one input and its dtype, of a tensor or a source of images: "[3, 32, 32] uint8"."""
    return f"{list(inputs.shape[1:])} {str(inputs.dtype).removeprefix('torch.')}"


def classes_shown(names: Sequence[str], labels: Tensor) -> str:
    """How many classes there are, and the first names, where they have names."""
    if not names:
        count = 0 if labels.is_meta else len(labels.unique())
        return f"{count} {'class' if count == 1 else 'classes'}"
    first = ", ".join(repr(name if len(name) < 30 else f"{name[:27]}...") for name in names[:_NAMES])
    more = ", ..." if len(names) > _NAMES else ""
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {first}{more}"
