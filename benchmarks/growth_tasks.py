"""Artsy's inference as tasks come: its time and its memory, against EASE's pass for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from flexkern.benchmarks.bench_artsy import Inference
from flexkern.benchmarks.case import CPU, GPU, Point, Setting, Skip, series
from flexkern.benchmarks.peers.ease import Ease
from flexkern.benchmarks.timing import point, quartiles
from flexkern.measure import peak_mb

__all__ = ["tasks_memory", "tasks_time"]

OURS, EASE = "flexkern, 1 open synapse an image", "EASE, T + 1 passes"
ALONE = ", parameters alone"


def task_counts(at: Setting) -> tuple[int, ...]:
    return (1, 2, 5) if at.quick else (1, 2, 5, 10, 20, 30, 40, 50)


def precision(at: Setting) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if at.device == GPU else nullcontext()


def make(tasks: int, at: Setting) -> tuple[Inference, Ease, dict[str, Callable[[], Tensor]]]:
    """One open synapse an image, and EASE with the same weights: made, compared, and ready to be called."""
    on_gpu = at.device == GPU
    size, batch = ("vit-b16", 128) if on_gpu and not at.quick else ("small", at.size(16, 4))
    inference = Inference(tasks, size=size, batch=batch, device=at.device)
    ease = inference.ease()
    calls: dict[str, Callable[[], Tensor]] = {OURS: inference.ours, EASE: partial(inference.passes, ease)}
    # Sums of some hundred values of order 1 in another order, through all blocks; before precision is lowered.
    torch.testing.assert_close(calls[OURS](), calls[EASE](), rtol=1e-3, atol=1e-3)
    return inference, ease, calls


@series(
    "growth/tasks-time",
    title="Artsy's inference on a batch",
    x="tasks learned",
    y="seconds",
    devices=(CPU, GPU),
)
def tasks_time(at: Setting) -> Iterator[Point]:
    """16 images and a small ViT; on a GPU 128 images, ViT-B/16, bfloat16."""
    for tasks in task_counts(at):
        _, _, calls = make(tasks, at)
        with torch.no_grad(), precision(at):
            yield point(tasks, calls, at.device, seconds=at.size(1, 0))


@series(
    "growth/tasks-memory",
    title="Artsy's inference on a batch: parameters and peak",
    x="tasks learned",
    y="MB",
    devices=(CPU, GPU),
)
def tasks_memory(at: Setting) -> Iterator[Point]:
    """Network and adapters, with the room that a bank keeps for tasks to come; and with a call's peak above it.

    Raises:
        Skip: where the peak cannot be told.
    """
    for tasks in task_counts(at):
        inference, ease, calls = make(tasks, at)
        bank = inference.bank
        network = megabytes(inference.adapted.model)
        parameters = {
            OURS: network + 4 * bank.capacity * bank.parameters_per_task / 2**20,
            EASE: network + megabytes(ease.adapters),
        }
        values = {}
        for line, call in calls.items():
            with torch.no_grad(), precision(at):
                peaks = [peak_mb(call, at.device) for _ in range(3)]
            known = [peak for peak in peaks if peak is not None]
            if len(known) < len(peaks):
                raise Skip("this system does not tell how much memory a call takes")
            values[line] = quartiles([parameters[line] + peak for peak in known])
            values[line + ALONE] = (parameters[line],) * 3
        yield Point(tasks, values)


def megabytes(module: nn.Module) -> float:
    """Of its parameters, in MiB."""
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
