"""Several real processes, started once, that run many cases one after the other by torch.distributed."""

from __future__ import annotations

import datetime
import importlib
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["FOLDER", "join", "needs_gloo", "run_cases", "start"]

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)
FOLDER = Path()
"""Of the processes that run now, for what their cases write."""
_SECONDS = 60  # that a process waits for the others: one that failed is told of within that time


class Failed(str):
    """What a process says of a case that raised there."""


def join(rank: int, world: int, store: str) -> None:
    """Makes this process, of one thread, number ``rank`` of a group that meets at the file ``store``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=_SECONDS),
    )  # fmt: skip


def start(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Calls ``function(rank, *arguments)`` in so many processes; one that fails raises here."""
    # Imported once for all processes; optimizers import the second one at their first step.
    mp.set_forkserver_preload(["torch", "torch._dynamo", "flexkern.learners"])
    mp.start_processes(function, arguments, nprocs=count, start_method="forkserver")


def _process(rank: int, world: int, module: str, names: Sequence[str], folder: str) -> None:
    global FOLDER
    FOLDER = Path(folder)
    join(rank, world, f"{folder}/store{world}")
    cases, found = importlib.import_module(module).CASES, {}
    for name in names:
        try:
            found[name] = cases[name]()
        except Exception:  # the others may wait for this one: nothing after it means anything
            found[name] = Failed(traceback.format_exc())
            break
    torch.save(found, f"{folder}/{world}.{rank}.pt")
    if not any(isinstance(of_one, Failed) for of_one in found.values()):
        dist.barrier()
        dist.destroy_process_group()


def run_cases(module: str, names: Sequence[str], world: int, folder: Path) -> list[dict[str, Any]]:
    """What each of so many processes found: for each name what ``CASES[name]()`` of ``module`` returned there.

    A case that raised, and those after it, raise here when they are asked for.
    """
    start(_process, (world, module, list(names), str(folder)), world)
    return [_Found(torch.load(folder / f"{world}.{rank}.pt", weights_only=False)) for rank in range(world)]


class _Found(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, Failed):
            raise AssertionError(value)
        return value

    def __missing__(self, name: str) -> Any:
        failed = [f"{case}: {value}" for case, value in self.items() if isinstance(value, Failed)]
        raise AssertionError(f"{name} was not run, because another case failed: {failed}")
