"""RidgeHead: against scikit-learn and brute-force cross-validation, in any order, merged, saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.datasets import load_digits
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


def taught(x: Tensor, y: Tensor, batch: int = 1000, **options: Any) -> RidgeHead:
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


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("n", "columns"), [(15, FEATURES), (15, 200), (3, 400)])
def test_auto_leaves_half_of_the_samples_free(n: int, columns: int, intercept: bool) -> None:
    x, y = some_data(n)
    head = taught(x, y, 13, features=columns, intercept=intercept)
    phi, targets = head.project(x.double()), torch.nn.functional.one_hot(y).double()
    if intercept:
        phi, targets = phi - phi.mean(0), targets - targets.mean(0)
    # The samples' own matrix: no sums, and no differences of large numbers.
    values, vectors = torch.linalg.eigh(phi @ phi.T)
    values, kept = values.clamp(min=0), (vectors.T @ targets).square().sum(1)
    free_samples, scores = len(y) - intercept, {}
    for power in range(-16, 17):
        ridge = float(phi.square().sum() / columns) * 10 ** (power / 2)
        left = ridge / (values + ridge)
        free = float(left.sum()) - intercept  # the constant, which no centred column has, is left whole
        if free >= free_samples / 2:
            scores[ridge] = float((kept * left * left).sum()) / free**2
    head.solve()
    best = min(scores, key=scores.__getitem__)
    assert head.chosen == pytest.approx(best, rel=1e-6)
    gram = phi.T @ phi + best * torch.eye(columns, dtype=torch.float64)
    expected = torch.linalg.solve(gram, phi.T @ targets)
    torch.testing.assert_close(head.solve().double(), expected, rtol=2**-20, atol=1e-7)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("features", [0, FEATURES])
def test_an_intercept_is_scikit_learns(features: int, balanced: bool) -> None:
    x, y = some_data()
    x, keep = x + 3, (y > 1) | (torch.arange(len(y)) % 5 == 0)  # far from 0, and classes that are rare
    x, y = x[keep], y[keep]
    head = taught(x, y, 17, features=features, ridge=2.0, intercept=True, balanced=balanced)
    phi, targets = head.project(x.double()).numpy(), np.eye(6)[y.numpy()]
    if balanced:
        targets = targets * (len(y) / 6 / np.bincount(y.numpy()))
    peer = Ridge(alpha=2.0, fit_intercept=True, solver="cholesky").fit(phi, targets)
    np.testing.assert_allclose(head.solve().numpy(), peer.coef_.T, rtol=2**-20, atol=1e-9)
    size = (np.abs(phi) @ np.abs(peer.coef_.T)).max() + np.abs(peer.intercept_).max()
    bound = (phi.shape[1] + 4) * 2**-24 * size
    np.testing.assert_allclose(head.logits(x).numpy(), peer.predict(phi), rtol=0, atol=bound)


def test_an_intercept_in_any_order_of_batches_merged_and_saved() -> None:
    x, y = some_data()
    whole = taught(x, y, features=FEATURES, intercept=True)
    one = taught(x[:70], y[:70], 9, features=FEATURES, intercept=True)
    one.merge(taught(x[70:], y[70:], features=FEATURES))  # every head keeps the sum
    torch.testing.assert_close(one.logits(x), whole.logits(x), rtol=2**-20, atol=1e-6)
    restored = RidgeHead(WIDTH, features=FEATURES, intercept=True)
    restored.load_state_dict(load(save(whole.state_dict())))
    assert torch.equal(restored.logits(x), whole.logits(x))
    assert torch.equal(restored.half().state_dict()["sum"], whole.state_dict()["sum"])


@pytest.mark.parametrize("ridge", [1.0, "auto"])
def test_an_intercept_answers_alone_where_features_are_all_the_same(ridge: float | str) -> None:
    head = RidgeHead(WIDTH, ridge=ridge, intercept=True)
    head.update(torch.full((1, WIDTH), 0.1), torch.tensor([1]))
    assert head.predict(torch.randn(5, WIDTH)).tolist() == [1] * 5
    head.update(torch.full((3, WIDTH), 0.1), torch.tensor([0, 0, 0]))
    expected = torch.tensor([[0.75, 0.25]]).expand(5, 2)
    torch.testing.assert_close(head.logits(torch.randn(5, WIDTH)), expected, rtol=0, atol=1e-6)


def test_few_samples_are_not_fitted_to_their_noise() -> None:
    """Five digits of each class: the rule of earlier versions took the least ridges that there are."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    right, least = {"new": 0.0, "old": 0.0}, 0
    for draw in range(4):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw))
        few = torch.cat([order[y[order] == digit][:5] for digit in range(10)])
        heads = {name: RidgeHead(64, features=500, seed=draw) for name in right}
        heads["new"].update(x[few], y[few])
        heads["old"].load_state_dict(without_sum(heads["new"]))
        for name, head in heads.items():
            right[name] += float((head.predict(x) == y).float().mean()) / 4
        chosen = {name: head.chosen or 0.0 for name, head in heads.items()}
        least += chosen["old"] < 1e-2 * chosen["new"]
    assert least, right
    assert right["new"] > right["old"] + 0.01


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("columns", [FEATURES, 600])
@pytest.mark.parametrize("n", [3, 40])
def test_factorisations_choose_what_eigenvalues_choose(
    n: int, columns: int, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = some_data(n)
    one = taught(x, y, features=columns, intercept=intercept)
    one.solve()
    monkeypatch.setattr("flexkern.nn.heads.ridge._EIGENVALUES_UP_TO", 0)
    other = taught(x, y, features=columns, intercept=intercept)
    other.solve()
    assert one.chosen is not None
    assert other.chosen is not None
    # To 512 columns traces are exact; with more they are off by some hundredths: a place of the ridges at most.
    off = 1 if columns <= 512 else 10**0.5
    assert one.chosen / off / 1.001 <= other.chosen <= one.chosen * off * 1.001
    monkeypatch.undo()
    fixed = taught(x, y, features=columns, intercept=intercept, ridge=other.chosen)
    torch.testing.assert_close(other.logits(x), fixed.logits(x), rtol=2**-20, atol=1e-6)


def without_sum(head: RidgeHead) -> dict[str, Tensor]:
    """As an earlier version saved it."""
    return {name: value for name, value in head.state_dict().items() if name != "sum"}


def test_a_state_of_an_earlier_version_answers_and_goes_on_as_there() -> None:
    x, y = some_data(3)
    head, old = taught(x, y, features=200), RidgeHead(WIDTH, features=200)
    old.load_state_dict(without_sum(head))
    assert old.sum is None
    assert old.state_dict().keys() == {"gram", "cross", "count"}
    # The rule of then, in its own words.
    values, vectors = torch.linalg.eigh(head.gram)
    values = values.clamp(min=0)
    ridges = values.mean() * 10 ** (torch.arange(-16, 17, dtype=torch.float64) / 2)
    shrunk, z = values / (values + ridges[:, None]), vectors.T @ head.cross
    power = torch.where(values > 0, (z * z).sum(1) / values.clamp(min=1e-300), 0.0)
    rest = head.count.sum() - (power * shrunk * (2 - shrunk)).sum(1)
    free = (1 - shrunk.sum(1) / head.count.sum()).clamp(min=1e-12)
    ridge = ridges[int((rest.clamp(min=0) / free**2).argmin())]
    assert torch.equal(old.solve(), (vectors @ (z / (values + ridge)[:, None])).float())
    old.update(x, y)
    assert old.sum is None
    old.load_state_dict(head.state_dict())
    assert torch.equal(old.logits(x), head.logits(x))
    kept = taught(x, y, features=200, intercept=True)
    before = kept.logits(x)
    merged = RidgeHead(WIDTH, features=200)
    merged.load_state_dict(without_sum(head))
    for fail in (lambda: kept.load_state_dict(without_sum(head)), lambda: kept.merge(merged)):
        with pytest.raises(ValueError, match="intercept=True needs"):
            fail()
        assert torch.equal(kept.logits(x), before)
    head.merge(merged)
    assert head.sum is None


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
