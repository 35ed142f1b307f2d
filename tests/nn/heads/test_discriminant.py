"""LDAHead: against scikit-learn and a plain float64 reference; in any order, merged, forgotten, saved."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from flexkern.nn import LDAHead, NotLearnedError
from flexkern.nn.heads import class_scatter, discriminant, scatter

U = 2**-24  # half a unit in the last place of float32
Data = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def some_data(n: int, width: int, classes: int, *, seed: int = 0, offset: float = 5.0) -> Data:
    """Correlated gaussian classes, float64; their means are ``offset`` deviations from 0."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn((width, width), generator=g, dtype=torch.float64) / width**0.5
    labels = torch.randint(0, classes, (n,), generator=g)
    means = offset + torch.randn((classes, width), generator=g, dtype=torch.float64)
    return means[labels] + torch.randn((n, width), generator=g, dtype=torch.float64) @ mixing, labels


def taught(x: Tensor, labels: Tensor, batch: int = 10**6, **options: Any) -> LDAHead:
    head = LDAHead(x.shape[1], **options)
    for part in zip(x.split(batch), labels.split(batch), strict=True):
        head.update(*part)
    return head


def plain(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Means of the classes that there are, pooled within-class covariance, and its degrees of freedom."""
    x = x.double()
    seen, place = labels.unique(return_inverse=True)
    means = torch.stack([x[labels == c].mean(0) for c in seen])
    rest, freedom = x - means[place], len(x) - len(seen)
    return means, rest.T @ rest / max(freedom, 1), freedom


def answers(x: Tensor, means: Tensor, covariance: Tensor, rho: float, prior: Tensor) -> Tensor:
    """Log posteriors in float64 by the textbook."""
    d = len(covariance)
    shrunk = (1 - rho) * covariance + rho * covariance.trace() / d * torch.eye(d, dtype=torch.float64)
    apart = x.double()[:, None] - means
    solved = torch.linalg.solve(shrunk, apart.flatten(0, 1).T).T.view_as(apart)
    return (prior.log() - (apart * solved).sum(2) / 2).log_softmax(1)


def scaled_error(found: Tensor, expected: Tensor) -> float:
    """The largest error of a covariance, in units of sqrt(S_ii S_jj)."""
    size = expected.diagonal().sqrt()
    return float(((found.double() - expected).abs() / (size[:, None] * size)).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "width", "classes"), [(90, 7, 3), (130, 33, 5), (60, 65, 10), (40, 131, 2), (9, 1, 4), (300, 17, 1)]
)
def test_against_the_textbook(n: int, width: int, classes: int, dtype: torch.dtype) -> None:
    x, labels = some_data(n, width, classes, seed=width)
    x = x.to(dtype)
    head = taught(x, labels, 37)
    means, covariance, freedom = plain(x, labels)
    assert int(head.freedom) == freedom
    assert scaled_error(head.covariance(), covariance) <= (n + n // 37 + 5) * U
    square, trace = covariance.square().sum(), covariance.trace()
    part = 1 - 2 / width
    top, below = part * square + trace**2, (freedom + part) * (square - trace**2 / width)
    rho = 1.0 if width == 1 else min(1.0, float(top / below))
    logits = head.logits(x)
    assert logits.dtype is torch.float32
    assert width == 1 or head.chosen == pytest.approx(rho, rel=1e-4)
    seen = labels.unique()
    uniform = torch.full((len(seen),), 1 / len(seen), dtype=torch.float64)
    expected = answers(x, means, covariance, head.chosen or 0.0, uniform)
    # The condition is at most width / rho, under 1e4 here; logits are up to some 1e3
    found = logits[:, seen].double().log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert torch.equal(head.predict(x), logits.argmax(1))


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_scikit_learn(shrinkage: float, dtype: torch.dtype) -> None:
    x, labels = some_data(500, 20, 6)
    head = taught(x, labels, 64, shrinkage=shrinkage, priors="counts", dtype=dtype)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.numpy(), labels.numpy())
    # scikit-learn divides by n, and not by the degrees of freedom
    share = int(head.freedom) / len(x)
    offset = (peer.intercept_ - np.log(peer.priors_)) * share + np.log(peer.priors_)
    expected = torch.from_numpy(x.numpy() @ peer.coef_.T * share + offset).log_softmax(1)
    torch.testing.assert_close(head.logits(x).double().log_softmax(1), expected, rtol=1e-4, atol=1e-3)


def test_oas_is_that_of_scikit_learn() -> None:
    """Which leaves 2 / width out."""
    x, labels = some_data(700, 200, 4)
    head = taught(x, labels)
    head.solve()
    means, _, _ = plain(x, labels)
    peer = OAS(assume_centered=True).fit((x - means[labels]).numpy())
    assert head.chosen == pytest.approx(peer.shrinkage_, rel=2 / 200 + 2 * 4 / 700)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_at_a_time_in_batches_and_merged_are_the_same(dtype: torch.dtype) -> None:
    """Within the bound of the docstring; means are 300 deviations from 0, where sums of squares fail."""
    x, labels = some_data(240, 40, 5, offset=300.0)
    _, expected, _ = plain(x, labels)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    whole = taught(x, labels, dtype=dtype)
    single = taught(x[order], labels[order], 1, dtype=dtype)
    merged = taught(x[:17], labels[:17], 5, dtype=dtype)
    merged.merge(taught(x[17:170], labels[17:170], dtype=dtype))
    merged.merge(taught(x[170:], labels[170:] + 3, 9, dtype=dtype))  # other classes, and some of these
    again = taught(torch.cat([x[170:], x[:170]]), torch.cat([labels[170:] + 3, labels[:170]]), dtype=dtype)
    unit = torch.finfo(dtype).eps / 2
    for head in (whole, single):
        assert scaled_error(head.covariance(), expected) <= (240 + 4) * unit + 240 * 2**-52 * 300
        assert torch.equal(head.count, whole.count)
        torch.testing.assert_close(head.sum, whole.sum, rtol=240 * 2**-53, atol=0)
    assert torch.equal(merged.count, again.count)
    assert torch.equal(merged.freedom, again.freedom)
    assert scaled_error(merged.covariance(), again.covariance().double()) <= (240 + 50 + 8) * unit + 1e-11
    torch.testing.assert_close(single.logits(x), whole.logits(x), rtol=1e-3, atol=1e-2)


def test_raw_second_moments_would_fail() -> None:
    """Why rows are centred: float32 sums of x x^T lose by how much squares of means exceed the variance."""
    x, labels = some_data(400, 10, 3, offset=300.0)
    x = x.float()
    means, expected, freedom = plain(x, labels)
    counts = torch.bincount(labels)[:, None].float()
    raw = (x.T @ x - (means.float() * counts).T @ means.float()) / freedom
    assert scaled_error(raw, expected) > 1e-2
    assert scaled_error(taught(x, labels, 50).covariance(), expected) < 1e-5


@pytest.mark.parametrize("per_class", [False, True])
def test_a_class_is_forgotten(per_class: bool) -> None:
    x, labels = some_data(200, 12, 5)
    mine = labels == 4
    without = taught(x[~mine], labels[~mine], per_class=per_class)
    head = taught(x, labels, per_class=per_class)
    head.forget(4, None if per_class else x[mine])
    assert head.logits(x)[:, 4].eq(-math.inf).all()
    assert int(head.freedom.sum()) == int(without.freedom.sum())
    if per_class:
        assert torch.equal(head.solve()[:, :4], without.solve())
        assert torch.equal(head.scatter[:4], without.scatter)
    else:
        torch.testing.assert_close(head.covariance(), without.covariance(), rtol=1e-5, atol=200 * U)
        torch.testing.assert_close(head.logits(x)[:, :4], without.logits(x), rtol=1e-3, atol=1e-3)
    head.update(x[mine], labels[mine])  # and learned anew
    torch.testing.assert_close(head.logits(x), taught(x, labels).logits(x), rtol=1e-3, atol=1e-3)


def test_a_class_is_forgotten_without_its_features() -> None:
    x, labels = some_data(200, 12, 5)
    head, whole = taught(x, labels), taught(x, labels)
    head.forget(2)
    assert torch.equal(head.covariance(), whole.covariance())
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(
        head.logits(x)[:, rest].log_softmax(1), whole.logits(x)[:, rest].log_softmax(1), rtol=1e-4, atol=1e-4
    )
    for label in (0, 1, 3, 4):
        head.forget(label)
    with pytest.raises(NotLearnedError):
        head.logits(x)


def test_forgetting_refuses_what_is_not_the_class() -> None:
    x, labels = some_data(50, 4, 2)
    head = taught(x, labels)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    mine = x[labels == 1]
    for bad in (mine[1:], mine + 1, x):
        with pytest.raises(ValueError, match=r"h0 must be the .* feature vectors of class 1"):
            head.forget(1, bad)
    for label in (2, -1, 10**9):
        with pytest.raises(ValueError, match="label must be"):
            head.forget(label)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    head.forget(1, mine.float())  # computed again, a little otherwise


def test_few_samples() -> None:
    x, _ = some_data(6, 30, 1)
    one = taught(x[:3], torch.tensor([0, 2, 5]))  # one of each: the nearest mean
    near = torch.cdist(x.float(), x[:3].float()).argmin(1)
    assert torch.equal(one.predict(x), torch.tensor([0, 2, 5])[near])
    with pytest.raises(RuntimeError, match="no class has two samples"):
        one.covariance()
    alone = taught(x[:1], torch.tensor([3]))
    assert alone.predict(x).eq(3).all()
    pair = taught(x[:4], torch.tensor([0, 0, 1, 2]))  # one direction of 30
    assert pair.logits(x).isfinite().all()
    with pytest.raises(RuntimeError, match="singular with shrinkage 0"):
        taught(x[:4], torch.tensor([0, 0, 1, 2]), shrinkage=0.0).check_solvable()


def test_features_that_are_constant() -> None:
    x, labels = some_data(80, 9, 3)
    x[:, 2], x[:, 5] = 7.0, 0.0
    x[:, 6] = x[:, 7]
    for head in (taught(x, labels), taught(x, labels, 1), taught(x, labels, shrinkage=1e-6)):
        assert head.logits(x).isfinite().all()
        assert head.covariance()[2].abs().max() < 1e-12
    same = taught(torch.ones(8, 4), torch.arange(8) % 2)  # no difference at all
    assert same.logits(torch.ones(2, 4)).isfinite().all()


def test_priors() -> None:
    x, labels = some_data(300, 5, 2)
    rare = (labels == 0) | (torch.arange(300) % 10 == 0)
    x, labels = x[rare], labels[rare]
    difference = taught(x, labels, priors="counts").logits(x) - taught(x, labels).logits(x)
    share = torch.bincount(labels) / len(labels)
    torch.testing.assert_close(
        difference, (share.log() - math.log(0.5)).expand_as(difference), rtol=0, atol=1e-3
    )


def test_float32_factor_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wide heads do, at a small width: blocks that do not divide it, and a float32 factorisation."""
    x, labels = some_data(300, 151, 4)
    expected = taught(x, labels, dtype=torch.float64)
    for module, name, value in (
        (scatter, "_LEAF", 64), (scatter, "_EXACT_ROWS", 7),
        (discriminant, "_EXACT_WIDTH", 8), (class_scatter, "_ROWS", 50),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    head = taught(x, labels)
    assert head._factor(0.1, 296, 151.0).dtype is torch.float32  # type: ignore[union-attr]
    assert scaled_error(head.covariance(), expected.covariance()) <= 310 * U
    torch.testing.assert_close(head.logits(x), expected.logits(x), rtol=1e-3, atol=1e-2)
    assert head.chosen == pytest.approx(expected.chosen, rel=1e-5)
    singular = taught(x.repeat_interleave(2, 1), labels, shrinkage=1e-9)  # not in float64
    assert singular.logits(x.repeat_interleave(2, 1)).isfinite().all()


def test_a_scatter_that_rounding_made_indefinite() -> None:
    x, labels = some_data(60, 6, 2)
    x[:, 5] = x[:, 4]
    head = taught(x, labels)
    head.freedom += 10**12  # as if of so many samples that next to nothing is shrunk
    head.scatter[0, 5, 5] *= 1 - 8 * U
    assert head.logits(x).isfinite().all()
    assert head.chosen == pytest.approx(8 * 6 * 2 * U)


def test_saved_copied_and_cast() -> None:
    x, labels = some_data(100, 8, 3)
    for options in ({}, {"per_class": True}, {"dtype": torch.float64}):
        head = taught(x, labels, **options)
        expected = head.logits(x)
        fresh = LDAHead(8, **options)
        fresh.load_state_dict(load(save(head.state_dict())))
        for other in (fresh, copy.deepcopy(head), pickle.loads(pickle.dumps(head)), copy.deepcopy(head).half()):
            assert other._solved is None  # a copy is of the sums alone
            assert torch.equal(other.logits(x), expected)
            other.update(x, labels)
            assert not torch.equal(other.logits(x), expected)
        assert torch.equal(head.logits(x), expected)


def test_autocast_changes_nothing() -> None:
    x, labels = some_data(100, 8, 3)
    expected = taught(x.float(), labels).logits(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(taught(x.float(), labels).logits(x.float()), expected)


def test_memory_is_told() -> None:
    head = taught(*some_data(30, 8, 3))
    sums = 8 * 8 * 4 + 3 * 8 * 8 + 3 * 8 + 8
    assert head.memory_bytes == sums
    head.solve()
    assert head.memory_bytes == sums + 4 * (8 + 8 * 3 + 3)


def test_no_samples() -> None:
    x, labels = some_data(30, 8, 3)
    head = taught(x, labels)
    before = head.logits(x)
    head.update(x[:0], labels[:0])
    head.merge(LDAHead(8))
    assert torch.equal(head.logits(x), before)
    assert head.logits(x[:0]).shape == (0, 3)
    empty = LDAHead(8)
    empty.merge(head)
    assert torch.equal(empty.logits(x), before)


def test_errors() -> None:
    x, labels = some_data(30, 8, 3)
    head = LDAHead(8)
    with pytest.raises(NotLearnedError, match="no class is known"):
        head.logits(x)
    with pytest.raises(NotLearnedError, match="no class is known"):
        head.check_solvable()
    for bad, error in (
        (x[:, 1:], ValueError),
        (x.long(), TypeError),
        (x * 1e20, ValueError),
        (x * math.nan, ValueError),
    ):
        with pytest.raises(error, match="h0"):
            head.update(bad, labels)
    with pytest.raises(ValueError, match="labels must be"):
        head.update(x, labels[1:])
    assert head.classes == 0
    with pytest.raises(TypeError, match="other must be an LDAHead, got dict"):
        head.merge({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other must have width 8, got 9"):
        head.merge(LDAHead(9))
    with pytest.raises(ValueError, match="other must have per_class False, got True"):
        head.merge(LDAHead(8, per_class=True))
    with pytest.raises(ValueError, match="width 9, this head 8"):
        head.load_state_dict(taught(*some_data(9, 9, 2)).state_dict())
    with pytest.raises(ValueError, match="the state has 3 scatters"):
        head.load_state_dict(taught(x, labels, per_class=True).state_dict())
    bad_options: list[dict[str, Any]] = [
        {"shrinkage": 1.5}, {"shrinkage": "ledoit"}, {"priors": "equal"}, {"dtype": torch.float16}
    ]  # fmt: skip
    for options in bad_options:
        with pytest.raises(ValueError, match=next(iter(options))):
            LDAHead(8, **options)


def by_rows(x: Tensor, labels: Tensor) -> float:
    """rho by generalised cross-validation of one-hot labels on centred rows: no sums, no scatters."""
    x, targets = x.double(), torch.nn.functional.one_hot(labels).double()
    _, covariance, freedom = plain(x, labels)
    x, targets = x - x.mean(0), targets - targets.mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)
    kept, n, scores = (vectors.T @ targets).square().sum(1), len(x) - 1, {}
    for power in range(-16, 17):
        ridge = float(x.square().sum() / x.shape[1]) * 10 ** (power / 2)
        left = ridge / (values.clamp(min=0) + ridge)
        free = float(left.sum()) - 1  # the constant is in no row that is centred
        if free >= n / 2:
            scores[ridge] = float((kept * left * left).sum()) / free**2
    best = min(scores, key=scores.__getitem__)
    return best / (best + freedom * float(covariance.trace()) / x.shape[1])


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize(("n", "width"), [(30, 8), (30, 60), (300, 20), (12, 300)])
def test_validation_is_that_of_rows(n: int, width: int, per_class: bool) -> None:
    x, labels = some_data(n, width, 4)
    head = taught(x, labels, 7, shrinkage="gcv", per_class=per_class, dtype=torch.float64)
    head.solve()
    assert head.chosen == pytest.approx(by_rows(x, labels), rel=1e-6)
    given = taught(x, labels, 7, shrinkage=head.chosen, per_class=per_class, dtype=torch.float64)
    assert torch.equal(head.logits(x), given.logits(x))


def test_validation_where_there_is_little_to_validate() -> None:
    x, labels = some_data(20, 6, 3)
    one = taught(x[labels == 0], labels[labels == 0], shrinkage="gcv")
    assert one.predict(x).eq(0).all()
    single = taught(x[:1], labels[:1], shrinkage="gcv")
    assert single.predict(x).eq(labels[0]).all()
    assert taught(x[:3], torch.tensor([0, 0, 1]), shrinkage="gcv").logits(x).isfinite().all()
