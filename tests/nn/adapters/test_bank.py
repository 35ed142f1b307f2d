"""flexkern.nn.AdapterBank: rows of one tensor, parameters that optimizers keep, gradients of trainable rows
only."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from flexkern.nn.adapters.bank import TENSORS, AdapterBank

LAYERS, WIDTH, RANK = 2, 12, 5


def filled(tasks: int, capacity: int = 2, **options: float) -> AdapterBank:
    """A bank whose rows are all random: fresh ones answer 0."""
    bank = AdapterBank(LAYERS, WIDTH, RANK, capacity=capacity, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(tasks):
        bank.add_task(generator=generator)
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(WIDTH))
    return bank


def by_modules(bank: AdapterBank, layer: int, task: int, x: Tensor) -> Tensor:
    """One task's adapter as EASE writes it: two linear layers and a ReLU."""
    rows = bank.rows[task]
    down, up = nn.Linear(WIDTH, RANK), nn.Linear(RANK, WIDTH)
    with torch.no_grad():
        down.weight.copy_(rows.row("down", layer).T)
        down.bias.copy_(rows.row("down_bias", layer))
        up.weight.copy_(rows.row("up", layer).T)
        up.bias.copy_(rows.row("up_bias", layer))
    return bank.scale * up(torch.relu(down(x)))


def test_parameters_of_a_task_for_vit_b16() -> None:
    """The paper's number: 1,189,632 for rank 64 in 12 blocks of 768."""
    bank = AdapterBank(12, 768, capacity=1)
    assert bank.parameters_per_task == 1_189_632
    bank.add_task()
    assert sum(p.numel() for p in bank.parameters_of(0)) == 1_189_632


def test_a_new_adapter_answers_nothing() -> None:
    bank = AdapterBank(LAYERS, WIDTH, RANK)
    bank.add_task()
    x = torch.randn(3, 4, WIDTH)
    assert torch.equal(bank(0, x, 0), torch.zeros_like(x))
    down = bank.rows[0].row("down", 0)
    assert down.abs().max() <= 1 / math.sqrt(WIDTH)
    assert down.std() > 0.4 / math.sqrt(WIDTH)  # uniform: 0.58


@pytest.mark.parametrize("task", [0, 2])
def test_equals_separate_modules(task: int) -> None:
    bank = filled(3).eval()
    x, residual = torch.randn(2, 3, 4, WIDTH)
    expected = residual + by_modules(bank, 1, task, x)
    index = torch.full((3,), task)
    for given in (task, index):
        # Sums of 12 and 5 terms of order 1 in float32, in another order: under 20 roundings of values under 8.
        torch.testing.assert_close(bank(1, x, given, residual), expected, rtol=0, atol=20 * 8 * 2**-24)


def test_growing_keeps_what_optimizers_hold() -> None:
    bank = filled(2, capacity=2)
    kept = bank.parameters_of(1)
    before = [p.detach().clone() for p in kept]
    optimizer = torch.optim.SGD(kept, 0.1, momentum=0.9)
    bank.add_task()
    assert bank.capacity == 4
    assert all(a is b for a, b in zip(kept, bank.parameters_of(1), strict=True))
    assert all(torch.equal(p, b) for p, b in zip(kept, before, strict=True))
    for p in kept:
        p.grad = torch.ones_like(p)
    optimizer.step()
    x = torch.randn(2, 3, WIDTH)
    bank.eval()
    # The step is seen by the kernel, which reads the bank's memory and not the parameters.
    assert torch.equal(bank(0, x, torch.tensor([1, 1])), bank(0, x, 1))
    assert not torch.equal(kept[0], before[0])


def test_doubling_is_rare() -> None:
    bank = AdapterBank(1, 4, 2, capacity=1)
    capacities = []
    for _ in range(9):
        bank.add_task()
        capacities.append(bank.capacity)
    assert capacities == [1, 2, 4, 4, 8, 8, 8, 8, 16]


def test_only_trainable_rows_get_gradients() -> None:
    bank = filled(3).eval()
    bank.freeze()
    bank.eval()  # no dropout
    for p in bank.parameters_of(1):
        p.requires_grad_(True)
    x = torch.randn(4, 3, WIDTH, requires_grad=True)
    bank(0, x, torch.tensor([0, 1, 1, -1])).square().sum().backward()
    assert all(p.grad is None for t in (0, 2) for p in bank.parameters_of(t))
    grads = {k: bank.rows[1].row(k, 0).grad for k in TENSORS}
    assert all(g is not None and g.abs().sum() > 0 for g in grads.values())
    assert all(bank.rows[1].row(k, 1).grad is None for k in TENSORS)
    # The same by the module of that task, on its two samples.
    parameters = {k: bank.rows[1].row(k, 0).detach().clone().requires_grad_() for k in TENSORS}
    hidden = torch.relu(x[1:3].detach() @ parameters["down"] + parameters["down_bias"])
    (bank.scale * (hidden @ parameters["up"] + parameters["up_bias"])).square().sum().backward()
    for name in TENSORS:
        torch.testing.assert_close(grads[name], parameters[name].grad, rtol=1e-5, atol=1e-6)
    assert x.grad is not None
    assert torch.equal(x.grad[3], torch.zeros(3, WIDTH))


def test_one_task_in_training_equals_its_index() -> None:
    bank = filled(2).eval()
    x = torch.randn(3, 4, WIDTH)
    grads = []
    for task in (1, torch.tensor([1, 1, 1])):
        bank.zero_grad()
        bank(1, x, task).square().sum().backward()
        grads.append([bank.rows[1].row(k, 1).grad.clone() for k in TENSORS])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_dropout_only_while_training() -> None:
    bank = filled(1, dropout=0.5)
    x = torch.randn(2, 3, WIDTH)
    bank.train()
    torch.manual_seed(0)
    first = bank(0, x, 0)
    assert not torch.equal(first, bank(0, x, 0))
    torch.manual_seed(0)
    assert torch.equal(first, bank(0, x, 0))
    bank.eval()
    assert torch.equal(bank(0, x, 0), bank(0, x, 0))


def test_state_dict_fills_an_empty_bank() -> None:
    bank = filled(3)
    other = AdapterBank(LAYERS, WIDTH, RANK, capacity=1)
    other.load_state_dict(bank.state_dict())
    x = torch.randn(3, 2, WIDTH)
    index = torch.tensor([2, 0, 1])
    assert other.tasks == 3
    assert torch.equal(bank.eval()(0, x, index), other.eval()(0, x, index))


@pytest.mark.parametrize("how", ["to", "deepcopy"])
def test_rows_stay_tied_to_the_stacks(how: str) -> None:
    bank = filled(2)
    bank = bank.to(torch.float64).to(torch.float32) if how == "to" else copy.deepcopy(bank)
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        for p in bank.parameters_of(1):
            p.mul_(2)
    bank.eval()
    assert torch.equal(bank(0, x, torch.tensor([1, 1])), bank(0, x, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"scale": math.inf}, "scale must be finite"),
    ],
)
def test_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterBank(1, 4, **options)


def test_the_last_adapters_can_be_removed() -> None:
    bank = filled(3)
    x = torch.randn(2, 4, WIDTH)
    bank.freeze()
    bank.eval()  # no dropout
    first = bank(1, x, torch.tensor([0, 1]))
    bank.remove_last()
    assert bank.tasks == 2
    assert not any(name.startswith("rows.2") for name in bank.state_dict())
    assert torch.equal(bank(1, x, torch.tensor([0, 1])), first)
    assert bank.add_task() == 2  # as new
    assert torch.equal(bank(0, x, 2), torch.zeros_like(x))
    for _ in range(3):
        bank.remove_last()
    with pytest.raises(ValueError, match="no adapters to remove"):
        bank.remove_last()
