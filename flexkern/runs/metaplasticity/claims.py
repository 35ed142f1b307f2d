"""What was measured, put to the test: the paper's claims, each with its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flexkern.runs.statistics import paired, t_test, wilcoxon

__all__ = ["check", "claim"]

HOLDS, IN_PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "not decided"


def check(what: str, values: ArrayLike) -> dict[str, Any]:
    """One part of a claim: that a quantity is above 0. One value per seed, paired where it is a difference.

    It is met if the 95 % confidence interval of the mean lies above 0, refuted if it lies below, else open.
    "p_t" is the p value of the t-test that the interval is of, for who corrects for the number of checks with
    :func:`flexkern.runs.statistics.holm`; "p" that of the exact Wilcoxon signed-rank test, which takes no
    distribution for granted, and with n seeds cannot be under 2 / 2**n. Both are two-sided. One seed decides
    nothing.

    Args:
        what: the quantity, as a phrase that is true where it is above 0.
        values: [seeds].
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return {"what": what, "mean": round(float(v.mean()), 4), "n": len(v), "found": "open"}
    found = paired(v)
    verdict = "met" if found["low"] > 0 else "refuted" if found["high"] < 0 else "open"
    p, p_t = (float(f"{test(v):.3g}") for test in (wilcoxon, t_test))
    return {"what": what, **found, "n": len(v), "p": p, "p_t": p_t, "found": verdict}


def claim(name: str, sentence: str, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A claim of the paper in one sentence, its checks, and the verdict.

    It holds if all checks are met, and in part if some are. If none is, it does not hold where one is refuted,
    and is not decided where all are open.
    """
    met = sum(c["found"] == "met" for c in checks)
    refuted = any(c["found"] == "refuted" for c in checks)
    verdict = HOLDS if met == len(checks) else IN_PART if met else FAILS if refuted else OPEN
    return {"name": name, "claim": sentence, "verdict": verdict, "checks": list(checks)}
