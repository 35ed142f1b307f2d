"""What was measured, put to the test: differences over seeds, correlations, and the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["check", "claim", "describe", "paired", "spearman"]

HOLDS, IN_PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "not decided"


def describe(values: ArrayLike) -> dict[str, Any]:
    """Mean and standard deviation over the first axis (seeds), for JSON."""
    v = np.asarray(values, dtype=np.float64)
    spread = v.std(0, ddof=1) if len(v) > 1 else np.zeros(v.shape[1:])
    return {"mean": np.round(v.mean(0), 4).tolist(), "std": np.round(spread, 4).tolist(), "n": len(v)}


def paired(difference: NDArray[np.float64]) -> dict[str, float]:
    """Mean, standard deviation and 95 % confidence interval (Student's t) of paired differences, at least 2."""
    from scipy.stats import t  # comes with scikit-learn

    mean, std = float(difference.mean()), float(difference.std(ddof=1))
    half = float(t.ppf(0.975, len(difference) - 1)) * std / len(difference) ** 0.5
    rounded = {"mean": mean, "std": std, "low": mean - half, "high": mean + half}
    return {name: round(value, 4) for name, value in rounded.items()}


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation; 0 where one of the two does not vary, and so says nothing of the other."""
    from scipy.stats import spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def check(what: str, values: ArrayLike) -> dict[str, Any]:
    """One part of a claim: that a quantity is above 0. One value per seed, paired where it is a difference.

    It is met if the 95 % confidence interval of the mean lies above 0, refuted if it lies below, else open. The
    p-value beside it is that of the exact Wilcoxon signed-rank test, two-sided, which takes no distribution for
    granted; with n seeds it cannot be under 2 / 2**n. One seed decides nothing.

    Args:
        what: the quantity, as a phrase that is true where it is above 0.
        values: [seeds].
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return {"what": what, "mean": round(float(v.mean()), 4), "n": len(v), "found": "open"}
    found = paired(v)
    verdict = "met" if found["low"] > 0 else "refuted" if found["high"] < 0 else "open"
    return {"what": what, **found, "n": len(v), "p": _wilcoxon(v), "found": verdict}


def _wilcoxon(v: NDArray[np.float64]) -> float:
    from scipy.stats import wilcoxon

    return float(f"{wilcoxon(v).pvalue:.3g}") if np.any(v != 0) else 1.0


def claim(name: str, sentence: str, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A claim of the paper in one sentence, its checks, and the verdict.

    It holds if all checks are met, and in part if some are. If none is, it does not hold where one is refuted,
    and is not decided where all are open.
    """
    met = sum(c["found"] == "met" for c in checks)
    refuted = any(c["found"] == "refuted" for c in checks)
    verdict = HOLDS if met == len(checks) else IN_PART if met else FAILS if refuted else OPEN
    return {"name": name, "claim": sentence, "verdict": verdict, "checks": list(checks)}
