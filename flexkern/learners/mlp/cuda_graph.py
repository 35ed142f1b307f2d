"""Training steps replayed from a CUDA graph: what a step launches is recorded once, then sent in one go.

A step of a small network is many short kernels, and the Python between them takes longer than they do. A graph
has the same kernels on the same memory in the same order, so the bits are those of the steps without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexkern.optim import MetaplasticSGD
from flexkern.optim.groups import is_unmeasured, scale_in_force

__all__ = [
    "CapturedSteps",
    "CudaRecorder",
    "Recorder",
    "Step",
    "captured_steps",
    "check_capture",
    "recorder_for",
]

# A step takes inputs [n, features] and labels int64 [n], and returns the mean loss, a scalar tensor.
Step = Callable[[Tensor, Tensor], Tensor]
# Steps that run as ever before one is recorded. The first of an item makes what it holds (alpha, momentum) and
# compiles kernels, neither of which can be recorded; the second finds all as it will be.
WARM_UP = 2
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "nonfinite", "gate")


class Recorder(Protocol):
    """Runs steps, and records what one launches."""

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Runs a step as ever, where it could be recorded next."""

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Records a step without taking it.

        Returns:
            What takes the step, on the current stream, and the tensor in which each replay leaves its result.
        """


class CudaRecorder:
    """Records into a CUDA graph, on a stream of its own: the default stream cannot be recorded.

    The steps before the first recording run on that stream too, as torch asks for (its notes on CUDA graphs).
    All that is launched before waits for nothing that comes after: both streams wait for each other at the
    borders, so memory may go from one to the other.
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


def recorder_for(device: torch.device) -> Recorder:
    """The recorder of a device.

    Raises:
        ValueError: if the device has no graphs.
    """
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graph must be False on {device}: only steps on an NVIDIA GPU (device='cuda') can be recorded"
        )
    return CudaRecorder(device)


class _Recording(NamedTuple):
    inputs: Tensor  # replays read these two
    labels: Tensor
    loss: Tensor  # and write this
    key: Hashable
    replay: Callable[[], None]


class CapturedSteps:
    """Takes the steps of one item: the first ones as ever, then replays of a recorded one.

    Called as the step is, with ``key`` for all that the step looks at in Python: where it changes, the step is
    recorded anew, after two steps that run as ever. Batches of another size than the first run as ever. Only
    real steps are ever taken, so weights never have to be put back.

    Args:
        step: on batches; all that it launches must be the same from step to step, but for what is in memory.
        recorder: of the device.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step, self._recorder = step, recorder
        self._first: tuple[torch.Size, torch.dtype] | None = None
        self._warm: tuple[Hashable, int] = (None, 0)  # the key of the last steps that ran as ever; how many
        self._recording: _Recording | None = None

    def __call__(self, inputs: Tensor, labels: Tensor, key: Hashable = ()) -> Tensor:
        """One step; the mean loss, a tensor that the next step may overwrite."""
        shape = (inputs.shape, inputs.dtype)
        self._first = self._first or shape
        if shape != self._first:
            return self._recorder.run(lambda: self._step(inputs, labels))
        if self._recording is None or self._recording.key != key:
            warm = self._warm[1] if self._warm[0] == key else 0
            if warm < WARM_UP:
                self._warm = key, warm + 1
                return self._recorder.run(lambda: self._step(inputs, labels))
            self._recording = self._record(inputs, labels, key)
        recording = self._recording
        recording.inputs.copy_(inputs)
        recording.labels.copy_(labels)
        recording.replay()
        return recording.loss

    def _record(self, inputs: Tensor, labels: Tensor, key: Hashable) -> _Recording:
        self._recording = None  # its memory serves the next one
        x, y = inputs.clone(), labels.clone()
        replay, loss = self._recorder.capture(lambda: self._step(x, y))
        return _Recording(x, y, loss, key, replay)


def captured_steps(step: Step, optimizer: MetaplasticSGD, device: torch.device) -> Step | None:
    """What takes the steps of an item, with all of ``optimizer``'s numbers watched.

    None where its steps look at values on the device, so that they cannot be recorded: while ``scale="auto"``
    is being measured, and with ``nonfinite="raise"``.
    """
    if any(is_unmeasured(group) or group["nonfinite"] == "raise" for group in optimizer.param_groups):
        return None
    steps = CapturedSteps(step, recorder_for(device))
    return lambda x, y: steps(x, y, _settings(optimizer))


def check_capture(cuda_graph: object, device: torch.device, learner: type, base: type) -> bool:
    """Checks that the steps of a learner can be captured, if they are to be.

    Args:
        cuda_graph: the learner's argument, which is returned.
        device: where it computes.
        learner: its class; ``base`` is the one whose step has no hooks.

    Raises:
        TypeError, ValueError: naming what stands against it.
    """
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be True or False, got {cuda_graph!r}")
    if cuda_graph:
        recorder_for(device)
        hooks = ("_before_step", "_after_step")
        own = [name for name in hooks if getattr(learner, name) is not getattr(base, name)]
        if own and not getattr(learner, "_captures_hooks", False):
            raise ValueError(
                f"cuda_graph must be False for {learner.__name__}: its {' and '.join(own)} would be recorded "
                "once an item and replayed as kernels, without any Python; if that is right, set "
                "_captures_hooks = True in the class"
            )
    return cuda_graph


def _settings(optimizer: MetaplasticSGD) -> Hashable:
    """The numbers that a recorded step of ``optimizer`` holds, so that it is recorded anew where one changes.

    Of a tensor on a GPU the address: a replay reads what stands there.
    """
    return tuple(
        _number(value)
        for group in optimizer.param_groups
        for value in (*(group[name] for name in _NUMBERS), scale_in_force(group))
    )


def _number(value: object) -> Hashable:
    if not isinstance(value, Tensor):
        return value  # type: ignore[return-value] # numbers and names
    return value.item() if value.device.type == "cpu" else ("at", value.data_ptr())
