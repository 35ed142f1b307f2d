"""prototype_logits and complete_prototypes: EASE's published code, the reference's loops, bad arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexkern.ops.prototype import complete_prototypes, prototype_logits
from flexkern.reference import prototype as reference_prototype

DATA = Path(__file__).parents[1] / "data"
U = 2.0**-24  # unit roundoff of float32


class Golden(NamedTuple):
    """What EASE's code computed, [.., K, dim]; three classes a task."""

    before: Tensor
    after: Tensor
    features: Tensor
    logits: Tensor
    own: Tensor
    base: bool
    beta: float
    alpha: float


@pytest.fixture(params=["ease_a", "ease_b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    with np.load(DATA / f"{request.param}.npz") as file:
        z = {name: file[name] for name in file.files}
    dim, base = int(z["dim"]), bool(z["use_init_ptm"])
    split = {
        name: torch.from_numpy(z[name]).unflatten(1, (-1, dim))
        for name in ("prototypes_before", "prototypes_after", "features")
    }
    classes = torch.arange(len(z["prototypes_before"]))
    assert int(z["init_cls"]) == int(z["inc"])  # so that this is every class's task
    own = classes // int(z["inc"]) + base
    logits = torch.from_numpy(z["logits"])
    return Golden(*split.values(), logits, own, base, float(z["beta"]), float(z["alpha"]))


def logits_bound(subspaces: int, dim: int, weights: float) -> float:
    """Of two float32 computations of logits with these weights in total.

    Each sums ``subspaces * dim`` products of unit vectors, weighted, whose own roundings come from sums of
    ``dim`` squares. By Cauchy and Schwarz the products' sizes sum to at most ``weights``. The roundings are
    taken as independent, so that n of them add up like sqrt(n).
    """
    return 2 * math.sqrt(subspaces * dim + 2 * dim + 6) * U * weights


def test_completion_is_that_of_the_published_code(golden: Golden) -> None:
    completed = complete_prototypes(golden.before, golden.own)
    # A mean of at most 9 prototypes, with weights from cosines of dim products: sizes sum to the largest
    # element.
    dim = golden.before.shape[2]
    bound = 2 * math.sqrt(2 * dim + 9 + 6) * U * golden.before.abs().max().item()
    assert (completed - golden.after).abs().max() <= bound
    known = torch.arange(completed.shape[1]) <= golden.own[:, None]
    assert torch.equal(completed[known], golden.before[known])
    assert not torch.equal(golden.before, golden.after)


def test_unknown_prototypes_are_not_read(golden: Golden) -> None:
    known = torch.arange(golden.before.shape[1]) <= golden.own[:, None]
    spoiled = golden.before.masked_fill(~known[..., None], math.nan)
    assert torch.equal(complete_prototypes(spoiled, golden.own), complete_prototypes(golden.before, golden.own))


def test_logits_are_those_of_the_published_code(golden: Golden) -> None:
    logits = prototype_logits(
        golden.features,
        golden.after,
        golden.own,
        weight=golden.alpha,
        base=golden.base,
        base_weight=golden.beta,
    )
    _, subspaces, dim = golden.after.shape
    bound = logits_bound(subspaces, dim, 1 + golden.alpha + golden.beta)
    assert (logits - golden.logits).abs().max() <= bound
    assert torch.equal(logits.argmax(1), golden.logits.argmax(1))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_against_loops(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 6))
    subspaces = data.draw(st.integers(1, 4))
    dim, samples = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 4))
    base = data.draw(st.booleans()) and subspaces > 1
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    own = torch.randint(int(base), subspaces, (classes,), generator=g)
    known = torch.rand((classes, subspaces), generator=g) < 0.6
    known[torch.arange(classes), own] = True
    prototypes = torch.randn((classes, subspaces, dim), generator=g, dtype=torch.float64)
    features = torch.randn((samples, subspaces, dim), generator=g, dtype=torch.float64)
    features[torch.rand((samples, subspaces), generator=g) < 0.3] = 0
    openings = torch.rand((samples, subspaces), generator=g, dtype=torch.float64)
    options = {
        "weight": data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reweighting": data.draw(st.sampled_from(["code", "paper"])),
        "base": base,
        "base_weight": data.draw(st.sampled_from([0.0, 0.5])),
        "openings": data.draw(st.sampled_from([None, openings])),
    }
    for over in ("later", "new"):
        expected = reference_prototype.complete_prototypes(prototypes, own, known, over=over)
        got = complete_prototypes(prototypes, own, known, over=over)
        # float64: a few dozen roundings of numbers under 6
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    expected = reference_prototype.prototype_logits(features, prototypes, own, **options)
    got = prototype_logits(features, prototypes, own, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_a_silent_synapse_adds_exactly_nothing() -> None:
    g = torch.Generator().manual_seed(3)
    features, prototypes = torch.randn((5, 3, 8), generator=g), torch.randn((4, 3, 8), generator=g)
    own = torch.tensor([0, 0, 1, 2])
    closed = features.clone()
    closed[:, 1:] = 0
    logits = prototype_logits(closed, prototypes, own)
    others = prototypes.clone()
    others[:, 1:] = torch.randn((4, 2, 8), generator=g)
    assert torch.equal(logits, prototype_logits(closed, others, own))
    openings = torch.tensor([1.0, 0.0, 0.0]).expand(5, 3)
    assert torch.equal(logits, prototype_logits(features, prototypes, own, openings=openings))
    assert prototype_logits(torch.zeros(5, 3, 8), prototypes, own).eq(0).all()


def test_both_reweightings_agree_for_two_tasks_and_differ_for_three() -> None:
    g = torch.Generator().manual_seed(4)
    features, prototypes = torch.randn((5, 3, 8), generator=g), torch.randn((4, 3, 8), generator=g)
    own = torch.tensor([0, 0, 1, 1])
    code = prototype_logits(features[:, :2], prototypes[:, :2], own)
    assert torch.equal(code, prototype_logits(features[:, :2], prototypes[:, :2], own, reweighting="paper"))
    code = prototype_logits(features, prototypes, own, weight=0.2)
    paper = prototype_logits(features, prototypes, own, weight=0.1, reweighting="paper")
    assert torch.equal(code, paper)  # 0.2 / 2 = 0.1
    assert not torch.equal(code, prototype_logits(features, prototypes, own, weight=0.1))


def test_one_subspace_is_a_cosine_classifier() -> None:
    g = torch.Generator().manual_seed(5)
    features, prototypes = torch.randn((6, 1, 8), generator=g), torch.randn((4, 1, 8), generator=g)
    own = torch.zeros(4, dtype=torch.int64)
    cosines = torch.nn.functional.cosine_similarity(features, prototypes[:, 0], dim=2)
    logits = prototype_logits(features, prototypes, own)
    assert (logits - cosines).abs().max() <= logits_bound(1, 8, 1)
    assert torch.equal(complete_prototypes(prototypes, own), prototypes)


def test_gradients() -> None:
    g = torch.Generator().manual_seed(6)
    features = torch.randn((3, 2, 4), generator=g, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn((4, 2, 4), generator=g, dtype=torch.float64, requires_grad=True)
    openings = torch.rand((3, 2), generator=g, dtype=torch.float64, requires_grad=True)
    own = torch.tensor([0, 1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda f, p, o: prototype_logits(f, p, own, openings=o), (features, prototypes, openings)
    )
    assert torch.autograd.gradcheck(lambda p: complete_prototypes(p, own), (prototypes,))


def test_low_precision_is_computed_in_float32() -> None:
    g = torch.Generator().manual_seed(7)
    features = torch.randn((3, 2, 4), generator=g).bfloat16()
    prototypes = torch.randn((4, 2, 4), generator=g)
    own = torch.tensor([0, 1, 1, 0])
    expected = prototype_logits(features.float(), prototypes, own)
    assert torch.equal(prototype_logits(features, prototypes, own), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototype_logits(features, prototypes, own), expected)


def test_no_classes_and_no_samples() -> None:
    own = torch.zeros(0, dtype=torch.int64)
    assert prototype_logits(torch.zeros(3, 2, 4), torch.zeros(0, 2, 4), own).shape == (3, 0)
    assert prototype_logits(torch.zeros(0, 2, 4), torch.zeros(0, 2, 4), own).shape == (0, 0)
    assert complete_prototypes(torch.zeros(0, 2, 4), own).shape == (0, 2, 4)


def test_a_subspace_that_no_class_knows_stays_zero() -> None:
    prototypes = torch.ones(2, 2, 3)
    own = torch.tensor([0, 0])
    assert complete_prototypes(prototypes, own)[:, 1].eq(0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, ValueError, r"features must be \[N, K, dim\] = \[N, 2, 4\]"),
        ({"features": torch.zeros(2, 2, 4, dtype=torch.int64)}, TypeError, "features must be floating-point"),
        ({"features": [1.0]}, TypeError, "features must be a torch.Tensor, got list"),
        ({"prototypes": torch.zeros(3, 4)}, ValueError, r"prototypes must be \[C, K, dim\]"),
        ({"own_subspace": torch.zeros(3)}, TypeError, "own_subspace must be integers"),
        ({"own_subspace": torch.zeros(2, dtype=torch.int64)}, ValueError, "own_subspace has 2 classes"),
        ({"reweighting": "mean"}, ValueError, "reweighting must be one of"),
        ({"weight": math.nan}, ValueError, "weight must be finite"),
        ({"openings": torch.zeros(2, 3)}, ValueError, r"openings must be \[N, K\]"),
    ],
)
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "features": torch.zeros(2, 2, 4),
        "prototypes": torch.zeros(3, 2, 4),
        "own_subspace": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        prototype_logits(**{**arguments, **change})


def test_errors_of_completion() -> None:
    prototypes, own = torch.zeros(3, 2, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="over must be one of"):
        complete_prototypes(prototypes, own, over="all")
    with pytest.raises(ValueError, match=r"known must be bool \[C, K\]"):
        complete_prototypes(prototypes, own, torch.zeros(3, 2))
