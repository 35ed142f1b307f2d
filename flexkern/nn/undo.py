"""All or nothing: what fails half-way leaves everything as it was."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Undo"]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


class Undo:
    """Puts objects back as they were if the block raises, be it an interrupt::

        with Undo(module, written=[module]):
            ...

    What is remembered: the attributes of each object, and what is in the dictionaries, lists and sets among
    them (and in ``containers``), by reference; of the modules in ``written`` also the values of their own
    parameters and buffers. So the block may give attributes other values, and write into the tensors of
    ``written``; what else it has it must replace and not write into. Copies take memory for as long as the
    block runs, so that only what is written belongs into ``written``.

    Args:
        objects: modules count without their children. One that says of itself that it is ``settled`` is left
            out: nothing changes it, and of a thousand the looks alone would take a second.
        containers: dictionaries, lists or sets that are not themselves attributes of these.
        written: of ``objects``, those whose tensors the block writes into.
        last: a tensor that the block writes into by one operation, its last step: once that is done, so is the
            block, and whatever is raised then puts nothing back. So it need not be copied.
    """

    def __init__(
        self,
        *objects: Any,
        containers: Iterable[Any] = (),
        written: Iterable[nn.Module] = (),
        last: Tensor | None = None,
    ) -> None:
        self._last = None if last is None else (last, _version(last))
        self._grad = torch.is_grad_enabled()  # an interrupt can keep a torch.no_grad() from ending
        self._saved: list[tuple[Any, Any]] = [(value, _shallow(value)) for value in containers]
        for one in objects:
            if getattr(one, "settled", False):
                continue
            attributes = vars(one)
            self._saved += [(v, _shallow(v)) for v in attributes.values() if type(v) in _CONTAINERS]
            self._saved.append((attributes, dict(attributes)))
        tensors = {
            id(t): t
            for module in written
            for of_kind in (module._parameters, module._buffers)
            for t in of_kind.values()
            if t is not None
        }
        self._tensors = [(t, t.detach().clone(), _version(t)) for t in tensors.values()]

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        if self._last is not None and _version(self._last[0]) != self._last[1]:
            torch.set_grad_enabled(self._grad)
            return
        while True:
            try:
                self.put_back()
                return
            except KeyboardInterrupt:
                # Whoever presses Ctrl-C again while it is put back means to stop, which is on its way already.
                continue

    def put_back(self) -> None:
        """Everything is as it was; may be called again if it was interrupted."""
        for value, saved in self._saved:
            if isinstance(value, list):
                value[:] = saved
                continue
            if isinstance(value, set):
                value.clear()
                value.update(saved)
                continue
            for name in [name for name in value if name not in saved]:
                del value[name]
            value.update(saved)
        with torch.no_grad():
            for tensor, copy, version in self._tensors:
                if version is None or _version(tensor) != version:
                    tensor.copy_(copy)
        torch.set_grad_enabled(self._grad)


def _shallow(value: Any) -> Any:
    return list(value) if isinstance(value, list) else set(value) if isinstance(value, set) else dict(value)


def _version(tensor: Tensor) -> int | None:
    """None for an inference tensor, which has none."""
    return None if tensor.is_inference() else tensor._version
