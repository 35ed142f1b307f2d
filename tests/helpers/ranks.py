"""Four processes, started once, in which tests of torch.distributed run their cases one after the other.

A module registers a case by ``@case(name, count)``: a function that the first ``count`` processes call, each
with a :class:`Here`, and whose answers a test gets from :func:`answers`. ``MODULES`` lists these modules.
"""

from __future__ import annotations

import importlib
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock
from torch.distributed.device_mesh import DeviceMesh

from helpers.groups import join, needs_gloo, start

__all__ = ["CASES", "GROUPS", "WORLD", "Here", "answers", "case", "marks", "of_case"]

WORLD = 4
GROUPS = (1, 2, 3, 4)
MODULES = ("by_name", "optimizers", "zero", "wrappers", "fused", "checkpoints")
CASES: dict[str, tuple[int, Callable[[Here], Any]]] = {}
marks = [pytest.mark.slow, needs_gloo]


class Here(NamedTuple):
    """One of the processes of a case.

    mesh: of all of them.
    square: of four as 2 x 2, "dp" and "tp"; of others None.
    folder: which they share.
    """

    rank: int
    count: int
    group: Any
    mesh: DeviceMesh
    square: DeviceMesh | None
    folder: str


def case(name: str, count: int) -> Callable[[Callable[[Here], Any]], Callable[[Here], Any]]:
    """Registers a case for the first ``count`` processes."""

    def register(function: Callable[[Here], Any]) -> Callable[[Here], Any]:
        assert name not in CASES, name
        CASES[name] = (count, function)
        return function

    return register


def _rank(rank: int, folder: str, only: str) -> None:
    join(rank, WORLD, f"{folder}/store")
    for module in MODULES:
        importlib.import_module(f"helpers.ranks_{module}")
    meshes = {count: DeviceMesh("cpu", list(range(count))) for count in GROUPS}
    square = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("dp", "tp"))
    found: dict[str, Any] = {}
    for name, (count, function) in CASES.items():
        if not re.search(only, name):
            continue
        mesh = meshes[count]
        torch.manual_seed(0)
        try:
            dist.barrier()  # some cases read what others wrote
            if rank < count:
                mine = square if count == WORLD else None
                found[name] = function(Here(rank, count, mesh.get_group(), mesh, mine, folder))
        except Exception:  # which is the answer of this case; others may wait for ever for what was not sent
            found[name] = {"error": traceback.format_exc()}
            break
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def answers(factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the cases, and what each process answered; all modules and workers share one launch."""
    folder = factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ranks"
    folder.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            start(_rank, (str(folder), os.environ.get("RANKS_ONLY", "")), WORLD)
            (folder / "done").touch()
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def of_case(found: list[dict[str, Any]], name: str) -> list[Any]:
    """What each process of a case answered; it fails where one raised."""
    mine = [of[name] for of in found if name in of]
    for one in mine:
        assert not (isinstance(one, dict) and "error" in one), one["error"]
    assert mine, "a case before this one has failed"
    return mine
