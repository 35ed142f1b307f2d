"""SelectedLDA: samples left out in closed form as by learning without them, and what is selected by that."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from flexkern.nn import LDAHead, SelectedLDA
from flexkern.nn.heads.leave_one_out import leave_one_out
from flexkern.nn.not_learned import NotLearnedError


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def some_data(n: int, width: int, classes: int, seed: int = 0, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated gaussian classes, float64."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn((width, width), generator=g, dtype=torch.float64) / width**0.5
    labels = torch.randint(0, classes, (n,), generator=g)
    means = apart * torch.randn((classes, width), generator=g, dtype=torch.float64)
    return means[labels] + torch.randn((n, width), generator=g, dtype=torch.float64) @ mixing, labels


def without_each(head: LDAHead, x: Tensor, labels: Tensor) -> Tensor:
    """Log posteriors of each sample by a head that has learned all others, one after the other."""
    found = []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        one = LDAHead(head.width, shrinkage=head.shrinkage, priors=head.priors, dtype=torch.float64)
        one.update(x[others], labels[others])
        found.append(one.logits(x[i : i + 1]).log_softmax(1))
    return torch.cat(found)


@pytest.mark.parametrize("priors", ["uniform", "counts"])
def test_left_out_as_by_learning_without(priors: str) -> None:
    x, labels = some_data(60, 12, 5)
    head = LDAHead(12, shrinkage=0.0, priors=priors, dtype=torch.float64)
    head.update(x, labels)
    found, expected = leave_one_out(head, x, labels), without_each(head, x, labels)
    # Exact but for float32's rounding of logits: squared distances of some 100, less a bias of that size.
    torch.testing.assert_close(found, expected, rtol=0, atol=100 * 8 * 2**-24)


@pytest.mark.parametrize("shrinkage", [0.3, "oas"])
def test_shrunk_covariances_are_left_out_but_for_their_trace(shrinkage: float | str) -> None:
    x, labels = some_data(600, 12, 5)
    head = LDAHead(12, shrinkage=shrinkage, dtype=torch.float64)
    head.update(x, labels)
    found, expected = leave_one_out(head, x, labels).exp(), without_each(head, x, labels).exp()
    # The trace changes by a sample's part of it, |r|^2 / tr, about 1 / 600 and 4 times that for the farthest; a
    # log posterior, of distances up to 50, by that share of them: at most 0.3, and p by a quarter of it.
    assert float((found - expected).abs().max()) < 0.08
    assert bool((found.argmax(1) == expected.argmax(1)).double().mean() > 0.995)


def test_the_only_one_of_its_class_has_no_answer() -> None:
    x, labels = some_data(20, 3, 2)
    labels[7] = 4
    head = LDAHead(3, dtype=torch.float64)
    head.update(x, labels)
    logits = leave_one_out(head, x, labels)
    assert logits.shape == (20, 5)
    assert bool(logits[:, [2, 3]].isinf().all())
    assert math.isinf(float(logits[7, 4]))
    assert bool(logits[:7, 4].isfinite().all())
    with pytest.raises(ValueError, match="labels must be classes that the head has learned"):
        leave_one_out(head, x[:1], torch.tensor([3]))


def test_nothing_to_factor_is_said() -> None:
    head = LDAHead(3)
    head.update(torch.randn(4, 3), torch.arange(4))
    with pytest.raises(RuntimeError, match="no class has two different samples"):
        leave_one_out(head, torch.randn(4, 3), torch.arange(4))


def blocks_of_noise(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Only the last of four blocks of 24 values tells classes apart."""
    x, labels = some_data(n, 24, classes, seed, apart=0.6)
    g = torch.Generator().manual_seed(seed + 1)
    return torch.cat([torch.randn((n, 72), generator=g, dtype=torch.float64), x], 1), labels


def test_few_samples_select_few_blocks_and_many_all() -> None:
    head = SelectedLDA(96, blocks=4)
    assert head.selected == (4, "oas")
    x, labels = blocks_of_noise(150, 10, 0)
    head.update(x, labels)
    head.judge(x, labels)
    few, _ = head.selected
    assert few < 4
    part = head.part(96 - 24 * few, shrinkage=head.selected[1])
    logits = head.logits(x)
    torch.testing.assert_close(logits, part.logits(x[:, 96 - 24 * few :]) / head.temperature)

    informed = SelectedLDA(96, blocks=4)  # all blocks tell as much
    x, labels = some_data(3000, 96, 10, apart=0.35)
    informed.update(x, labels)
    informed.judge(x, labels)
    assert informed.selected == (4, "oas")


def test_counts_are_of_all_that_was_judged() -> None:
    x, labels = blocks_of_noise(200, 5, 3)
    head = SelectedLDA(96, blocks=4, dtype=torch.float64)
    expected = torch.zeros(9, dtype=torch.int64)
    for rows in torch.arange(200).split(100):
        head.update(x[rows], labels[rows])
        head.judge(x[rows], labels[rows])
        for i, (count, shrinkage) in enumerate(head.candidates):
            part = head.part(96 - 24 * count, shrinkage=shrinkage)
            answers = leave_one_out(part, x[rows, 96 - 24 * count :], labels[rows]).argmax(1)
            expected[i] += int((answers == labels[rows]).sum())
    assert torch.equal(head.right, expected)
    assert int(head.judged) == 200
    assert head.selected == head.candidates[int(expected.argmax())]


def test_one_candidate_is_an_lda_head_with_a_temperature() -> None:
    x, labels = some_data(100, 12, 4)
    head = SelectedLDA(12, blocks=3, fewer=False, shrinkage="oas")
    plain = LDAHead(12)
    for one in (head, plain):
        one.update(x, labels)
    assert head.candidates == [(3, "oas")]
    assert torch.equal(head.logits(x), plain.logits(x))
    head.judge(x, labels)
    assert torch.equal(head.logits(x), plain.logits(x) / head.temperature)
    assert torch.equal(head.solve(), plain.solve())


def test_probabilities_are_about_as_sure_as_right() -> None:
    x, labels = some_data(2000, 40, 20, apart=0.1)
    head = SelectedLDA(40, shrinkage="oas")
    head.update(x[:200], labels[:200])
    raw = head.logits(x[200:])
    head.judge(x[:200], labels[:200])
    chosen = head.logits(x[200:])
    right = float((chosen.argmax(1) == labels[200:]).double().mean())
    sure, before = (float(z.softmax(1).amax(1).mean()) for z in (chosen, raw))
    assert before - right > 0.15  # ten samples a class: far too sure
    assert abs(sure - right) < 0.07


def test_it_comes_back_copied_and_merged() -> None:
    x, labels = blocks_of_noise(200, 6, 5)
    head = SelectedLDA(96, blocks=4)
    half = SelectedLDA(96, blocks=4)
    for one, rows in ((head, slice(0, 100)), (half, slice(100, 200))):
        one.update(x[rows], labels[rows])
        one.judge(x[rows], labels[rows])
    logits = head.logits(x)
    fresh = SelectedLDA(96, blocks=4)
    fresh.load_state_dict(head.state_dict())
    for again in (fresh, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(again.logits(x), logits)
        assert again.selected == head.selected
    rights = head.right + half.right
    head.merge(half)
    assert torch.equal(head.right, rights)
    assert int(head.judged) == 200
    assert int(head.count.sum()) == 200
    assert not torch.equal(head.logits(x), logits)
    head.sum.mul_(2)  # from outside, as an average of state_dicts does
    assert not torch.equal(head.logits(x), fresh.logits(x))


def test_the_state_of_a_head_that_judged_nothing_loads() -> None:
    x, labels = some_data(50, 12, 4)
    plain = LDAHead(12)
    plain.update(x, labels)
    head = SelectedLDA(12, blocks=2)
    head.load_state_dict(plain.state_dict())
    assert torch.equal(head.logits(x), plain.logits(x))
    head.update(x, labels)
    head.forget(3)
    assert bool(head.logits(x)[:, 3].isinf().all())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of blocks"):
        SelectedLDA(10, blocks=3)
    with pytest.raises(ValueError, match="shrinkage"):
        SelectedLDA(10, shrinkage="ledoit")
    with pytest.raises(ValueError, match="first must be"):
        LDAHead(4).part(4)


@pytest.mark.parametrize("call", ["judge", "left_out"])
def test_what_was_not_learned_is_not_judged(call: str) -> None:
    head = SelectedLDA(4)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    with pytest.raises(NotLearnedError):
        getattr(head, call)(x, y)
    head.update(x, y)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    for features, labels, error, said in (
        (x * math.nan, y, ValueError, "h0 has infinite or NaN"),
        (x, y + 1, ValueError, "labels must be of classes that were learned, got 3"),
        (x, y[1:], ValueError, "labels must be"),
        (x, y.float(), TypeError, "labels must be an int64 tensor"),
        (x.numpy(), y, TypeError, "h0 must be a floating-point tensor"),
    ):
        with pytest.raises(error, match=said):
            getattr(head, call)(features, labels)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
