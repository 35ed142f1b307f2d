"""The metrics against hand-worked matrices, SciPy, and a brute-force shuffle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkern.metrics import (
    AccuracyMatrix,
    anytime_accuracy,
    confusion_matrix,
    hypergeometric_tail,
    memorised,
)

R = [[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.6, 0.3, 0.7]]


def test_summaries_of_a_hand_worked_matrix() -> None:
    matrix = AccuracyMatrix(R)
    assert matrix.after(0) == pytest.approx(0.9)
    assert matrix.after(1) == pytest.approx((0.5 + 0.8) / 2)
    assert matrix.last == pytest.approx((0.6 + 0.3 + 0.7) / 3)
    assert matrix.average == pytest.approx((0.9 + 0.65 + 1.6 / 3) / 3)
    assert matrix.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.3)) / 2)
    assert matrix.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.3 - 0.8)) / 2)
    assert matrix.tolist() == R


def test_forgetting_looks_at_the_best_and_backward_transfer_at_the_first() -> None:
    matrix = AccuracyMatrix([[0.4, 0, 0], [0.9, 0.5, 0], [0.7, 0.5, 0.5]])
    assert matrix.forgetting == pytest.approx((0.9 - 0.7 + 0.0) / 2)
    assert matrix.backward_transfer == pytest.approx((0.7 - 0.4 + 0.0) / 2)


def test_what_an_item_scored_before_it_was_learned_does_not_count() -> None:
    matrix = AccuracyMatrix([[0.5, 1.0, 1.0], [0.5, 0.6, 1.0]])
    assert matrix.last == pytest.approx(0.55)
    assert AccuracyMatrix([[0.5, 1.0, 1.0], [0.5, 0.6, 1.0], [0.5, 0.6, 0.2]]).forgetting == pytest.approx(0.0)


def test_one_item_forgets_nothing() -> None:
    matrix = AccuracyMatrix([[0.5, 0.0]])
    assert matrix.forgetting == matrix.backward_transfer == 0.0
    assert matrix.last == matrix.average == 0.5


def test_matrix_refuses_what_it_cannot_be() -> None:
    matrix = AccuracyMatrix()
    with pytest.raises(ValueError, match="empty"):
        _ = matrix.last
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        matrix.add([0.5, 1.5])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        matrix.add([0.5, float("nan")])
    matrix.add([0.5, 0.5])
    with pytest.raises(ValueError, match="2 numbers as before, got 3"):
        matrix.add([0.5, 0.5, 0.5])
    matrix.add([0.5, 0.5])
    with pytest.raises(ValueError, match="all 2 items"):
        matrix.add([0.5, 0.5])


def test_confusion_matrix_counts() -> None:
    counts = confusion_matrix([0, 0, 1, 2, 2], [0, 1, 1, 0, 2], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match=r"predictions must be in \[0, 3\)"):
        confusion_matrix([0], [3], 3)
    with pytest.raises(ValueError, match="one length"):
        confusion_matrix([0, 1], [0], 3)


@settings(deadline=None)  # the first call imports SciPy
@given(st.data())
def test_hypergeometric_tail_against_scipy(data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    population = data.draw(st.integers(1, 10_000))
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    hits = data.draw(st.integers(0, max(1, min(marked, drawn))))
    expected = stats.hypergeom.sf(hits - 1, population, marked, drawn)
    # A term is the exponential of nine log-gammas of at most lgamma(10_001) = 82,109, each with an error of
    # three ulps at most (2^-53 * 82,109 = 9e-12 an ulp); SciPy's are alike. So 2 * 9 * 3 * 9e-12 = 5e-10.
    assert hypergeometric_tail(hits, population, marked, drawn) == pytest.approx(
        expected, rel=5e-10, abs=1e-300
    )


def test_hypergeometric_tail_of_a_small_case_by_hand() -> None:
    # 2 marked of 5, 2 drawn: P(both) = 1/10, P(none) = 3/10.
    assert hypergeometric_tail(2, 5, 2, 2) == pytest.approx(0.1, rel=1e-14)
    assert hypergeometric_tail(1, 5, 2, 2) == pytest.approx(0.7, rel=1e-14)
    assert hypergeometric_tail(0, 5, 2, 2) == 1.0
    assert hypergeometric_tail(3, 5, 2, 2) == 0.0
    with pytest.raises(ValueError, match="marked"):
        hypergeometric_tail(0, 5, 6, 2)


def test_the_test_is_what_shuffling_labels_tends_to() -> None:
    rng = np.random.default_rng(0)
    items, each = 5, 20
    labels = np.repeat(np.arange(items), each)
    predictions = np.where(rng.random(labels.size) < 0.15, labels, rng.integers(0, 3, labels.size))
    counts = confusion_matrix(labels, predictions, items)
    shuffles = 20_000
    reached = np.zeros(items)
    for _ in range(shuffles):
        shuffled = rng.permutation(labels)
        hits = np.bincount(shuffled[shuffled == predictions], minlength=items)
        reached += hits >= np.diag(counts)
    for j in range(items):
        p = hypergeometric_tail(int(counts[j, j]), labels.size, int(counts[:, j].sum()), each)
        # Five standard errors of the share of shuffles: wrong for a right formula once in 3.5 million.
        assert abs(reached[j] / shuffles - p) <= 5 * np.sqrt(p * (1 - p) / shuffles) + 1e-12


def test_memorised_items() -> None:
    # Item 0 known; item 1 at chance; item 2 never named; item 3 named for everything else.
    counts = np.array([[18, 1, 0, 1], [0, 5, 0, 15], [0, 5, 0, 15], [0, 5, 0, 15]])
    assert memorised(counts).tolist() == [True, False, False, False]
    assert memorised(counts, learned=[1, 2]).tolist() == [False] * 4


def test_a_never_named_item_is_not_memorised_though_no_shuffle_beats_it() -> None:
    counts = np.array([[20, 0], [20, 0]])
    assert memorised(counts).tolist() == [False, False]


def test_significant_but_below_chance_is_not_memorised() -> None:
    counts = np.array([[40, 960], [0, 1000]])  # named 40 times, always rightly: p = 2^-40, accuracy 0.04
    assert hypergeometric_tail(40, 2000, 40, 1000) < 1e-9
    assert memorised(counts).tolist() == [False, True]


def test_exactly_at_chance_is_not_memorised_however_significant() -> None:
    counts = np.array([[500, 500], [0, 1000]])  # accuracy 1 / 2 of two items, and never named for the other
    assert hypergeometric_tail(500, 2000, 500, 1000) < 1e-9
    assert memorised(counts).tolist() == [False, True]
    counts[0] += [1, -1]
    assert memorised(counts).tolist() == [True, True]


def test_memorised_refuses_what_is_not_a_confusion_matrix() -> None:
    with pytest.raises(ValueError, match="square"):
        memorised([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match="square"):
        memorised([[1, -2], [4, 5]])


def test_class_incremental_accuracy_is_over_all_test_inputs_seen_so_far() -> None:
    # 30, 10 and 20 test inputs; 27 right; then 15 and 8; then 18, 3 and 14.
    matrix = AccuracyMatrix(R, weights=[30, 10, 20])
    seen = [27 / 30, (15 + 8) / 40, (18 + 3 + 14) / 60]
    for item, expected in enumerate(seen):
        assert matrix.after(item) == pytest.approx(expected, abs=1e-15)
    assert matrix.last == pytest.approx(seen[-1], abs=1e-15)
    assert matrix.average == pytest.approx(sum(seen) / 3, abs=1e-15)
    plain = AccuracyMatrix(R)
    assert matrix.forgetting == plain.forgetting
    assert matrix.backward_transfer == plain.backward_transfer
    assert AccuracyMatrix(R, weights=[7, 7, 7]).last == pytest.approx(plain.last, abs=1e-15)


def test_average_accuracy_is_the_one_that_ease_published() -> None:
    # "CNN top1 curve" and "Average Accuracy (CNN)" of the authors' log, CIFAR-100 B0-Inc5, ViT-B/16-IN21K.
    curve = [
        99.4, 98.2, 97.27, 96.45, 96.28, 94.9, 93.26, 92.95, 92.27, 91.0,
        90.0, 89.98, 89.34, 89.29, 88.4, 86.8, 86.33, 86.1, 86.27, 85.8,
    ]  # fmt: skip
    matrix = AccuracyMatrix(weights=[500] * 20)
    for accuracy in curve:
        matrix.add([accuracy / 100] * 20)
    assert 100 * matrix.average == pytest.approx(91.5145, abs=1e-12)
    assert 100 * matrix.last == pytest.approx(85.8, abs=1e-12)


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 3, 4], []])
def test_weights_must_fit_the_matrix(weights: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(weights)} numbers, as the weights|weights must be a list"):
        AccuracyMatrix(R, weights=weights)


@pytest.mark.parametrize("weights", [[1, 0, 1], [1, -1, 1], [1, float("nan"), 1], 3, [[1, 2, 3]]])
def test_weights_must_be_positive_numbers(weights: object) -> None:
    with pytest.raises(ValueError, match="weights must be a list of positive numbers"):
        AccuracyMatrix(R, weights=weights)  # type: ignore[arg-type]


# ----------------------------------------------------------------- transfer and plasticity


def test_plasticity_is_what_was_right_just_after_learning() -> None:
    matrix = AccuracyMatrix(R)
    assert matrix.learning_accuracy == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    # What is known at the end is what was learned, and what came to it since.
    assert matrix.last == pytest.approx(matrix.learning_accuracy + matrix.backward_transfer * 2 / 3)
    assert AccuracyMatrix([[0.5, 0.0]]).learning_accuracy == 0.5


def test_forward_transfer_is_what_was_right_just_before_learning() -> None:
    matrix = AccuracyMatrix(R)
    assert matrix.forward_transfer(0.25) == pytest.approx(((0.1 - 0.25) + (0.2 - 0.25)) / 2)
    assert matrix.forward_transfer([0.9, 0.05, 0.3]) == pytest.approx(((0.1 - 0.05) + (0.2 - 0.3)) / 2)
    assert AccuracyMatrix(R[:1]).forward_transfer(0.0) == pytest.approx(0.1)
    assert AccuracyMatrix(R[:2]).forward_transfer(0.0) == pytest.approx((0.1 + 0.2) / 2)
    assert AccuracyMatrix([[0.5]]).forward_transfer(0.1) == 0.0


@pytest.mark.parametrize("baseline", [-0.1, 1.5, float("nan"), [0.1, 0.2], [[0.1, 0.2, 0.3]]])
def test_a_baseline_is_a_number_or_one_for_each_item(baseline: Any) -> None:
    with pytest.raises(ValueError, match=r"baseline must be a number in \[0, 1\], or one for each of the 3"):
        AccuracyMatrix(R).forward_transfer(baseline)
    with pytest.raises(ValueError, match="empty"):
        AccuracyMatrix().forward_transfer(0.1)


def test_accuracy_at_any_time_is_the_area_under_the_curve() -> None:
    assert anytime_accuracy([0.2, 0.4, 0.9]) == pytest.approx(0.5)
    assert anytime_accuracy([0.2, 0.4], [300, 100]) == pytest.approx((0.2 * 300 + 0.4 * 100) / 400)
    for accuracies in ([], [0.5, 1.1], [[0.5]], [float("nan")]):
        with pytest.raises(ValueError, match="accuracies must be"):
            anytime_accuracy(accuracies)
    for samples in ([1], [1, 0], [1, float("inf")]):
        with pytest.raises(ValueError, match="samples must be 2 positive numbers"):
            anytime_accuracy([0.5, 0.6], samples)


def test_items_without_tests_are_left_out_of_all_means() -> None:
    rows = [[0.9, 0.0, 0.1], [0.5, 1.0, 0.2], [0.6, 1.0, 0.7]]
    matrix = AccuracyMatrix(rows, weights=[30, 1, 10], tested=[True, False, True])
    assert matrix.after(1) == pytest.approx(0.5)
    assert matrix.last == pytest.approx((0.6 * 30 + 0.7 * 10) / 40)
    assert matrix.average == pytest.approx((0.9 + 0.5 + matrix.last) / 3)
    assert matrix.forgetting == pytest.approx(0.9 - 0.6)
    assert matrix.backward_transfer == pytest.approx(0.6 - 0.9)
    assert matrix.learning_accuracy == pytest.approx((0.9 + 0.7) / 2)
    assert matrix.forward_transfer(0.05) == pytest.approx(0.2 - 0.05)
    assert AccuracyMatrix(rows, tested=[True, False, True]).last == pytest.approx((0.6 + 0.7) / 2)
    for tested in ([False, True, True], [], [1, 0, 1], [[True]]):
        with pytest.raises(ValueError, match="tested must be a list of bools"):
            AccuracyMatrix(rows, tested=tested)
    with pytest.raises(ValueError, match="must have 2 numbers, as tested does"):
        AccuracyMatrix(rows, tested=[True, True])
    with pytest.raises(ValueError, match="tested must have 3 entries, as the weights do, got 2"):
        AccuracyMatrix(rows, tested=[True, True], weights=[1, 1, 1])


def test_that_all_items_are_tested_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.random((7, 7)), rng.integers(1, 50, 7)
    for of in (None, weights):
        plain, told = AccuracyMatrix(rows, weights=of), AccuracyMatrix(rows, weights=of, tested=[True] * 7)
        for name in ("last", "average", "forgetting", "backward_transfer", "learning_accuracy"):
            assert getattr(plain, name) == pytest.approx(getattr(told, name), abs=1e-15)
