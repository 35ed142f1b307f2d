"""FeatureStatistics: against NumPy, in any order, merged, drawn from, saved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from flexkern.nn.feature_statistics import FeatureStatistics
from helpers.gaussians import WIDTH, make_tasks


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def some_data() -> tuple[Tensor, Tensor]:
    data, _ = make_tasks(3, 2, 40)
    return torch.cat([x for x, _ in data]) + 3, torch.cat([y for _, y in data])


def taught(x: Tensor, y: Tensor, batch: int = 1000, **options: object) -> FeatureStatistics:
    statistics = FeatureStatistics(WIDTH, **options)
    for part in zip(x.split(batch), y.split(batch), strict=True):
        statistics.update(*part)
    return statistics


def test_against_numpy() -> None:
    x, y = some_data()
    s = taught(x, y, 37)
    a, labels = x.double().numpy(), y.numpy()
    # float64 sums of 240 products under 200; their differences are over 0.1
    near = {"rtol": 0, "atol": 240 * 200 * 2**-52}
    means = np.stack([a[labels == c].mean(0) for c in range(6)])
    np.testing.assert_allclose(s.means().numpy(), means, **near)
    np.testing.assert_allclose(s.mean().numpy(), a.mean(0), **near)
    np.testing.assert_allclose(s.total_covariance().numpy(), np.cov(a.T), **near)
    within = a - means[labels]
    np.testing.assert_allclose(s.shared_covariance().numpy(), within.T @ within / (len(a) - 6), **near)
    assert s.samples == 240
    assert s.classes == 6
    assert s.degrees_of_freedom() == 234


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(0, 2**31))
def test_any_order_of_batches(batch: int, seed: int) -> None:
    x, y = some_data()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    one, other = taught(x, y), taught(x[order], y[order], batch)
    assert torch.equal(one.count, other.count)
    torch.testing.assert_close(one.sum, other.sum, rtol=0, atol=240 * 240 * 8 * 2**-53)
    torch.testing.assert_close(one.outer, other.outer, rtol=0, atol=240 * 240 * 64 * 2**-53)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 240))
def test_merge(cut: int) -> None:
    x, y = some_data()
    whole, one, other = taught(x, y), taught(x[:cut], y[:cut]), taught(x[cut:], y[cut:])
    if cut > 50:
        one.cholesky()  # what was derived must be forgotten
    one.merge(other)
    assert torch.equal(one.count, whole.count)
    # as above; the covariance is of the same sums
    torch.testing.assert_close(one.sum, whole.sum, rtol=0, atol=240 * 240 * 8 * 2**-53)
    torch.testing.assert_close(one.cholesky(), whole.cholesky(), rtol=1e-9, atol=1e-9)


def test_whitened_distances_are_mahalanobis_distances() -> None:
    x, y = some_data()
    s = taught(x, y, shrinkage=0.1)
    sigma = s.shared_covariance().numpy()
    sigma = 0.9 * sigma + 0.1 * np.trace(sigma) / WIDTH * np.eye(WIDTH)
    white = s.whiten(x)
    got = torch.cdist(white.features, white.means, compute_mode="donot_use_mm_for_euclid_dist").square()
    d = x.double().numpy()[:, None] - s.means().numpy()[None]
    expected = np.einsum("nci,ij,ncj->nc", d, np.linalg.inv(sigma), d)
    # float32: differences of numbers under 20 after a product over WIDTH, squared: (40 + WIDTH) roundings
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=(40 + WIDTH) * 2**-24 * expected.max())


def test_oas_shrinkage_is_nearer_to_the_truth_than_none() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.linspace(0.5, 2, WIDTH).double()
    x = torch.randn((16, WIDTH), generator=g) * truth.sqrt()
    s = taught(x, torch.zeros(16, dtype=torch.int64))
    factor = s.cholesky()
    shrunk = factor @ factor.T
    assert (shrunk - truth.diag()).norm() < 0.7 * (s.shared_covariance() - truth.diag()).norm()


def test_oas_formula() -> None:
    x, y = some_data()
    s = taught(x, y)
    sigma, n, d = s.shared_covariance().numpy(), 234, WIDTH
    t, t2 = np.trace(sigma), np.trace(sigma @ sigma)
    rho = ((1 - 2 / d) * t2 + t**2) / ((n + 1 - 2 / d) * (t2 - t**2 / d))
    assert 0 < rho < 1
    factor = s.cholesky().numpy()
    np.testing.assert_allclose(
        factor @ factor.T, (1 - rho) * sigma + rho * t / d * np.eye(d), rtol=0, atol=1e-12
    )


def test_draws_have_the_mean_and_the_covariance() -> None:
    x, y = some_data()
    s = taught(x, y)
    n = 20000
    drawn, labels = s.sample(torch.tensor([4, 1]), n, generator=torch.Generator().manual_seed(0))
    assert labels.tolist() == [4] * n + [1] * n
    assert drawn.dtype is torch.float32
    sigma = (s.cholesky() @ s.cholesky().T).numpy()
    for part, c in ((drawn[:n], 4), (drawn[n:], 1)):
        error = (part.double().mean(0) - s.means()[c]).numpy()
        assert np.all(np.abs(error) <= 5 * np.sqrt(np.diag(sigma) / n))  # five standard errors
        # of a covariance: sqrt((s_ii s_jj + s_ij^2) / n)
        deviation = np.sqrt((np.outer(np.diag(sigma), np.diag(sigma)) + sigma**2) / n)
        assert np.all(np.abs(np.cov(part.double().numpy().T) - sigma) <= 5 * deviation)


def test_draws_are_set_by_the_generator() -> None:
    s = taught(*some_data())
    classes = torch.tensor([0, 5, 5])
    one, other = (s.sample(classes, 2, generator=torch.Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(one, other)
    assert s.sample(classes, 0)[0].shape == (0, WIDTH)
    assert s.sample(classes[:0], 3)[0].shape == (0, WIDTH)


def test_saved_loaded_and_cast() -> None:
    s = taught(*some_data())
    restored = FeatureStatistics(WIDTH)
    restored.load_state_dict(load(save(s.state_dict())))
    assert torch.equal(restored.cholesky(), s.cholesky())
    outer = s.outer.clone()
    assert torch.equal(s.half().outer, outer)
    assert s.outer.dtype is torch.float64


def test_constant_dimensions_do_not_stop_it() -> None:
    x, y = some_data()
    x[:, 3] = 2
    drawn, _ = taught(x, y).sample(y)
    assert torch.isfinite(drawn).all()


def test_errors() -> None:
    s = FeatureStatistics(WIDTH)
    with pytest.raises(RuntimeError, match="too few"):
        s.mean()
    x, y = some_data()
    s.update(x[:1], y[:1])
    with pytest.raises(RuntimeError, match="two samples of one class"):
        s.shared_covariance()
    with pytest.raises(ValueError, match=rf"h0 must be \[n, {WIDTH}\]"):
        s.update(x[:, 1:], y)
    with pytest.raises(TypeError, match="labels must be an int64 tensor"):
        s.update(x, y.float())
    s.update(x[:50], y[:50] * 2)
    with pytest.raises(IndexError, match="must have samples"):
        s.sample(torch.tensor([1]))
    with pytest.raises(IndexError, match="must have samples"):
        s.sample(torch.tensor([99]))
    same = taught(torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="have no covariance"):
        same.cholesky()
    with pytest.raises(RuntimeError, match="singular with shrinkage 0"):
        taught(x[:5], torch.zeros(5, dtype=torch.int64), shrinkage=0.0).cholesky()
    with pytest.raises(ValueError, match="width 12"):
        FeatureStatistics(3).load_state_dict(s.state_dict())
    with pytest.raises(ValueError, match="other must have width"):
        s.merge(FeatureStatistics(3))
    for bad in (-0.1, 1.5, "ledoit"):
        with pytest.raises(ValueError, match="shrinkage must be"):
            FeatureStatistics(3, shrinkage=bad)
    assert math.isfinite(float(s.mean().sum()))
