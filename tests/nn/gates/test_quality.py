"""The report of gates, against scikit-learn and counting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flexkern.nn.gates.quality import auroc, gate_quality
from helpers.gaussians import TASKS, points, taught


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 2**31))
def test_auroc_is_scikit_learns(n: int, levels: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (n, 3), generator=g).float()  # with ties
    positive = torch.randint(0, 2, (n, 3), generator=g).bool()
    got = auroc(scores, positive)
    for t in range(3):
        if positive[:, t].all() or not positive[:, t].any():
            assert math.isnan(got[t])
        else:
            assert float(got[t]) == pytest.approx(roc_auc_score(positive[:, t], scores[:, t]), abs=1e-12)


def test_report_against_counting() -> None:
    gate = taught(gating="topk", k=2, apart=2.0)
    x, task = points(30, apart=2.0)
    keep = task != 1
    for some, tasks in ((x, task), (x[keep], task[keep]), (x[:1], task[:1])):
        report = json.loads(json.dumps(gate.report(some, tasks), allow_nan=False))
        opened, evidence = gate(some).numpy() > 0, gate.evidence(some).numpy()
        t = tasks.numpy()
        assert report["open_per_sample"] == pytest.approx(opened.sum() / len(t))
        assert report["open_rate"] == pytest.approx(opened.mean())
        own = opened[np.arange(len(t)), t]
        assert report["open_rate_own"] == pytest.approx(own.mean())
        assert report["open_rate_other"] == pytest.approx((opened.sum() - own.sum()) / (len(t) * (TASKS - 1)))
        assert report["none_open"] == pytest.approx((opened.sum(1) == 0).mean())
        assert report["best_right"] == pytest.approx((evidence.argmax(1) == t).mean())
        for i in range(TASKS):
            if (t == i).any():
                np.testing.assert_allclose(report["confusion"][i], opened[t == i].mean(0))
            else:
                assert report["confusion"][i] is None
            if 0 < (t == i).sum() < len(t):
                assert report["auroc"][i] == pytest.approx(roc_auc_score(t == i, evidence[:, i]))
            else:
                assert report["auroc"][i] is None


def test_report_of_nothing() -> None:
    report = gate_quality(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert report["open_rate"] is None
    assert report["confusion"] == [None, None]
