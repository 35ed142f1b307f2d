"""Training steps replayed from a CUDA graph: what a step launches is recorded once, then launched as a whole.

A step of a small network is many short kernels, and the Python between them takes longer than they do. A graph
has the same kernels on the same memory in the same order, so the bits are those of the steps without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexkern.optim import MetaplasticSGD

__all__ = [
    "CudaGraphRecorder",
    "GraphRecorder",
    "GraphedSteps",
    "Step",
    "check_cuda_graph",
    "graph_recorder",
    "graphed_steps",
]

# A step takes inputs [n, features] and labels int64 [n] (and, of several processes, how many inputs all have
# together), and returns the mean loss, a scalar tensor.
Step = Callable[..., Tensor]
# Steps that run without a graph before one is recorded. The first of an item makes tensors that stay (alpha,
# momentum) and compiles kernels, neither of which can be recorded; the second finds all as it will be.
WARM_UP = 2


class GraphRecorder(Protocol):
    """Runs steps, and records what one launches."""

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Runs a step without a graph, where one could be recorded next."""

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Records a step without taking it.

        Returns:
            What takes the step, on the current stream, and the tensor in which each replay leaves its result.
        """


class CudaGraphRecorder:
    """Records into a CUDA graph, on a stream of its own: the default stream cannot be recorded.

    The steps before the first recording run on that stream too, as torch asks for (its notes on CUDA graphs).
    Each stream waits for the other where a step begins and where it ends, so memory may pass between them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = step()
        current.wait_stream(self._stream)
        return result

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            result = step()
        return graph.replay, result


def graph_recorder(device: torch.device) -> GraphRecorder:
    """The recorder for a device.

    Raises:
        ValueError: if the device has no graphs.
    """
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graph must be False on {device}: only steps on an NVIDIA GPU (device='cuda') can be recorded"
        )
    return CudaGraphRecorder(device)


class _Graph(NamedTuple):
    inputs: Tensor  # replays read these two
    labels: Tensor
    loss: Tensor  # and write this
    key: Hashable
    replay: Callable[[], None]


class GraphedSteps:
    """Takes the steps of one item: the first ones as they are, then replays of a graph of one.

    It is called as the step is, with ``key`` for all that the step reads in Python. Where the key changes, a
    new graph is recorded, after two steps without one. Batches of another size than the first never use a
    graph. Only real steps are ever taken, so weights never have to be put back.

    Args:
        step: on batches; all that it launches must be the same from step to step, but for what is in memory.
        recorder: of the device.
    """

    def __init__(self, step: Step, recorder: GraphRecorder) -> None:
        self._step, self._recorder = step, recorder
        self._first: tuple[torch.Size, torch.dtype] | None = None
        self._warm: tuple[Hashable, int] = (None, 0)  # key of the last steps without a graph; how many
        self._graph: _Graph | None = None

    def __call__(self, inputs: Tensor, labels: Tensor, key: Hashable = ()) -> Tensor:
        """One step; the mean loss, a tensor that the next step may overwrite."""
        shape = (inputs.shape, inputs.dtype)
        self._first = self._first or shape
        if shape != self._first:
            return self._recorder.run(lambda: self._step(inputs, labels))
        if self._graph is None or self._graph.key != key:
            warm = self._warm[1] if self._warm[0] == key else 0
            if warm < WARM_UP:
                self._warm = key, warm + 1
                return self._recorder.run(lambda: self._step(inputs, labels))
            self._graph = self._record(inputs, labels, key)
        graph = self._graph
        graph.inputs.copy_(inputs)
        graph.labels.copy_(labels)
        graph.replay()
        return graph.loss

    def _record(self, inputs: Tensor, labels: Tensor, key: Hashable) -> _Graph:
        self._graph = None  # its memory serves the next one
        x, y = inputs.clone(), labels.clone()
        replay, loss = self._recorder.capture(lambda: self._step(x, y))
        return _Graph(x, y, loss, key, replay)


def graphed_steps(step: Step, optimizer: MetaplasticSGD, device: torch.device) -> Step:
    """What takes the steps of an item: by a graph, recorded anew when a setting of ``optimizer`` changes.

    Steps that look at values on the device cannot be recorded and are taken as they are: while
    ``scale="auto"`` is measured, and with ``nonfinite="raise"``.
    """
    steps = GraphedSteps(step, graph_recorder(device))

    def take(inputs: Tensor, labels: Tensor) -> Tensor:
        groups = optimizer.param_groups
        if optimizer.measures_scale() or any(group["nonfinite"] == "raise" for group in groups):
            return step(inputs, labels)
        return steps(inputs, labels, _settings(optimizer))

    return take


def check_cuda_graph(cuda_graph: object, device: torch.device, learner: type, base: type) -> bool:
    """Checks that the steps of a learner can be recorded, if they are to be.

    Args:
        cuda_graph: the learner's argument, which is returned.
        device: where it computes.
        learner: its class; ``base`` is the one whose step has no hooks.

    Raises:
        TypeError, ValueError: naming what forbids it.
    """
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be True or False, got {cuda_graph!r}")
    if cuda_graph:
        graph_recorder(device)
        hooks = ("_before_step", "_after_step")
        own = [name for name in hooks if getattr(learner, name) is not getattr(base, name)]
        if own and not getattr(learner, "_captures_hooks", False):
            raise ValueError(
                f"cuda_graph must be False for {learner.__name__}: its {' and '.join(own)} would be recorded "
                "once per item and replayed as kernels, without any Python; if that is right, set "
                "_captures_hooks = True in the class"
            )
    return cuda_graph


def _settings(optimizer: MetaplasticSGD) -> Hashable:
    """All single values in the groups of ``optimizer``, which a graph of its step has for constants.

    A tensor on a GPU counts by its address: a replay reads the value that is there then.
    """
    return tuple(
        (name, _constant(value))
        for group in optimizer.param_groups
        for name, value in group.items()
        if not isinstance(value, list)  # of parameters, anchors, flexibilities: one per parameter
    )


def _constant(value: object) -> Hashable:
    if not isinstance(value, Tensor):
        return value  # type: ignore[return-value] # numbers and names
    return value.item() if value.device.type == "cpu" else ("at", value.data_ptr())
