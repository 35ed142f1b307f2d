"""A run on several processes: what ``torchrun`` says, the group of processes, and who writes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from flexkern.distributed import is_lead, world_size

__all__ = ["alike", "first", "lead_only", "local_device", "processes", "refuse_several", "said", "where"]

_TIMEOUT = datetime.timedelta(minutes=10)  # that a process waits for one that does not come


def said() -> int:
    """How many processes ``torchrun`` has started, 1 without it."""
    try:
        return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1
    except (KeyError, ValueError):
        return 1


def first() -> bool:
    """Whether this process writes and speaks, also before and after there is a group."""
    return said() == 1 or os.environ["RANK"] == "0"


def refuse_several(command: str) -> None:
    """Raises ValueError where ``torchrun`` runs several processes of a command that does not share its work."""
    if said() > 1:
        raise ValueError(
            f"{command} does not share its work: each of the {said()} processes would do all of it; start it "
            "without torchrun (of the commands, fit and run class-incremental share theirs)"
        )


def where() -> str:
    """Which of several processes this is, for what it says of a mistake; empty where there is one."""
    return f", process {os.environ['RANK']} of {said()}" if said() > 1 else ""


def local_device(name: str) -> str:
    """The device of a process that ``torchrun`` has started: of the GPUs of a machine, each has its own."""
    if said() == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def processes() -> Iterator[None]:
    """In this block the processes that ``torchrun`` has started work together. Without it nothing happens, nor
    where the program that calls has its group already."""
    if said() == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    yield
    dist.destroy_process_group()  # not if something was raised: the others may wait for this process


def lead_only(claim: Callable[..., Any], *arguments: Any) -> Any:
    """``claim(*arguments)``, a context, for the process that writes; nothing for the others."""
    return claim(*arguments) if is_lead() else nullcontext()


def alike(environment: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's bits, with the number of processes where there are several."""
    return environment | ({"processes": world_size()} if world_size() > 1 else {})
