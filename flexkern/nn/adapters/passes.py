"""Which task's adapters a pass through an adapted model has, also where a backward pass computes it again.

The passes that run now are a context variable, not state of the model, so that one model can run in several
threads. Activation checkpointing runs blocks again in a backward pass, when the pass is over: then the node of
the autograd graph that asks for it tells when it was made, and so in which pass.
"""

from __future__ import annotations

import bisect
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexkern.nn.adapters.groups import TaskGroups

__all__ = ["Pass", "PassLog", "running", "running_in"]

_MOST = 4096  # forward passes of one model that may wait for their backward passes


@dataclass(eq=False)
class Pass:
    """One run of a model.

    owner: the :class:`flexkern.nn.AdaptedModel` that runs.
    task: of all samples, or of each; None: no adapters.
    reads: whether norms keep what they read.
    outer: the pass within which this one began.
    graph_task: number of the backward pass that it began in, -1 for none.
    inputs: what the norms have read, by layer.
    """

    owner: Any
    task: int | Tensor | TaskGroups | None
    reads: bool
    outer: Pass | None = None
    graph_task: int = -1
    inputs: dict[int, Tensor] = field(default_factory=dict)


running: ContextVar[Pass | None] = ContextVar("flexkern_running_pass", default=None)


class _Ended(NamedTuple):
    start: int
    end: int
    task: int | Tensor | TaskGroups | None


@dataclass(eq=False)
class PassLog:
    """The passes of a model in the order in which they ended, by the numbers of the autograd nodes made in
    them. Several threads may add to it and look into it: each change is one operation on one list."""

    passes: list[_Ended] = field(default_factory=list)  # by their starts
    # Read by norms that run again, for each thread: a pass that ends in another one must not clear it.
    again: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def add(self, start: int, end: int, task: int | Tensor | TaskGroups | None) -> None:
        """A pass made the nodes from ``start`` up to and without ``end``."""
        self.again.pop(threading.get_ident(), None)
        if start == end:
            return  # without gradients
        bisect.insort(self.passes, _Ended(start, end, task), key=_start)
        if len(self.passes) > _MOST:
            del self.passes[0]

    def find(self, node: int) -> tuple[bool, int | Tensor | TaskGroups | None]:
        """Whether a pass made this node, and the pass's task. Of nested passes it is the innermost."""
        passes = self.passes[: bisect.bisect(self.passes, node, key=_start)]
        for known in reversed(passes):
            if node < known.end:
                return True, known.task
        return False, None

    def __reduce__(self) -> tuple[Any, ...]:
        return PassLog, ()  # a copy has made no graph


def _start(known: _Ended) -> int:
    return known.start


def running_in(owner: Any, log: PassLog) -> Pass | None:
    """The pass of ``owner`` that runs now, or that the backward pass computes again; None: there is none."""
    current = running.get()
    while current is not None and current.owner is not owner:
        current = current.outer
    if torch.compiler.is_compiling():
        return current
    backward = torch._C._current_graph_task_id()
    if backward < 0 or (current is not None and current.graph_task == backward):
        return current
    # In a backward pass, and the pass was not begun in it: what runs is what was run before.
    node = torch._C._current_autograd_node()
    known, task = (False, None) if node is None else log.find(node._sequence_nr())
    return (
        Pass(owner, task, task is not None, inputs=log.again.setdefault(threading.get_ident(), {}))
        if known
        else current
    )
