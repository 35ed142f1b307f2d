"""Which task's adapters a pass through an adapted model has, also where a backward pass computes it again.

The passes that run now are a context variable, not state of the model, so that one model can run in several
threads. Activation checkpointing runs blocks again in a backward pass, when the pass is over: then the node of
the autograd graph that asks for it tells when it was made, and so in which pass.
"""

from __future__ import annotations

import bisect
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
    task: int | Tensor | None
    reads: bool
    outer: Pass | None = None
    graph_task: int = -1
    inputs: dict[int, Tensor] = field(default_factory=dict)


running: ContextVar[Pass | None] = ContextVar("flexkern_running_pass", default=None)


@dataclass(eq=False)
class PassLog:
    """The passes of a model in the order in which they ended, by the numbers of the autograd nodes made in
    them."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    tasks: list[int | Tensor | None] = field(default_factory=list)
    again: dict[int, Tensor] = field(default_factory=dict)  # read by norms that run again

    def add(self, start: int, end: int, task: int | Tensor | None) -> None:
        """A pass made the nodes from ``start`` up to and without ``end``."""
        self.again.clear()
        if start == end:
            return  # without gradients
        place = bisect.bisect(self.starts, start)
        self.starts.insert(place, start)
        self.ends.insert(place, end)
        self.tasks.insert(place, task)
        if len(self.starts) > _MOST:
            del self.starts[0], self.ends[0], self.tasks[0]

    def find(self, node: int) -> tuple[bool, int | Tensor | None]:
        """Whether a pass made this node, and the pass's task. Of nested passes it is the innermost."""
        place = bisect.bisect(self.starts, node) - 1
        while place >= 0:
            if node < self.ends[place]:
                return True, self.tasks[place]
            place -= 1
        return False, None

    def __reduce__(self) -> tuple[Any, ...]:
        return PassLog, ()  # a copy has made no graph


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
    return Pass(owner, task, task is not None, inputs=log.again) if known else current
