"""RidgeHead: against scikit-learn and brute-force cross-validation, in any order, merged, saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.linear_model import Ridge
from torch import Tensor

from flexkern.nn.heads.ridge import RidgeHead
from helpers.gaussians import WIDTH, fresh, make_tasks

FEATURES = 40


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def some_data(n: int = 40) -> tuple[Tensor, Tensor]:
    data, _ = make_tasks(3, 2, n)
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


def taught(x: Tensor, y: Tensor, batch: int = 1000, **options: object) -> RidgeHead:
    head = RidgeHead(WIDTH, **options)
    for part in zip(x.split(batch), y.split(batch), strict=True):
        head.update(*part)
    return head


@pytest.mark.parametrize("features", [0, FEATURES])
def test_against_scikit_learn(features: int) -> None:
    x, y = some_data()
    head = taught(x, y, 17, features=features, ridge=2.0, seed=5)
    phi = head.project(x.double()).numpy()
    assert phi.shape[1] == (features or WIDTH)
    peer = Ridge(alpha=2.0, fit_intercept=False, solver="cholesky").fit(phi, np.eye(6)[y.numpy()])
    # W is float64 rounded to float32; (G + 2 I) has a condition under 1e5, so that float64 errs by 1e-10
    np.testing.assert_allclose(head.solve().numpy(), peer.coef_.T, rtol=2**-23, atol=1e-9)
    # float32 logits: columns products, sizes as they are
    bound = (phi.shape[1] + 3) * 2**-24 * (np.abs(phi) @ np.abs(peer.coef_.T)).max()
    np.testing.assert_allclose(head.logits(x).numpy(), peer.predict(phi), rtol=0, atol=bound)
    assert torch.equal(head.predict(x), head.logits(x).argmax(1))
    assert head.chosen == 2.0


def test_auto_is_the_best_of_generalised_cross_validation() -> None:
    x, y = some_data(15)
    head = taught(x, y, features=FEATURES)
    phi, targets = head.project(x.double()).numpy(), np.eye(6)[y.numpy()]
    gram = phi.T @ phi
    scale, scores = np.trace(gram) / FEATURES, {}
    for power in np.arange(-16, 17) / 2:
        ridge = scale * 10.0**power
        hat = phi @ np.linalg.solve(gram + ridge * np.eye(FEATURES), phi.T)
        rest = targets - hat @ targets
        scores[ridge] = (rest**2).sum() / (1 - np.trace(hat) / len(phi)) ** 2
    best = min(scores, key=scores.__getitem__)
    head.solve()
    assert head.chosen == pytest.approx(best, rel=1e-9)
    assert scale * 1e-8 < best < scale * 1e8  # neither end
    expected = np.linalg.solve(gram + best * np.eye(FEATURES), phi.T @ targets)
    np.testing.assert_allclose(head.solve().numpy(), expected, rtol=2**-22, atol=1e-8)


def test_auto_holds_where_columns_outnumber_samples() -> None:
    data, draw = make_tasks(3, 2, 20)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    test, task = fresh(draw, 3)
    accuracy = {}
    for ridge in ("auto", 1e-4):
        head = taught(x, y, features=len(x), ridge=ridge)
        accuracy[ridge] = (head.predict(test) // 2 == task).float().mean().item()
    assert accuracy["auto"] > accuracy[1e-4] + 0.1  # interpolating noise
    assert accuracy["auto"] > 0.9


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 240), st.integers(0, 2**31))
def test_any_order_of_batches_and_merge(batch: int, seed: int) -> None:
    x, y = some_data()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    whole = taught(x, y, features=FEATURES, ridge=1.0)
    cut = batch
    one = taught(x[order[:cut]], y[order[:cut]], batch, features=FEATURES, ridge=1.0)
    one.merge(taught(x[order[cut:]], y[order[cut:]], batch, features=FEATURES, ridge=1.0))
    assert torch.equal(one.count, whole.count)
    # 240 products under 1e4 in float64, in another order
    torch.testing.assert_close(one.gram, whole.gram, rtol=0, atol=240 * 240 * 1e4 * 2**-53)
    torch.testing.assert_close(one.cross, whole.cross, rtol=0, atol=240 * 240 * 100 * 2**-53)
    # the condition is under 1e6: far under a rounding to float32
    torch.testing.assert_close(one.solve(), whole.solve(), rtol=2**-22, atol=1e-8)


def test_tasks_one_by_one_are_joint_training() -> None:
    data, _ = make_tasks(3, 2, 40)
    head = RidgeHead(WIDTH, features=FEATURES, ridge=1.0)
    for x, y in data:
        head.update(x, y)
        assert head.solve().shape == (FEATURES, int(y.max()) + 1)
    torch.testing.assert_close(
        head.solve(), taught(*some_data(), features=FEATURES, ridge=1.0).solve(), rtol=2**-22, atol=1e-8
    )


@pytest.mark.parametrize("ridge", [1.0, "auto"])
def test_balanced(ridge: float | str) -> None:
    x, y = some_data()
    even = taught(x, y, features=FEATURES, ridge=ridge, balanced=True)
    torch.testing.assert_close(
        even.solve(), taught(x, y, features=FEATURES, ridge=ridge).solve(), rtol=2**-22, atol=1e-8
    )
    rare = torch.cat([torch.arange(0, 240, 2)[y[::2] == 0][:4], (y > 0).nonzero().squeeze(1)])
    plain = taught(x[rare], y[rare], features=FEATURES, ridge=ridge)
    balanced = taught(x[rare], y[rare], features=FEATURES, ridge=ridge, balanced=True)
    plain.solve()
    balanced.solve()
    assert balanced.chosen == plain.chosen
    counts = torch.bincount(y[rare]).double()
    factor = counts.sum() / 6 / counts
    torch.testing.assert_close(
        balanced.solve().double(), plain.solve().double() * factor, rtol=2**-22, atol=1e-8
    )
    mine = y == 0
    assert (balanced.predict(x[mine]) == 0).sum() > (plain.predict(x[mine]) == 0).sum()


def test_the_seed_sets_the_projection() -> None:
    x, y = some_data()
    one, same, other = (taught(x, y, features=FEATURES, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.solve(), same.solve())
    assert not torch.equal(one.project(x), other.project(x))
    assert one.project(x).ge(0).all()


def test_saved_and_loaded_into_a_fresh_one() -> None:
    x, y = some_data()
    head = taught(x, y, features=FEATURES, seed=3)
    restored = RidgeHead(WIDTH, features=FEATURES, seed=3)
    restored.load_state_dict(load(save(head.state_dict())))
    assert torch.equal(restored.logits(x), head.logits(x))
    assert torch.equal(restored.half().gram, head.gram)


def test_autocast_changes_nothing() -> None:
    x, y = some_data()
    expected = taught(x, y, features=FEATURES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = taught(x, y, features=FEATURES)
        assert torch.equal(head.logits(x), expected.logits(x))


def test_errors() -> None:
    x, y = some_data()
    head = RidgeHead(WIDTH)
    with pytest.raises(RuntimeError, match="no class is known"):
        head.logits(x)
    with pytest.raises(ValueError, match="h0 must be"):
        head.update(x[:, 1:], y)
    with pytest.raises(RuntimeError, match="features are all 0"):
        taught(torch.zeros(4, WIDTH), y[:4]).solve()
    with pytest.raises(RuntimeError, match="ridge=1e-30 is too small"):
        taught(x[:5], y[:5], ridge=1e-30).solve()
    with pytest.raises(ValueError, match="other must have"):
        head.merge(RidgeHead(WIDTH, seed=1))
    with pytest.raises(ValueError, match="40 columns, this head 12"):
        head.load_state_dict(taught(x, y, features=FEATURES).state_dict())
    for options in ({"ridge": 0.0}, {"ridge": float("inf")}, {"ridge": "best"}, {"features": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            RidgeHead(WIDTH, **options)
