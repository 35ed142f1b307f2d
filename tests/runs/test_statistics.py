"""Intervals, tests and Holm's correction, against SciPy and by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flexkern.runs.statistics import describe, holm, paired, spearman, t_test, wilcoxon

RNG = np.random.default_rng(0)
DRAWS = [RNG.normal(mean, 0.2, n) for mean in (0.0, 0.1, -0.4) for n in (2, 3, 6, 10)]


@pytest.mark.parametrize("v", DRAWS, ids=len)
def test_intervals_and_tests_are_scipys(v: np.ndarray) -> None:
    for confidence in (0.8, 0.95):
        interval = stats.ttest_1samp(v, 0).confidence_interval(confidence)
        found = paired(v, confidence)
        assert (found["low"], found["high"]) == (round(interval.low, 4), round(interval.high, 4))
        assert (found["mean"], found["std"]) == (round(v.mean(), 4), round(v.std(ddof=1), 4))
    assert t_test(v) == pytest.approx(stats.ttest_1samp(v, 0).pvalue, rel=1e-9)
    assert wilcoxon(v) == stats.wilcoxon(v).pvalue


@pytest.mark.parametrize("v", DRAWS, ids=len)
def test_the_t_test_agrees_with_the_interval(v: np.ndarray) -> None:
    for shift in np.linspace(-1, 1, 21):
        found = paired(v + shift)
        if 0 not in (found["low"], found["high"]):  # rounded there
            assert (t_test(v + shift) < 0.05) == (found["low"] > 0 or found["high"] < 0)


def test_differences_without_spread() -> None:
    assert (t_test([0.0, 0.0]), wilcoxon([0.0, 0.0])) == (1, 1)
    assert t_test([0.5, 0.5, 0.5]) == 0
    assert paired([0.5, 0.5]) == {"mean": 0.5, "std": 0.0, "low": 0.5, "high": 0.5}


def test_wilcoxon_cannot_be_below_its_floor() -> None:
    for n in (3, 6, 10):
        assert wilcoxon(np.arange(1.0, n + 1) * 100) == pytest.approx(2 / 2**n)


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    # 4 x 0.005, 3 x 0.01, then 2 x 0.03, and what comes after is not below that.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.0]) == [1, 1, 0]


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    for _ in range(200):
        p = RNG.beta(0.3, 3, RNG.integers(1, 12))
        adjusted = np.array(holm(p.tolist()))
        rejected = np.zeros(len(p), bool)
        for k, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (len(p) - k):
                break
            rejected[i] = True
        assert ((adjusted <= 0.05) == rejected).all()
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(len(p) * p, 1) + 1e-15).all()


def test_spearman_is_scipys_and_0_where_nothing_varies() -> None:
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_describe_has_no_nan_for_one_seed() -> None:
    assert describe([[0.5, 1.0]]) == {"mean": [0.5, 1.0], "std": [0.0, 0.0], "n": 1}
    assert describe([1.0, 3.0])["std"] == round(2**0.5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired([1.0]), "difference must be [seeds], at least 2 of them, got shape (1,)"),
        (lambda: t_test([[1.0, 2.0]]), "difference must be [seeds], at least 2 of them, got shape (1, 2)"),
        (lambda: wilcoxon([1.0, float("nan")]), "difference must be finite, got nan"),
        (lambda: paired([1.0, 2.0], 95), "confidence must be in (0, 1), got 95"),
        (lambda: holm([0.5, 1.5]), "p_values must be in [0, 1], got 1.5"),
        (lambda: holm([0.5, float("nan")]), "p_values must be in [0, 1], got nan"),
        (lambda: holm([[0.5]]), "p_values must be one-dimensional, got shape (1, 1)"),  # type: ignore[list-item]
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
