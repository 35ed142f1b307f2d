"""Thresholds of gates: what the quantile promises, and where the sliding one may go."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkern.nn.gates.thresholds import SlidingThreshold, quantile_threshold
from helpers.gaussians import GATES, TASKS, make_tasks, points, taught


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_quantile_is_the_largest_that_keeps_its_promise(n: int, target: float) -> None:
    evidence = torch.randn((n, 1), generator=torch.Generator().manual_seed(n))
    theta = float(quantile_threshold(evidence, target))
    # A fresh sample falls between the n ordered ones with equal chance: below the k-th smallest with k / (n +
    # 1).
    allowed = [k for k in range(n + 1) if 1 - k / (n + 1) >= target - 1e-9]
    ordered = [-math.inf, *evidence.sort(0).values.squeeze(1).tolist()]
    assert theta == ordered[max(allowed)]


def test_quantile_promise_by_simulation() -> None:
    g = torch.Generator().manual_seed(0)
    held_out, target = 39, 0.9
    gates = 2000
    theta = quantile_threshold(torch.randn((held_out, gates), generator=g), target)
    rate = (torch.randn((1, gates), generator=g) >= theta).double().mean()
    # exactly 1 - 4 / 40 = 0.9: five standard errors of 2,000 draws
    assert abs(rate - target) <= 5 * math.sqrt(target * (1 - target) / gates)


@pytest.mark.parametrize("options", [GATES[0], GATES[4], GATES[5], GATES[6], GATES[8]], ids=lambda k: k["gate"])
def test_quantile_gate_opens_on_its_own_task_at_the_rate(options: dict[str, Any]) -> None:
    n, target, holdout = 400, 0.85, 0.3
    _, draw = make_tasks(TASKS, 2, n, apart=3.0)
    gate = taught(n=n, apart=3.0, threshold="quantile", target=target, holdout=holdout, **options)
    x = draw(TASKS - 1, 1000)
    rate = gate(x)[:, TASKS - 1].double().mean().item()
    held_out = 2 * int(n * holdout)
    # Given the held-out samples the rate is Beta distributed, and it is counted on 2,000: four deviations.
    # Detectors of running sums know the held-out samples by now, so that their rate may be a little larger.
    deviation = math.sqrt(target * (1 - target) * (1 / held_out + 1 / len(x)))
    assert target - 4 * deviation <= rate <= target + 4 * deviation + 0.01
    if options["gate"] == "mlp":
        fixed = taught(n=n, apart=3.0, holdout=holdout, **options)
        assert not torch.equal(gate.theta, fixed.theta)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 4), st.floats(-8, 8), st.integers(1, 40), st.integers(0, 2**31))
def test_sliding_threshold_keeps_its_bounds_and_its_rate(
    target: float, gain: float, start: float, batch: int, seed: int
) -> None:
    rule = SlidingThreshold(target, gain)
    evidence = torch.randn((200, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    theta = torch.full((2,), start, dtype=torch.float64)
    rates, inside = [], True
    for part in evidence.split(batch):
        rates.append((part >= theta).double().mean(0))
        moved = rule.slide(theta, part, batch)
        assert ((moved - theta) <= gain * (1 - target) + 1e-12).all()
        assert ((theta - moved) <= gain * target + 1e-12).all()
        assert ((moved >= rule.low) & (moved <= rule.high)).all()
        inside &= bool(((moved > rule.low) & (moved < rule.high)).all())
        theta = moved
    assert torch.equal(theta, rule.slide(torch.full((2,), start, dtype=torch.float64), evidence, batch))
    if inside:
        rest = (torch.stack(rates) - target).sum(0) - (theta - start) / gain
        assert rest.abs().max() <= 1e-12 * len(rates) / min(gain, 1)


def test_sliding_threshold_comes_to_its_quantile() -> None:
    evidence = torch.randn((20000, 1), generator=torch.Generator().manual_seed(0))
    rule = SlidingThreshold(0.1, gain=0.2)
    theta = rule.slide(torch.tensor([-4.0]), evidence, 50)
    # The 0.9 quantile of a normal is 1.2816. A step's noise is gain sqrt(0.1 0.9 / 50) = 0.0085, the pull gain
    # times the density there, 0.2 * 0.1755 = 0.035: the deviation is 0.0085 / sqrt(2 * 0.035) = 0.032, and five
    # of them 0.16.
    assert abs(float(theta) - 1.2816) < 0.16


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("options", [GATES[0], GATES[5]], ids=lambda k: k["gate"])
def test_adaptive_gates_move_to_the_target(options: dict[str, Any], refresh: bool) -> None:
    options = {"n": 400, "apart": 2.0, "refresh": refresh, **options}
    x, task = points(apart=2.0)
    fixed = taught(**options).report(x, task)["open_rate_other"]
    gate = taught(threshold="adaptive", target=0.05, low=-3.0, high=3.0, **options)
    adaptive = gate.report(x, task)["open_rate_other"]
    assert fixed > 0.1
    assert abs(adaptive - 0.05) < abs(fixed - 0.05) / 2
    assert ((gate.theta_logit >= -3) & (gate.theta_logit <= 3)).all()
    narrow = taught(threshold="adaptive", target=0.01, low=-0.1, high=0.1, **options)
    assert narrow.theta_logit.abs().max() <= 0.1 + 2**-24


@pytest.mark.parametrize("options", [GATES[0], GATES[5]], ids=lambda k: k["gate"])
def test_the_newest_adaptive_gate_does_not_slide_on_its_own_data(options: dict[str, Any]) -> None:
    """Tasks far apart: what stands for the others hardly opens the newest gate, its own data nearly always."""
    target, gain, batch = 0.1, 0.5, 32
    gate = taught(threshold="adaptive", target=target, gain=gain, batch=batch, apart=12.0, **options)
    steps = math.ceil((TASKS - 1) * 256 / batch)  # 256 features stand for each earlier task
    # From 0, a step in which nothing opens the gate lowers theta by gain * target; its own data would raise it
    # by gain * (1 - target). Each step rounds theta, of under 1, once.
    lowest = -gain * target * steps
    assert lowest - steps * 2.0**-24 <= float(gate.theta_logit[-1]) < lowest / 2


@pytest.mark.parametrize("options", [GATES[0], GATES[5]], ids=lambda k: k["gate"])
def test_quantile_of_refreshed_gates_by_what_stands_for_their_data(options: dict[str, Any]) -> None:
    n, target = 400, 0.85
    _, draw = make_tasks(TASKS, 2, n, apart=3.0)
    gate = taught(n=n, apart=3.0, threshold="quantile", target=target, refresh=True, **options)
    for t in range(TASKS - 1):
        x = draw(t, 1000)
        rate = gate(x)[:, t].double().mean().item()
        # As above, with 256 draws; they have the means of 800 samples, which moves the rate by less than 0.03.
        assert abs(rate - target) <= 4 * math.sqrt(target * (1 - target) * (1 / 256 + 1 / len(x))) + 0.03
