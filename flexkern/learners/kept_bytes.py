"""What a learner keeps, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["bytes_kept"]


def bytes_kept(modules: nn.Module, others: Iterable[Any] = (), *, given: nn.Module | None = None) -> int:
    """Bytes of all memory behind the tensors of modules and of other objects, each counted once.

    Of modules parameters and buffers, and tensors in any other attribute: spare capacity, a projection that is
    drawn from its seed, what is solved once and kept. Gradients are not counted. A tensor counts with all the
    memory that it keeps from being freed, also where it is a part of it.

    Args:
        modules: with their children.
        others: tensors; lists, tuples, sets and dictionaries of such.
        given: a module whose own memory is not counted: a frozen network.
    """
    found: dict[int, int] = {}
    for tensor in _tensors([*(vars(module) for module in modules.modules()), *others]):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[id(tensor) if tensor.is_meta else storage.data_ptr()] = storage.nbytes()
    for tensor in [] if given is None else [*given.parameters(), *given.buffers()]:
        found.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(found.values())


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        if thing.layout is torch.strided:
            yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            # A module in a list is no child: it was put there so as not to be one.
            yield from _tensors([vars(m) for m in value.modules()] if isinstance(value, nn.Module) else value)
