"""Several processes that do one work together, by ``torch.distributed``.

Whoever runs a program by ``torchrun`` and calls ``torch.distributed.init_process_group`` has a group of
processes. flexkern's learners and layers then work as one over all of them (docs/scaling.md). Without a
group, with one of one process, and inside of :func:`alone`, all of this is the identity: nothing is copied
and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Sums", "agree", "alone", "as_lead_has", "barrier", "first_row", "gathered", "group_of", "is_lead", "part",
    "rank", "rows_from", "start_gather", "start_sum", "sum_", "within", "world_size",
]  # fmt: skip

_DEFAULT: Any = object()
_GROUP: ContextVar[Any] = ContextVar("flexkern_process_group", default=_DEFAULT)
# Its name since torch 2.13 or so, and before.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_FIRST_ROW: ContextVar[int] = ContextVar("flexkern_first_row", default=0)


def group_of(given: Any = None) -> Any:
    """The group that works together; None: nobody does beside this process.

    Args:
        given: a ``ProcessGroup``; None: that of the block (:func:`within`, :func:`alone`), else the default.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = _GROUP.get() if given is None else given
    if group is None:
        return None
    group = dist.group.WORLD if group is _DEFAULT else group
    return group if dist.get_world_size(group) > 1 else None


@contextmanager
def within(group: Any) -> Iterator[None]:
    """In this block learners and layers work together with the processes of ``group``, and no others."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def alone() -> Any:
    """In this block this process works for itself: a learner of its own, as in a search over settings."""
    return within(None)


def world_size() -> int:
    """How many processes work together."""
    group = group_of()
    return 1 if group is None else dist.get_world_size(group)


def rank() -> int:
    """The number of this process among those that work together, from 0."""
    group = group_of()
    return 0 if group is None else dist.get_rank(group)


def is_lead() -> bool:
    """Whether this process is the one that writes files and tells of progress."""
    return rank() == 0


def barrier() -> None:
    """Waits until all processes have come here."""
    group = group_of()
    if group is not None:
        dist.barrier(group=group)


def part(count: int) -> slice:
    """This process's share of ``count`` rows: the shares follow each other, and differ by one at most."""
    n, r = world_size(), rank()
    return slice(count * r // n, count * (r + 1) // n)


@contextmanager
def rows_from(first: int) -> Iterator[None]:
    """In this block samples are those from number ``first`` on of a batch that several processes share: dropout
    draws for each what it would draw for it in the whole batch."""
    token = _FIRST_ROW.set(first)
    try:
        yield
    finally:
        _FIRST_ROW.reset(token)


def first_row() -> int:
    """The number of a batch's first sample here, in the whole batch; see :func:`rows_from`."""
    return _FIRST_ROW.get()


class Sums(NamedTuple):
    """A sum over all processes that is under way, of tensors that lie one behind the other in ``flat``.

    work: what to wait for; None: nothing is sent.
    """

    flat: Tensor
    shapes: list[torch.Size]
    work: Any

    def wait(self) -> list[Tensor]:
        """The sums, in the shapes of what was given."""
        if self.work is not None:
            self.work.wait()
        parts = self.flat.split([shape.numel() for shape in self.shapes])
        return [p.view(shape) for p, shape in zip(parts, self.shapes, strict=True)]


def start_sum(tensors: Sequence[Tensor], group: Any = None) -> Sums:
    """Begins to add tensors, of one dtype and on one device, over all processes, in one operation.

    Args:
        tensors: of the same shapes on all processes; they are copied.
        group: as :func:`group_of` takes it.
    """
    group = group_of(group)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    work = None if group is None else dist.all_reduce(flat, group=group, async_op=True)
    return Sums(flat, [t.shape for t in tensors], work)


def sum_(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Adds tensors over all processes, in place; those of one dtype and device in one operation.

    The sum of low-precision tensors is taken in float32.
    """
    if group_of(group) is None:
        return
    alike: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for (dtype, _), of_kind in alike.items():
        if len(of_kind) == 1 and dtype.itemsize >= 4 and of_kind[0].is_contiguous():
            dist.all_reduce(of_kind[0], group=group_of(group))  # without a copy, as it may be large
            continue
        low = dtype in (torch.bfloat16, torch.float16)
        found = start_sum([t.float() for t in of_kind] if low else of_kind, group).wait()
        for tensor, total in zip(of_kind, found, strict=True):
            tensor.copy_(total)


class GatheredRows(NamedTuple):
    """The rows of all processes, which are under way.

    found: of each tensor [processes, most rows, ...]; sizes: how many of them each process has.
    works: what to wait for.
    """

    found: list[Tensor]
    sizes: list[int]
    works: list[Any]

    def wait(self) -> list[Tensor]:
        """Of each tensor the rows of all processes, one process's behind the other's, [all rows, ...]."""
        for work in self.works:
            work.wait()
        if len(set(self.sizes)) <= 1:
            return [of_all.flatten(0, 1) for of_all in self.found]
        return [
            torch.cat([part[:size] for part, size in zip(of_all, self.sizes, strict=True)])
            for of_all in self.found
        ]


def start_gather(tensors: Sequence[Tensor], group: Any = None) -> GatheredRows:
    """Begins to gather the rows of tensors from all processes; waits until all have said how many they have.

    Args:
        tensors: [rows, ...], of one number of rows, which may be another on each process; on one device.
        group: as :func:`group_of` takes it.
    """
    group, own = group_of(group), len(tensors[0])
    if group is None:
        return GatheredRows([t[None] for t in tensors], [own], [])
    n = dist.get_world_size(group)
    counts = torch.zeros(n, dtype=torch.int64, device=tensors[0].device)
    _ALL_GATHER(counts, counts.new_tensor([own]), group=group)
    sizes = counts.tolist()
    most, works, found = max(sizes), [], []
    for tensor in tensors:
        sent = tensor.contiguous()
        if own < most:
            sent = torch.cat([sent, sent.new_zeros((most - own, *sent.shape[1:]))])
        of_all = sent.new_empty((n, *sent.shape))
        if sent.numel():
            # As bytes: gloo has no bool and no bfloat16.
            bytes_here, bytes_of_all = (t.view(-1).view(torch.uint8) for t in (sent, of_all))
            works.append(_ALL_GATHER(bytes_of_all, bytes_here, group=group, async_op=True))
        found.append(of_all)
    return GatheredRows(found, sizes, works)


def gathered(rows: Tensor, group: Any = None) -> Tensor:
    """The rows of all processes, one process's behind the other's, [all rows, ...]; each has any number."""
    group = group_of(group)
    return rows if group is None else start_gather([rows], group).wait()[0]


def as_lead_has(tensors: Sequence[Tensor]) -> None:
    """Gives all processes, in place, the tensors that the first one has; they have the same shapes there."""
    group = group_of()
    if group is None:
        return
    for tensor in tensors:
        dist.broadcast(tensor, group=group, group_src=0)


def agree(what: str, facts: dict[str, Any]) -> None:
    """Sees that all processes do the same: each has these facts.

    Args:
        what: is done, for the message.
        facts: names and plain values.

    Raises:
        RuntimeError: on all processes, naming the first fact that differs.
    """
    group = group_of()
    if group is None:
        return
    all_facts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_facts, (what, facts), group=group)
    for other, (of_other, theirs) in enumerate(all_facts):
        first_what, first = all_facts[0]
        if of_other != first_what:
            raise RuntimeError(
                f"{first_what} on process 0, and {of_other} on process {other}: all must call the same"
            )
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise RuntimeError(
                    f"{what}: {name} is {first.get(name)!r} on process 0 and {theirs.get(name)!r} on process "
                    f"{other}; all processes must have the same, of which each takes its share. A process that "
                    "is to work for itself does so inside of flexkern.distributed.alone()"
                )
