"""AdaptiveThreshold: its bounds, its rate and its stability over long runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern import ops
from flexkern.nn import AdaptiveThreshold, SilentLinear

COUNT = 1000  # silent synapses of a unit


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation of the rule."""


def converted_of(theta: Tensor, level: float) -> Tensor:
    """How many of COUNT coincidences, spread evenly over (0, level), reach theta."""
    return (COUNT * (1 - theta.double() / level)).clamp(0, COUNT).floor().long()


def run(rule: AdaptiveThreshold, levels: list[float], units: int = 1) -> tuple[list[float], list[float]]:
    """theta after each pass, and the rate in it, of coincidences that stand still apart from their level."""
    theta = torch.full((units,), rule.start)
    silent = torch.full((units,), COUNT)
    thetas, rates = [], []
    for level in levels:
        converted = converted_of(theta, level)
        rule.update_(theta, converted, silent)
        thetas.append(theta[0].item())
        rates.append(converted[0].item() / COUNT)
    return thetas, rates


@pytest.mark.parametrize("gain", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("target", [0.01, 0.1, 0.5])
def test_coincidences_that_stand_still(target: float, gain: float) -> None:
    rule = AdaptiveThreshold(target, gain, low=1e-4, high=1e4, start=30.0)
    thetas, rates = run(rule, [2.0] * 5_000)
    # The quantile, to within one synapse of COUNT; from there a step leads at most this far.
    low = 2.0 * (1 - target - 1 / COUNT) * math.exp(-gain * target)
    high = 2.0 * (1 - target + 1 / COUNT) * math.exp(gain * (1 - target))
    arrived = next(i for i, theta in enumerate(thetas) if low <= theta <= high)
    assert all(low <= theta <= high for theta in thetas[arrived:])
    # On the way down nothing converts until theta is under the largest coincidence.
    fell = next(i for i, theta in enumerate(thetas) if theta < 2.0)
    assert abs(fell - math.log(30.0 / 2.0) / (gain * target)) <= 1
    # The sum of (rate - target) is log(theta / start) / gain, whatever happened; each float32 step rounds theta
    # four times (rate, difference, exp to 2 ulp, product).
    mean = sum(rates) / len(rates)
    expected = target + math.log(thetas[-1] / 30.0) / (gain * len(rates))
    assert abs(mean - expected) <= 6 * 2.0**-24 * (1 + 1 / gain)


def test_it_follows_a_shift() -> None:
    rule = AdaptiveThreshold(0.1, 1.0, low=1e-9, high=1e9, start=1.8)
    up, down = 1000.0, 0.001
    thetas, _ = run(rule, [2.0] * 100 + [2.0 * up] * 4000 + [2.0 * down] * 4000)
    for part, level in ((thetas[:100], 2.0), (thetas[100:4100], 2.0 * up), (thetas[4100:], 2.0 * down)):
        quantile = level * 0.9
        settled = part[-50:]
        assert max(settled) <= quantile * (1 + 1 / 900) * math.exp(0.9)
        assert min(settled) >= quantile * (1 - 1 / 900) * math.exp(-0.1)
    # Not faster than the factors of a step allow, and downwards, where nothing converts, just as fast.
    above = next(i for i, theta in enumerate(thetas[100:]) if theta > 1.8 * up * math.exp(-0.1))
    assert above >= math.floor(math.log(up) / 0.9) - 1
    below = next(i for i, theta in enumerate(thetas[4100:]) if theta < 2.0 * down)
    assert math.log(1.8 * up / (2 * down)) / 0.1 - 1 <= below <= math.log(1.8 * up / (2 * down)) / 0.1 + 10


@pytest.mark.parametrize(
    ("level", "bound"), [(0.0, 0.01), (1e-30, 0.01), (math.nan, 0.01), (1e30, 100.0), (math.inf, 100.0)]
)
def test_coincidences_that_vanish_or_are_huge_end_at_a_bound(level: float, bound: float) -> None:
    rule = AdaptiveThreshold(0.1, 1.0, low=0.01, high=100.0, start=1.0)
    theta, silent = torch.ones(1), torch.tensor([COUNT])
    for _ in range(2000):
        reached = COUNT if level > theta.item() else 0  # NaN reaches nothing
        rule.update_(theta, torch.tensor([reached]), silent)
        assert 0.01 * (1 - 2**-24) <= theta.item() <= 100.0
    assert theta.item() == torch.tensor(bound).item()
    # And it comes back.
    for _ in range(2000):
        rule.update_(theta, converted_of(theta, 2.0), silent)
    assert 1.8 * 0.998 * math.exp(-0.1) <= theta.item() <= 1.8 * 1.002 * math.exp(0.9)


def test_random_coincidences_keep_to_the_rate() -> None:
    """Random coincidences that change their scale all the time: a theorem, so it holds for any."""
    generator = torch.Generator().manual_seed(2)
    rule = AdaptiveThreshold(0.03, 0.5, low=1e-12, high=1e12, start=1.0)
    units, steps = 6, 3000
    theta, silent = torch.ones(units), torch.full((units,), COUNT)
    total, drift = torch.zeros(units, dtype=torch.float64), torch.zeros(units)
    for _ in range(steps):
        drift = 0.99 * drift + 0.1 * torch.randn(units, generator=generator)
        c = torch.rand(units, COUNT, generator=generator) ** 3 * drift.exp().reshape(-1, 1)
        converted = (c >= theta.reshape(-1, 1)).sum(1)
        rule.update_(theta, converted, silent)
        total += converted.double() / COUNT
    assert (theta > 1e-11).all()
    assert (theta < 1e11).all()
    expected = 0.03 + theta.double().log() / (0.5 * steps)
    assert ((total / steps - expected).abs() <= 6 * 2.0**-24 * (1 + 1 / 0.5)).all()
    assert ((total / steps - 0.03).abs() < 0.01).all()


def test_units_without_silent_synapses_stay() -> None:
    rule = AdaptiveThreshold(0.1, 1.0)
    theta = torch.tensor([1.0, 1.0, 0.5])
    rule.update_(theta, torch.tensor([0, 0, 4]), torch.tensor([0, 10, 10]))
    expected = torch.tensor([1.0, math.exp(-0.1), 0.5 * math.exp(0.3)])
    assert torch.allclose(theta, expected, rtol=4 * 2.0**-23, atol=0)
    assert theta[0] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target must be finite and > 0"),
        ({"target": 1.0}, "target must be a share"),
        ({"gain": -1.0}, "gain must be"),
        ({"gain": 81.0}, "gain must be at most 80"),
        ({"low": 2.0}, r"start must be in \[low, high\] = \[2.0, "),
        ({"high": math.inf}, "high must be finite"),
        ({"low": 1e-40, "start": 1e-40}, "low and high must be in"),
        ({"start": "1"}, "start must be a number"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptiveThreshold(**options)


def test_in_a_layer_its_units_convert_at_the_rate_that_is_wanted() -> None:
    """Thousands of passes over a layer whose synapses go silent again, so that the reserve does not run out."""
    generator = torch.Generator().manual_seed(0)
    fan_in, units, steps, target = 64, 8, 3000, 0.02
    rule = AdaptiveThreshold(target, 1.0, low=1e-6, high=1e6, start=1e-3)
    layer = SilentLinear(fan_in, units, silent=1.0, threshold=rule)
    full = layer.silent.clone()
    rates = torch.zeros(units, dtype=torch.float64)
    anchor = ops.materialize(layer.init, layer.weight.shape)
    for step in range(steps):
        scale = 100.0 if step > steps / 2 else 1.0  # the input changes for good
        pre, post = scale * torch.rand(fan_in, generator=generator), torch.rand(units, generator=generator)
        conversions = ops.synapse_step_(
            layer.weight, torch.zeros_like(layer.weight), anchor, 1.0, layer.silent, pre, post,
            lr=0.0, scale=1.0, **layer.insertion(),
        )  # fmt: skip
        rates += conversions.converted.double() / fan_in
        layer.passed(conversions)
        with torch.no_grad():  # all silent again
            layer.silent.copy_(full)
            layer.weight.zero_()
            layer.silent_count.fill_(fan_in)
    expected = target + (layer.threshold.double() / 1e-3).log() / steps
    assert ((rates / steps - expected).abs() <= 6 * 2.0**-24 * 2).all()
    assert torch.equal(layer.changes[0], (rates * fan_in).round().long())
    # log(100 * 64 / 1e-3 ...) is at most log(1e6) here: the rate is the target to within log(1e6) / steps.
    assert ((rates / steps - target).abs() < math.log(1e6) / steps).all()
    assert torch.equal(layer.state_dict()["threshold"], layer.threshold)
