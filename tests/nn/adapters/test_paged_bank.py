"""flexkern.nn.PagedAdapterBank: any number of tasks in the device's memory of a few, to the same bits."""

from __future__ import annotations

import contextvars
import copy
import errno
import math
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.nn import AdapterBank, PagedAdapterBank
from flexkern.nn.adapters import homes
from flexkern.nn.adapters.bank import TENSORS

LAYERS, WIDTH, RANK, TASKS = 2, 12, 5, 9
OFFLOADS = pytest.mark.parametrize("offload", homes.OFFLOADS)


def filled(bank: AdapterBank, tasks: int = TASKS) -> Any:
    """A bank whose rows are all random: fresh ones answer 0."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(tasks):
        task = bank.add_task(generator=generator)
        with torch.no_grad():
            for p in bank.parameters_of(task):
                p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(WIDTH))
    bank.freeze()
    return bank.eval()


def two(offload: str = "cpu", resident: int = 3) -> tuple[AdapterBank, PagedAdapterBank]:
    whole = filled(AdapterBank(LAYERS, WIDTH, RANK))
    return whole, filled(PagedAdapterBank(LAYERS, WIDTH, RANK, resident_tasks=resident, offload=offload))


def asked(bank: AdapterBank, index: Tensor, residual: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn((len(index), 4, WIDTH), generator=generator)
    with torch.no_grad():
        return torch.stack([bank(layer, x, index, x + 1 if residual else None) for layer in range(LAYERS)])


INDICES = {
    "sorted": torch.arange(TASKS).repeat_interleave(2),
    "mixed": torch.tensor([3, -1, 0, 8, 3, 5, -1, 1, 0]),
    "few": torch.tensor([2, 2, 7], dtype=torch.int32),
    "none": torch.tensor([-1, -1]),
    "empty": torch.zeros(0, dtype=torch.int64),
}


@pytest.mark.parametrize("resident", [1, 2, 3, 20])
@OFFLOADS
def test_the_bits_of_all_in_memory(offload: str, resident: int) -> None:
    whole, paged = two(offload, resident)
    for _ in range(2):  # the second time some are there already
        for index in INDICES.values():
            for residual in (True, False):
                assert torch.equal(asked(paged, index, residual), asked(whole, index, residual))
            groups = paged.grouped(index)
            paged.prefetch(groups)
            assert torch.equal(asked(paged, groups), asked(whole, index))
        for task in (0, TASKS - 1):
            x = torch.ones(2, 3, WIDTH)
            assert torch.equal(paged(1, x, task), whole(1, x, task))


def test_a_task_is_fetched_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    _, paged = two(resident=3)
    fetched: list[int] = []
    copy_all = torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda to, rows: (fetched.append(len(rows)), copy_all(to, rows))
    )
    asked(paged, INDICES["sorted"])
    assert sum(fetched) == TASKS * LAYERS * len(TENSORS)
    asked(paged, torch.tensor([6, 7, 8]))  # the last ones of it
    assert sum(fetched) == TASKS * LAYERS * len(TENSORS)


@OFFLOADS
def test_slots_do_not_grow(offload: str) -> None:
    paged = PagedAdapterBank(LAYERS, WIDTH, RANK, resident_tasks=2, offload=offload)
    sizes = set()
    for _ in range(40):
        paged.add_task()
        sizes.add(sum(t.untyped_storage().nbytes() for stacks in paged._stacks for t in stacks.values()))
    assert sizes == {2 * 4 * paged.parameters_per_task}


def test_what_is_written_into_a_row_is_seen() -> None:
    whole, paged = two()
    index = torch.tensor([1, 4])
    before = asked(paged, index)
    for bank in (whole, paged):
        with torch.no_grad():
            bank.parameters_of(4)[-1].add_(1)
    assert torch.equal(asked(paged, index), asked(whole, index))
    assert not torch.equal(asked(paged, index), before)
    # All of it, by a state dictionary.
    other = filled(AdapterBank(LAYERS, WIDTH, RANK, scale=0.1), 1)
    while other.tasks < TASKS:
        other.add_task()
    paged.load_state_dict(other.state_dict())
    assert torch.equal(asked(paged, index), asked(other.eval(), index))


def test_gradients_are_those_of_all_in_memory() -> None:
    found = []
    for bank in two():
        last = bank.add_task(generator=torch.Generator().manual_seed(1))
        x = torch.linspace(-1, 1, 5 * 3 * WIDTH).view(5, 3, WIDTH).requires_grad_()
        index = torch.tensor([last, 2, -1, 0, last])
        (bank(1, x, index, x).square().sum() + bank(0, x, last).sum()).backward()
        assert all(p.grad is None for t in range(last) for p in bank.parameters_of(t))
        found.append([x.grad, *(p.grad for p in bank.parameters_of(last))])
    # A row's gradient is a sum over its samples.
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_dropout_is_that_of_all_in_memory() -> None:
    found = []
    for bank in two():
        torch.manual_seed(3)
        found.append(asked(bank.train(), INDICES["mixed"]))
    assert torch.equal(*found)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda bank: pickle.loads(pickle.dumps(bank)),
    "double and back": lambda bank: bank.to(torch.float64).to(torch.float32),
    "state": lambda bank: loaded(PagedAdapterBank(LAYERS, WIDTH, RANK, resident_tasks=2), bank),
    "state into memory": lambda bank: loaded(AdapterBank(LAYERS, WIDTH, RANK), bank),
}


def loaded(bank: Any, of: AdapterBank) -> Any:
    bank.load_state_dict(of.state_dict())
    return bank.eval()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@OFFLOADS
def test_copies(offload: str, copied: Callable[[Any], Any]) -> None:
    whole, paged = two(offload)
    asked(paged, INDICES["sorted"])
    other = copied(paged)
    assert list(other.state_dict()) == list(whole.state_dict())
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in whole.named_parameters()]
    assert torch.equal(asked(other, INDICES["mixed"]), asked(whole, INDICES["mixed"]))
    other.add_task()
    with torch.no_grad():
        other.parameters_of(0)[0].zero_()
    if other is not paged:
        assert torch.equal(asked(paged, INDICES["sorted"]), asked(whole, INDICES["sorted"]))


def test_a_copy_in_training_is_its_optimizers() -> None:
    _, paged = two()
    task = paged.add_task()
    optimizer = torch.optim.SGD(paged.parameters_of(task), 0.1)
    for other, step in (copy.deepcopy((paged, optimizer)), pickle.loads(pickle.dumps((paged, optimizer)))):
        assert [id(p) for p in step.param_groups[0]["params"]] == [id(p) for p in other.parameters_of(task)]


@pytest.mark.parametrize("kind", [AdapterBank, PagedAdapterBank])
def test_a_pickle_has_each_task_once(kind: type[AdapterBank]) -> None:
    sizes = [len(pickle.dumps(filled(kind(1, 64, 16), tasks))) for tasks in (8, 64)]
    assert sizes[1] < 8.1 * sizes[0] + 64 * 2000  # and names


def test_what_was_removed_is_another_task_when_it_comes_again() -> None:
    whole, paged = two()
    for bank in (whole, paged):
        asked(bank, torch.tensor([8]))
        bank.remove_last()
        bank.remove_last()
        filled(bank, 3)
    assert torch.equal(asked(paged, INDICES["sorted"]), asked(whole, INDICES["sorted"]))


@pytest.fixture
def impatient() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_threads_do_not_take_each_others_slots() -> None:
    whole, paged = two(resident=2)
    indices = [torch.arange(TASKS), torch.arange(TASKS - 1, -1, -1), INDICES["mixed"]]
    expected = [asked(whole, index) for index in indices]
    wrong: list[int] = []

    def ask(which: int) -> None:
        for _ in range(20):
            if not torch.equal(asked(paged, indices[which]), expected[which]):
                wrong.append(which)

    # A thread does not have the backend of who starts it.
    contexts = [contextvars.copy_context() for _ in range(6)]
    threads = [threading.Thread(target=c.run, args=(ask, i % 3)) for i, c in enumerate(contexts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, paged = two("disk")
    while paged.tasks < paged.capacity:
        paged.add_task()
    before, tasks = asked(paged, INDICES["sorted"]), paged.tasks
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for [\d,]+ bytes of adapters; set TMPDIR"):
        paged.add_task()
    assert paged.tasks == tasks
    assert torch.equal(asked(paged, INDICES["sorted"]), before)


def test_errors() -> None:
    with pytest.raises(ValueError, match="resident_tasks must be at least 1, got 0"):
        PagedAdapterBank(1, 4, resident_tasks=0)
    with pytest.raises(ValueError, match="offload must be"):
        PagedAdapterBank(1, 4, offload="tape")
    _, paged = two()
    for task in (-2, TASKS):
        with pytest.raises(IndexError, match=re.escape(f"[-1, {TASKS}) for a bank of {TASKS} tasks")):
            asked(paged, torch.tensor([task]))
    with pytest.raises(ValueError, match="one entry for each of 3 samples, got 1"):
        paged(0, torch.ones(3, 2, WIDTH), torch.tensor([0]))
