"""Attacks on the training data of an item: who is attacked, how many, how, and that all else stays."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from flexkern.streams import Experience, bundled_digits, two_digit_stream
from flexkern.streams.poison import (
    deranged_labels,
    derangement,
    flipped_labels,
    foreign_inputs,
    perturbed_inputs,
)

CLASSES, NUMBER, COUNT = 5, 2, 30
SHIFT = np.roll(np.arange(CLASSES), 1)
FOREIGN = (
    torch.full((50, 4), -1.0) - torch.arange(50.0)[:, None]
)  # told apart from each other and from the item's

ATTACKS: dict[str, Callable[[Experience], Experience]] = {
    "deranged": lambda e: deranged_labels(e, SHIFT),
    "flipped": lambda e: flipped_labels(e, 0.5, CLASSES, seed=7),
    "foreign": lambda e: foreign_inputs(e, FOREIGN, 0.5, seed=7),
    "perturbed": lambda e: perturbed_inputs(e, 1.0, seed=7),
}
OF_LABELS = ("deranged", "flipped")


def item(number: int = NUMBER, dtype: torch.dtype = torch.float32) -> Experience:
    """30 target images of four positive features among 20 others, in mixed order."""
    rng = np.random.default_rng(3)
    others = rng.choice([c for c in range(CLASSES) if c != number], 20)
    labels = torch.from_numpy(rng.permutation(np.concatenate([np.full(COUNT, number), others])))
    return Experience(
        name="3 8",
        number=number,
        train_inputs=torch.from_numpy(rng.uniform(1, 2, (COUNT + 20, 4))).to(dtype),
        train_labels=labels,
        test_inputs=torch.zeros(6, 4, dtype=dtype),
        test_labels=torch.full((6,), number),
        class_names=("three eight",),
    )


def fields(e: Experience) -> dict[str, object]:
    return {f.name: getattr(e, f.name) for f in dataclasses.fields(e)}


# ---------------------------------------------------------------- what all attacks keep


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_target_images_in_one_field_only(name: str) -> None:
    clean = item()
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in fields(clean).items()}
    poisoned = ATTACKS[name](clean)
    assert poisoned is not clean
    changed = "train_labels" if name in OF_LABELS else "train_inputs"
    for field, value in fields(poisoned).items():
        if field != changed:
            assert value is getattr(clean, field)  # the same object: neither changed nor copied
    others = clean.train_labels != NUMBER
    now, then = getattr(poisoned, changed), getattr(clean, changed)
    assert not torch.equal(now, then)
    assert torch.equal(now[others], then[others])
    assert now.dtype == then.dtype
    for field, value in before.items():  # the argument is as it was
        kept = getattr(clean, field)
        assert torch.equal(kept, value) if isinstance(value, torch.Tensor) else kept == value


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_arguments_give_the_same_bits_and_leave_global_random_states(name: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = ATTACKS[name](item()), ATTACKS[name](item())
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.train_labels, second.train_labels)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_item_without_target_images_cannot_be_attacked(name: str) -> None:
    clean = item()
    empty = dataclasses.replace(clean, train_labels=torch.full_like(clean.train_labels, NUMBER + 1))
    with pytest.raises(
        ValueError, match=r"'3 8' has no training input with its own label 2.*nothing to attack"
    ):
        ATTACKS[name](empty)
    none = dataclasses.replace(clean, train_inputs=torch.zeros(0, 4), train_labels=torch.zeros(0).long())
    with pytest.raises(ValueError, match="nothing to attack"):
        ATTACKS[name](none)


def test_seeds_and_numbers_have_random_numbers_of_their_own() -> None:
    def places(number: int, seed: int) -> list[int]:
        e = item(number)
        poisoned = foreign_inputs(e, FOREIGN, 0.5, seed=seed)
        return (poisoned.train_inputs[e.train_labels == number, 0] < 0).nonzero()[:, 0].tolist()

    assert places(2, 7) == places(2, 7)
    assert places(2, 7) != places(2, 8)
    assert places(2, 7) != places(3, 7)
    assert places(2, 1) != places(1, 2)  # they are not added up
    for seeded in (
        lambda: flipped_labels(item(), 0.5, CLASSES, seed=-1),
        lambda: foreign_inputs(item(), FOREIGN, 0.5, seed=-1),
        lambda: perturbed_inputs(item(), 1.0, seed=-1),
    ):
        with pytest.raises(ValueError, match="seed must not be negative, got -1"):
            seeded()


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be a share of the target images in \[0, 1\]"):
        flipped_labels(item(), rate, CLASSES, seed=0)
    with pytest.raises(ValueError, match=r"rate must be a share of the target images in \[0, 1\]"):
        foreign_inputs(item(), FOREIGN, rate, seed=0)


def test_nothing_is_copied_where_nothing_changes() -> None:
    clean = item()
    for same in (foreign_inputs(clean, FOREIGN, 0.0, seed=0), perturbed_inputs(clean, 0.0, seed=0)):
        assert same is not clean
        assert same.train_inputs is clean.train_inputs
    assert torch.equal(flipped_labels(clean, 0.0, CLASSES, seed=0).train_labels, clean.train_labels)


# ---------------------------------------------------------------- deranged labels


@given(n=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_a_derangement_is_a_permutation_without_fixed_point(n: int, seed: int) -> None:
    permutation = derangement(n, np.random.default_rng(seed))
    assert permutation.dtype == np.int64
    assert sorted(permutation.tolist()) == list(range(n))
    assert (permutation != np.arange(n)).all()
    assert np.array_equal(permutation, derangement(n, np.random.default_rng(seed)))


def test_derangements_of_four_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    draws = 9000
    counts = Counter(tuple(derangement(4, rng).tolist()) for _ in range(draws))
    assert len(counts) == 9  # 4! (1 - 1 + 1/2 - 1/6 + 1/24)
    # Pearson's statistic is chi-square with 9 - 1 degrees of freedom if all have chance 1/9; the bound, 42.7,
    # is passed with chance 1e-6. One derangement off by a fifth (1200 for 1000) alone would add 40 and more.
    statistic = sum((k - draws / 9) ** 2 / (draws / 9) for k in counts.values())
    assert statistic < chi2.isf(1e-6, 8)


@pytest.mark.parametrize("n", [-1, 0, 1])
def test_a_derangement_needs_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"n must be at least 2.*got {n}"):
        derangement(n, np.random.default_rng(0))


def test_all_target_images_carry_the_label_of_one_other_item() -> None:
    permutation = derangement(CLASSES, np.random.default_rng(1))
    told = []
    for number in range(CLASSES):
        clean = item(number)
        labels = deranged_labels(clean, permutation).train_labels[clean.train_labels == number]
        assert len(labels) == COUNT
        assert (labels == int(permutation[number])).all()
        told.append(int(labels[0]))
    assert sorted(told) == list(range(CLASSES))  # each label is told of one item


@pytest.mark.parametrize(
    ("permutation", "error", "message"),
    [
        (np.array([1.0, 2, 3, 4, 0]), TypeError, "must hold integers, got float64"),
        (np.array([1, 2, 3, 4, 5]), ValueError, "each of 0, 1, ..., n - 1 once"),
        (np.array([1, 0, 3, 4, 3]), ValueError, "each of 0, 1, ..., n - 1 once"),
        (np.array([[1, 0]]), ValueError, "each of 0, 1, ..., n - 1 once"),
        (np.array([1, 0, 2, 4, 3]), ValueError, r"no fixed point, or items \[2\] stay right"),
        (np.array([1, 0]), ValueError, "permutation: its length must be the number of classes.*above 4; got 2"),
    ],
)
def test_a_permutation_that_does_not_fit_is_named(
    permutation: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        deranged_labels(item(), permutation)


# ---------------------------------------------------------------- flipped labels


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.15, 0.5, 0.77, 1.0])
def test_flips_are_counted_exactly_and_wrong(rate: float) -> None:
    clean = item()
    labels = flipped_labels(clean, rate, CLASSES, seed=4).train_labels
    assert int((labels != clean.train_labels).sum()) == round(rate * COUNT)
    assert int(labels.min()) >= 0
    assert int(labels.max()) < CLASSES


def test_a_higher_rate_keeps_the_attacks_of_a_lower_one() -> None:
    clean = item()
    low, high = (flipped_labels(clean, r, CLASSES, seed=4).train_labels for r in (0.3, 0.8))
    flipped = low != clean.train_labels
    assert torch.equal(high[flipped], low[flipped])
    low, high = (foreign_inputs(clean, FOREIGN, r, seed=4).train_inputs for r in (0.3, 0.8))
    replaced = low[:, 0] < 0
    assert torch.equal(high[replaced], low[replaced])


def test_flipped_labels_and_their_places_are_uniform() -> None:
    n, seeds = 1000, 40
    clean = Experience(
        name="a",
        number=1,
        train_inputs=torch.zeros(n, 1),
        train_labels=torch.ones(n).long(),
        test_inputs=torch.zeros(1, 1),
        test_labels=torch.ones(1).long(),
    )
    labels = torch.cat([flipped_labels(clean, 0.5, 4, seed=s).train_labels for s in range(seeds)])
    counts = torch.bincount(labels, minlength=4).numpy()
    assert counts[1] == n * seeds / 2
    # The 20,000 flips over three labels, 2 degrees of freedom; the bound is passed with chance 1e-6.
    expected = n * seeds / 6
    assert ((counts[[0, 2, 3]] - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 2)
    # Flips in the first half of the images: the sum of 40 hypergeometric counts, each with mean n/4 and
    # variance k (1/2)(1/2)(n - k)/(n - 1) = 62.6 for k = n/2 of n; five standard deviations are 250.
    first_half = int((labels.view(seeds, n)[:, : n // 2] != 1).sum())
    deviation = math.sqrt(seeds * (n / 2) / 4 * (n / 2) / (n - 1))
    assert abs(first_half - seeds * n / 4) < 5 * deviation


@pytest.mark.parametrize("classes", [-1, 0, 1])
def test_flipping_needs_another_label(classes: int) -> None:
    with pytest.raises(ValueError, match=f"classes must be at least 2.*got {classes}"):
        flipped_labels(item(), 0.5, classes, seed=0)


def test_flipping_wants_the_classes_of_the_whole_stream() -> None:
    with pytest.raises(
        ValueError, match=r"classes must be the number of classes of the stream, above 4; got 3"
    ):
        flipped_labels(item(), 0.5, 3, seed=0)
    only_targets = dataclasses.replace(item(), train_labels=torch.full((COUNT + 20,), NUMBER))
    with pytest.raises(ValueError, match="above 2; got 2"):
        flipped_labels(only_targets, 0.5, 2, seed=0)


# ---------------------------------------------------------------- foreign inputs


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 1.0])
def test_foreign_inputs_are_counted_exactly_and_used_once(rate: float) -> None:
    clean = item()
    inputs = foreign_inputs(clean, FOREIGN, rate, seed=4).train_inputs
    replaced = (inputs != clean.train_inputs).any(1)
    assert int(replaced.sum()) == round(rate * COUNT)
    used = inputs[replaced, 0].tolist()
    assert len(set(used)) == len(used)
    assert set(used) <= set(FOREIGN[:, 0].tolist())


def test_all_foreign_inputs_may_be_used_but_no_more() -> None:
    clean = item()
    inputs = foreign_inputs(clean, FOREIGN[:15], 0.5, seed=4).train_inputs
    assert sorted(inputs[inputs[:, 0] < 0, 0].tolist()) == sorted(FOREIGN[:15, 0].tolist())
    message = (
        "foreign has 14 inputs, but rate 0.5 of 30 target images needs 15: pass more of them, or lower the rate"
    )
    with pytest.raises(ValueError, match=message):
        foreign_inputs(clean, FOREIGN[:14], 0.5, seed=4)


@pytest.mark.parametrize("foreign", [FOREIGN[:, :3], FOREIGN.double(), FOREIGN[0], torch.tensor(1.0)])
def test_foreign_inputs_are_like_the_items(foreign: torch.Tensor) -> None:
    message = r"foreign must be like the experience's inputs \(torch.float32, \[m, ...\] of \(4,\) each\)"
    with pytest.raises(ValueError, match=message):
        foreign_inputs(item(), foreign, 0.1, seed=0)


def test_foreign_inputs_are_a_tensor() -> None:
    with pytest.raises(TypeError, match="foreign must be a tensor, got ndarray"):
        foreign_inputs(item(), FOREIGN.numpy(), 0.1, seed=0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- perturbed inputs


@pytest.mark.parametrize("size", [0.25, 1.0, 3.0])
def test_noise_is_as_large_as_size_times_the_spread(size: float) -> None:
    n, d = 500, 200
    rng = np.random.default_rng(5)
    # The mean input is far from 0, and the features' spreads differ: neither may enter the noise.
    inputs = torch.from_numpy(rng.normal(40, 1, d) + rng.normal(0, 1, (n, d)) * np.linspace(0.1, 2, d)).float()
    clean = Experience(
        name="a",
        number=0,
        train_inputs=inputs,
        train_labels=torch.zeros(n).long(),
        test_inputs=torch.zeros(1, d),
        test_labels=torch.zeros(1).long(),
    )
    noise = (perturbed_inputs(clean, size, seed=1).train_inputs - inputs).double()
    expected = size * float((inputs.double() - inputs.double().mean(0)).square().mean().sqrt())
    # n d = 1e5 independent normal numbers: the mean has the standard error expected / sqrt(n d), the root mean
    # square expected / sqrt(2 n d); five of each. Rounding inputs near 40 to float32 (half an ulp: 2e-6) is far
    # below both (5e-3 times expected >= 0.29).
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(n * d)
    assert abs(float(noise.square().mean().sqrt()) - expected) < 5 * expected / math.sqrt(2 * n * d)
    # The same in each feature: the first and the last half of them, whose spreads are 0.6 and 1.5 on average.
    for half in (noise[:, : d // 2], noise[:, d // 2 :]):
        assert abs(float(half.square().mean().sqrt()) - expected) < 5 * expected / math.sqrt(n * d)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_keeps_the_dtype(dtype: torch.dtype) -> None:
    clean = item(dtype=dtype)
    poisoned = perturbed_inputs(clean, 1.0, seed=1)
    assert poisoned.train_inputs.dtype == dtype
    target = clean.train_labels == NUMBER
    assert (poisoned.train_inputs[target] != clean.train_inputs[target]).any(1).all()


def test_noise_is_for_features_not_for_bytes() -> None:
    clean = item(dtype=torch.uint8)
    message = (
        r"noise needs floating inputs, these are torch.uint8; take features first \(flexkern.features.extract\)"
    )
    with pytest.raises(TypeError, match=message):
        perturbed_inputs(clean, 1.0, seed=0)


@pytest.mark.parametrize("size", [-1.0, math.inf, math.nan])
def test_a_size_is_finite_and_not_negative(size: float) -> None:
    with pytest.raises(ValueError, match=f"size must be finite and at least 0, got {size}"):
        perturbed_inputs(item(), size, seed=0)


def test_noise_that_has_no_finite_size_is_an_error() -> None:
    clean = item()
    for value, shown in ((1.0, "0.0"), (math.nan, "nan")):
        same = dataclasses.replace(clean, train_inputs=torch.full_like(clean.train_inputs, value))
        with pytest.raises(ValueError, match=f"the spread of its 30 target inputs is {shown}"):
            perturbed_inputs(same, 1.0, seed=0)
    with pytest.raises(ValueError, match=r"size 1e\+300 times the spread .* is too large for torch.float32"):
        perturbed_inputs(clean, 1e300, seed=0)


# ---------------------------------------------------------------- on the stream they are for


def test_attacks_meet_the_images_of_a_two_digit_item() -> None:
    images, labels = bundled_digits()
    stream = two_digit_stream(images, labels, items=4, train_per_item=40, test_per_item=10, seed=0)
    permutation = derangement(4, np.random.default_rng(0))
    for e in stream:
        deranged = deranged_labels(e, permutation)
        assert (deranged.train_labels[:40] == int(permutation[e.number])).all()
        assert torch.equal(deranged.train_labels[40:], e.train_labels[40:])
        flipped = flipped_labels(e, 0.25, 4, seed=0)
        assert int((flipped.train_labels[:40] != e.number).sum()) == 10
        foreign = foreign_inputs(e, torch.full((40, *e.input_shape), 255, dtype=torch.uint8), 0.1, seed=0)
        assert int((foreign.train_inputs[:40] == 255).flatten(1).all(1).sum()) == 4
        assert torch.equal(foreign.train_inputs[40:], e.train_inputs[40:])
