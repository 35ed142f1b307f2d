"""Detectors against loops over samples and classes; calibration; groups of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from flexkern.nn.gates.calibration import fit_platt, fit_softmax, softmax_logit
from flexkern.nn.gates.detectors import Energy, LikelihoodRatio, Mahalanobis, NearestNeighbours, Ridge
from flexkern.nn.gates.negatives import Recall
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.nn.task_scores import (
    class_sums,
    group_logsumexp,
    group_max,
    others_logsumexp,
    rank_in_class,
)
from helpers.gaussians import WIDTH, make_tasks

TASKS = 3
U = 2.0**-24


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def recall() -> Recall:
    data, _ = make_tasks(TASKS, 2, 40)
    recall = Recall(WIDTH, shrinkage=0.1)
    for t, (x, y) in enumerate(data):
        recall.add_classes(2, t)
        recall.add(x, y, generator())
    return recall


@pytest.fixture
def test_points() -> Tensor:
    return torch.randn((20, WIDTH), generator=generator(5)) * 3


def squared_distances(recall: Recall, x: Tensor) -> np.ndarray:
    """Mahalanobis, float64 [N, C]."""
    s = recall.statistics
    inverse = np.linalg.inv((s.cholesky() @ s.cholesky().T).numpy())
    d = x.double().numpy()[:, None] - s.means().numpy()[None]
    return np.einsum("nci,ij,ncj->nc", d, inverse, d)


def test_mahalanobis(recall: Recall, test_points: Tensor) -> None:
    distances = squared_distances(recall, test_points)
    expected = [[-min(row[2 * t], row[2 * t + 1]) for t in range(TASKS)] for row in distances]
    got = Mahalanobis().scores(test_points, recall, TASKS)
    # |x|^2 - 2 x m + |m|^2, each a sum over WIDTH of products that are sums over WIDTH, up to 4 times the
    # largest
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * (2 * WIDTH + 6) * U * distances.max())


def test_likelihood_ratio(recall: Recall, test_points: Tensor) -> None:
    distances = squared_distances(recall, test_points)
    expected = np.empty((len(test_points), TASKS))
    for n, row in enumerate(distances):
        for t in range(TASKS):
            own = [-row[c] / 2 for c in (2 * t, 2 * t + 1)]
            rest = [-row[c] / 2 for c in range(6) if c // 2 != t]
            expected[n, t] = logsumexp(own) - math.log(2) - logsumexp(rest) + math.log(4)
    got = LikelihoodRatio().scores(test_points, recall, TASKS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * (2 * WIDTH + 12) * U * distances.max())
    assert LikelihoodRatio().scores(test_points, recall, 1).eq(0).all()


def test_energy(recall: Recall, test_points: Tensor) -> None:
    data, _ = make_tasks(TASKS, 2, 40)
    energy = Energy(WIDTH, decay=0.01)
    expected = []
    for t, (x, y) in enumerate(data):
        energy.learn(x, y, generator())
        z = x.double().numpy()
        centre, spread = z.mean(0), z.std(0, ddof=1)
        z, one_hot = (z - centre) / spread, np.eye(2)[y.numpy() - 2 * t]
        w = energy.weight[2 * t :].double().numpy() * spread
        b = energy.bias[2 * t :].double().numpy() + energy.weight[2 * t :].double().numpy() @ centre
        # The classifier is the minimum: the loss is strongly convex in w, so that a small gradient says how
        # near.
        logits = z @ w.T + b
        p = np.exp(logits - logsumexp(logits, 1)[:, None])
        gradient = (p - one_hot).T @ z / len(z) + 0.01 * w
        assert np.abs(gradient).max() < 1e-5
        assert abs(b.sum()) < 1e-5
        points = (test_points.double().numpy() - centre) / spread
        expected.append(logsumexp(points @ w.T + b, axis=1))
    got = energy.scores(test_points, recall, TASKS)
    # float32: products over WIDTH of numbers under 40 with weights that sum to under 40
    np.testing.assert_allclose(got, np.stack(expected, 1), rtol=0, atol=(WIDTH + 8) * U * 1600)


@pytest.mark.parametrize(("neighbours", "keep"), [(1, 100), (3, 100), (7, 2)])
def test_nearest_neighbours(recall: Recall, test_points: Tensor, neighbours: int, keep: int) -> None:
    data, _ = make_tasks(TASKS, 2, 40)
    data[1] = (data[1][0][:60], data[1][1][:60])  # tasks of different sizes
    knn = NearestNeighbours(WIDTH, neighbours=neighbours, keep=keep)
    assert knn.keeps_data
    for x, y in data:
        knn.learn(x, y, generator())
    assert knn.size.tolist() == [min(keep, 40) * 2, min(keep, 40) + min(keep, 20), min(keep, 40) * 2]
    got = knn.scores(test_points, recall, TASKS)
    for n, point in enumerate(test_points.double().numpy()):
        for t, size in enumerate(knn.size.tolist()):
            bank = knn.bank[t, :size].double().numpy()
            cosines = np.sort(bank @ point / np.linalg.norm(point))[::-1]
            expected = cosines[min(neighbours, size) - 1]
            assert got[n, t] == pytest.approx(expected, abs=(2 * WIDTH + 6) * U)
    kept = knn.bank[0, : knn.size[0]]
    normed = torch.nn.functional.normalize(data[0][0], dim=1)
    assert all((row == normed).all(1).any() for row in kept)
    assert knn.scores(test_points[:0], recall, TASKS).shape == (0, TASKS)


def test_ridge(recall: Recall, test_points: Tensor) -> None:
    data, _ = make_tasks(TASKS, 2, 40)
    detector, head = (
        Ridge(RidgeHead(WIDTH, features=30, ridge=1.0)),
        RidgeHead(WIDTH, features=30, ridge=1.0),
    )
    for x, y in data:
        detector.learn(x[:50], y[:50], generator())
        detector.absorb(x[50:], y[50:])
        head.update(x, y)
    got = detector.scores(test_points, recall, TASKS)
    logits = head.logits(test_points)
    expected = torch.stack([logits[:, 2 * t : 2 * t + 2].amax(1) for t in range(TASKS)], 1)
    # the same sums but for their order in float64
    torch.testing.assert_close(got, expected, rtol=0, atol=30 * U * logits.abs().max().item() * 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1.0, 1e3]))
def test_groups(seed: int, groups: int, extra: int, size: float) -> None:
    g = generator(seed)
    group = torch.cat([torch.arange(groups), torch.randint(0, groups, (extra,), generator=g)])
    group = group[torch.randperm(len(group), generator=g)]
    scores = torch.randn((3, len(group)), generator=g) * size
    top, total = group_max(scores, group, groups), group_logsumexp(scores, group, groups)
    for n in range(3):
        for t in range(groups):
            mine = scores[n, group == t]
            assert top[n, t] == mine.max()
            expected = logsumexp(mine.double().numpy())
            # a few roundings of the sum, and of the largest score
            assert float(total[n, t]) == pytest.approx(expected, rel=2 * U, abs=(len(group) + 4) * U)
            if groups > 1:
                rest = logsumexp(np.delete(total[n].double().numpy(), t))
                got = float(others_logsumexp(total)[n, t])
                assert got == pytest.approx(rest, rel=2 * U, abs=(groups + 4) * U)
    y = group[torch.randint(0, len(group), (9,), generator=g)]
    values = torch.randn((9, 2), generator=g)
    seen, sums = class_sums(values, y)
    for c, row in zip(seen.tolist(), sums, strict=True):
        torch.testing.assert_close(row, values[y == c].double().sum(0), rtol=0, atol=9 * 2**-50)
    rank = rank_in_class(y, g)
    for c in seen.tolist():
        assert sorted(rank[y == c].tolist()) == list(range(int((y == c).sum())))


def test_others_of_scores_that_tie() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0], [5.0, -80.0, -80.0]])
    got = others_logsumexp(scores)
    expected = [[1 + math.log(2)] * 3, [-80 + math.log(2), 5.0, 5.0]]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=2 * U, atol=4 * U)


def test_platt_is_a_balanced_logistic_regression() -> None:
    g = generator(1)
    n = 400
    scores = torch.randn((n, 2), generator=g) * 3 + 10
    positive = torch.zeros((n, 2), dtype=torch.bool)
    positive[: n // 4, 0] = True
    positive[: n // 2, 1] = True
    scores[positive] += 4
    slope, offset = fit_platt(scores, positive)
    for column in range(2):
        x, y = scores[:, column].double().numpy(), positive[:, column].numpy()
        pos, neg = y.sum(), n - y.sum()
        # Smoothed targets are both labels at once, each with its weight.
        target = np.where(y, (pos + 1) / (pos + 2), 1 / (neg + 2))
        weight = np.where(y, 1 / (2 * pos), 1 / (2 * neg))
        peer = LogisticRegression(C=1e12, tol=1e-12, max_iter=10000).fit(
            np.concatenate([x, x])[:, None],
            np.repeat([1, 0], n),
            sample_weight=np.concatenate([weight * target, weight * (1 - target)]) * n,
        )
        # as far as the peer converges, 1e-4; the curvature's 1e-9 changes less
        assert float(slope[column]) == pytest.approx(peer.coef_[0, 0], rel=1e-3)
        assert float(offset[column]) == pytest.approx(peer.intercept_[0], rel=1e-3)


def test_platt_of_separated_and_of_inverted_scores() -> None:
    scores = torch.cat([torch.full((50, 1), 1.0), torch.full((70, 1), -1.0)])
    positive = scores > 0
    slope, offset = fit_platt(scores, positive)
    p = torch.sigmoid(slope + offset), torch.sigmoid(-slope + offset)
    # with two values of the score the smoothed targets are met: Newton in float64, result in float32
    assert float(p[0]) == pytest.approx(51 / 52, abs=1e-5)
    assert float(p[1]) == pytest.approx(1 / 72, abs=1e-5)
    slope, offset = fit_platt(-scores, positive)
    assert slope > 0
    assert abs(float(torch.sigmoid(slope + offset)) - 0.5) < 0.01
    constant, _ = fit_platt(torch.zeros_like(scores), positive)
    assert torch.isfinite(constant).all()


def test_softmax_temperature_is_the_best() -> None:
    g = generator(2)
    task = torch.arange(3).repeat_interleave(torch.tensor([100, 20, 50]))
    scores = torch.randn((170, 3), generator=g) * 0.02
    scores[torch.arange(170), task] += 0.03
    factor = fit_softmax(scores, task)
    x, smoothing = scores.double(), 3 / 173
    target = torch.nn.functional.one_hot(task, 3).double() * (1 - smoothing) + smoothing / 3
    weight = 1 / torch.tensor([100.0, 20.0, 50.0]).double()[task]

    def loss(a: float) -> float:
        return float((weight * -(target * torch.log_softmax(a * x, 1)).sum(1)).sum())

    assert loss(factor) < min(loss(0.97 * factor), loss(1.03 * factor))
    got = softmax_logit(scores, torch.tensor(factor))
    p = torch.softmax(factor * x, 1)
    torch.testing.assert_close(
        got.double(), torch.logit(p), rtol=0, atol=20 * U * float((factor * x).abs().max())
    )


def test_softmax_logit_does_not_saturate() -> None:
    got = softmax_logit(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor(1.0))
    expected = [[60 - math.log(2), -60.0, -60.0]]  # log(1 + e^-60) is 0 in float32
    torch.testing.assert_close(got, torch.tensor(expected), rtol=4 * U, atol=0)


def test_temperature_of_separated_scores_is_finite() -> None:
    task = torch.arange(2).repeat(30)
    scores = torch.nn.functional.one_hot(task, 2).float()
    factor = fit_softmax(scores, task)
    smoothing = 2 / 62
    # softmax(a [1, 0]) = 1 - e / 2
    assert factor == pytest.approx(
        float(torch.logit(torch.tensor(1 - smoothing / 2, dtype=torch.float64))), rel=1e-9
    )
    assert expit(factor) < 1


def test_replay_keeps_at_most_so_many() -> None:
    data, _ = make_tasks(2, 2, 30)
    recall = Recall(WIDTH, negatives="replay", keep=7)
    for t, (x, y) in enumerate(data):
        recall.add_classes(2, t)
        recall.add(x[:50], y[:50], generator(t))
        recall.add(x[50:], y[50:], generator(t))
    assert recall.keeps_data
    assert torch.bincount(recall.kept_class).tolist() == [7] * 4
    everything = torch.cat([x for x, _ in data])
    labels = torch.cat([y for _, y in data])
    for row, label in zip(recall.kept, recall.kept_class, strict=True):
        assert (everything[labels == label] == row).all(1).any()
    drawn = recall.draw(torch.tensor([[True, False], [False, True]]), 50, generator())
    assert all((row == recall.kept[recall.kept_class < 2]).all(1).any() for row in drawn[0])
    assert all((row == recall.kept[recall.kept_class >= 2]).all(1).any() for row in drawn[1])


def test_gaussian_draws_are_of_the_allowed_tasks(recall: Recall) -> None:
    assert not recall.keeps_data
    drawn = recall.draw(torch.eye(TASKS, dtype=torch.bool), 500, generator())
    means = recall.statistics.means().view(TASKS, 2, WIDTH).mean(1)
    # Half the samples of each class: 5 standard errors, with the classes' distance in the variance.
    deviation = drawn.double().std(1) / math.sqrt(500)
    assert ((drawn.double().mean(1) - means).abs() <= 5 * deviation).all()
    assert len(recall.kept) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="negatives must be one of"):
        Recall(WIDTH, negatives="none")
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Recall(WIDTH, keep=0)
    kept = Recall(WIDTH, negatives="replay")
    kept.add_classes(1, 0)
    kept.add(torch.randn(4, WIDTH), torch.zeros(4, dtype=torch.int64), generator())
    with pytest.raises(ValueError, match="4 kept features"):
        Recall(WIDTH).load_state_dict(kept.state_dict())
    with pytest.raises(ValueError, match="width 12, this detector 3"):
        NearestNeighbours(3).load_state_dict(NearestNeighbours(WIDTH).state_dict())
    with pytest.raises(ValueError, match="width 12, this detector 3"):
        Energy(3).load_state_dict(Energy(WIDTH).state_dict())
