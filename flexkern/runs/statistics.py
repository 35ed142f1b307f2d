"""What seeds and streams say: means, intervals and tests of paired differences, and many tests at once.

Values come one per seed (or per stream), paired where two methods saw the same seed: then pass the difference.

How few seeds can say anything after :func:`holm`? The smallest p value that Wilcoxon's signed-rank test can
give is 2 / 2**n: 0.031 with 6 seeds, 0.002 with 10. Over m tests Holm multiplies the smallest p by m, so with
10 seeds nothing is below 0.05 by Wilcoxon as soon as there are more than 25 tests, however large the effect.
The paired t-test has no such floor, and it agrees with the 95 % interval of :func:`paired`: p < 0.05 exactly
where that leaves out 0. It takes differences over seeds to be normal, which a few seeds cannot show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["describe", "holm", "paired", "spearman", "t_test", "wilcoxon"]

# SciPy, here and below, comes with scikit-learn, and is imported where it is needed: it takes a second.


def describe(values: ArrayLike) -> dict[str, Any]:
    """Mean and standard deviation over the first axis (seeds), rounded to 4 digits, for JSON."""
    v = np.asarray(values, dtype=np.float64)
    spread = v.std(0, ddof=1) if len(v) > 1 else np.zeros(v.shape[1:])
    return {"mean": np.round(v.mean(0), 4).tolist(), "std": np.round(spread, 4).tolist(), "n": len(v)}


def paired(difference: ArrayLike, confidence: float = 0.95) -> dict[str, float]:
    """Mean, standard deviation and confidence interval (Student's t) of paired differences, to 4 digits.

    Args:
        difference: [seeds], at least 2.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: if an argument is outside its range.
    """
    from scipy.stats import t

    v = _differences(difference)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    mean, std = float(v.mean()), float(v.std(ddof=1))
    half = float(t.ppf(0.5 + confidence / 2, len(v) - 1)) * std / len(v) ** 0.5
    rounded = {"mean": mean, "std": std, "low": mean - half, "high": mean + half}
    return {name: round(value, 4) for name, value in rounded.items()}


def t_test(difference: ArrayLike) -> float:
    """p value, two-sided, of the paired t-test that the mean difference is 0.

    Differences that are all the same have no spread: p is 1 where they are 0, else 0, as the interval has it.

    Args:
        difference: [seeds], at least 2.

    Raises:
        ValueError: if there are fewer, or one is not finite.
    """
    from scipy.stats import t

    v = _differences(difference)
    mean, std = float(v.mean()), float(v.std(ddof=1))
    if std == 0:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / (std / len(v) ** 0.5), len(v) - 1))


def wilcoxon(difference: ArrayLike) -> float:
    """p value, two-sided, of Wilcoxon's signed-rank test; exact for few seeds without ties, 1 where all are 0.

    Args:
        difference: [seeds], at least 2.

    Raises:
        ValueError: if there are fewer, or one is not finite.
    """
    from scipy.stats import wilcoxon

    v = _differences(difference)
    return float(wilcoxon(v).pvalue) if np.any(v != 0) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for how many there are (Holm, 1979), in the order given.

    Calling significant what is below 0.05 then errs in any of the tests with a chance of at most 5 %, however
    they depend on each other. The k-th smallest of m is multiplied by m - k + 1; none is below one that was
    smaller.

    Args:
        p_values: of all tests that a page reports, not of those that look well.

    Raises:
        ValueError: if one is outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"p_values must be one-dimensional, got shape {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be in [0, 1], got {p[~((p >= 0) & (p <= 1))][0]}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation; 0 where one of the two does not vary, and so says nothing of the other."""
    from scipy.stats import spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _differences(difference: ArrayLike) -> NDArray[np.float64]:
    v = np.asarray(difference, dtype=np.float64)
    if v.ndim != 1 or len(v) < 2:
        raise ValueError(f"difference must be [seeds], at least 2 of them, got shape {v.shape}")
    if not np.isfinite(v).all():
        raise ValueError(f"difference must be finite, got {v[~np.isfinite(v)][0]}")
    return v
