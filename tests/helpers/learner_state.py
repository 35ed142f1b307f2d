"""All that a learner is, as bytes: to tell whether anything of it has changed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from flexkern.learners import Learner, checkpoint

__all__ = ["fingerprint", "interrupted", "lines_of"]


def fingerprint(learner: Learner) -> str:
    """Of what a checkpoint would hold: modules, optimizer, extra state, progress and configuration."""
    optimizer = learner._optimizer()
    tensors: dict[str, Any] = {f"model.{k}": v for k, v in learner._modules().state_dict().items()}
    tensors |= {f"extra.{k}": v for k, v in learner._extra_state().items()}
    record: dict[str, Any] = {"progress": learner._progress(), "configuration": learner.configuration()}
    if optimizer is not None:
        of_optimizer, record["optimizer"] = checkpoint.split_optimizer(optimizer.state_dict())
        tensors |= of_optimizer
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if not isinstance(value, Tensor):
            sha.update(f"{name} {value!r}".encode())
            continue
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            sha.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    sha.update(json.dumps(record, sort_keys=True).encode())
    return sha.hexdigest()


@contextmanager
def _traced(at: Callable[[FrameType], None]) -> Iterator[None]:
    """Calls ``at`` before each line of flexkern's Python that runs in the block."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "flexkern" not in frame.f_code.co_filename.split("site-packages")[-1]:
            return None
        if "/tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            at(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def lines_of(counted: list[int]) -> Iterator[None]:
    """Appends how many lines of flexkern ran in the block."""
    lines = 0

    def count(_: FrameType) -> None:
        nonlocal lines
        lines += 1

    with _traced(count):
        yield
    counted.append(lines)


@contextmanager
def interrupted(line: int, error: type[BaseException]) -> Iterator[None]:
    """Raises ``error`` before the line of flexkern with this number, from 0, that runs in the block."""
    lines = -1

    def stop(frame: FrameType) -> None:
        nonlocal lines
        lines += 1
        if lines == line:
            raise error(f"at {frame.f_code.co_filename}:{frame.f_lineno}")

    with _traced(stop):
        yield
