"""The learners in plain PyTorch agree with flexkern's, and the split of a speed-up by causes adds up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flexkern.benchmarks import causes
from flexkern.benchmarks.bench_artsy import Inference, agree
from flexkern.benchmarks.bench_artsy_training import Epochs
from flexkern.benchmarks.bench_learner import Items, sgd
from flexkern.benchmarks.case import CPU, Comparison, Setting
from flexkern.benchmarks.causes import Ways, as_written, one_operator, one_pass
from flexkern.benchmarks.factors import CAUSES, split
from flexkern.benchmarks.peers import formula
from flexkern.benchmarks.peers.ease import Ease
from flexkern.benchmarks.peers.mlp import update_by_hand
from flexkern.benchmarks.profiling import CATEGORIES, profile
from flexkern.benchmarks.run import verify, weigh

QUICK = Setting(CPU, quick=True)
BY_CAUSES = {
    "causes/mlp-item": causes.mlp_item,
    "causes/artsy-inference": causes.artsy_inference,
    "causes/artsy-training": causes.artsy_training,
}


# ---------------------------------------------------------------------- the classifier


@pytest.mark.parametrize("update", [formula.update, update_by_hand, one_pass])
def test_flexible_peers_have_the_learners_weights(update: Callable[..., None]) -> None:
    items = Items(QUICK, "step")
    items.agrees(items.flexible(update))


@pytest.mark.parametrize("gate", ["step", "item"])
def test_both_gates_agree(gate: str) -> None:
    items = Items(QUICK, gate)
    items.agrees(items.flexible(formula.update))
    items.agrees_where_free()
    items.agrees_with_itself(fused_step=False)


@pytest.mark.parametrize("gate", ["step", "item"])
def test_another_rule_does_not_agree(gate: str) -> None:
    """The bound tells the flexible update from plain SGD, and one flexibility from another."""
    items = Items(QUICK, gate)
    with pytest.raises(AssertionError, match="apart"):
        items.agrees(sgd)
    with pytest.raises(AssertionError, match="apart"):
        items.agrees_with_itself(network="stable")


def test_a_peer_learns_the_items_of_a_learner() -> None:
    """Also when it has learned some: its order of inputs is the learner's, item by item."""
    items = Items(QUICK, "step")
    losses: list[list[float]] = [[], []]
    learner, plain = items.learner(), items.plain(items.flexible(formula.update))
    for seed in (5, 6, 7):
        item = items.make_item(3 * items.batch, seed)
        learner.learn(item, epochs=2, progress=lambda p: losses[0].append(p.loss))
        losses[1].append(plain.learn(item.train_inputs, item.train_labels, epochs=2))
    assert losses[0][1::2] == pytest.approx(losses[1], rel=1e-5)  # sums of 48 losses of order 1


# ---------------------------------------------------------------------- Artsy


@pytest.mark.parametrize("opened", [1, 2, 3])
def test_inference_is_that_of_whole_passes(opened: int) -> None:
    pytest.importorskip("transformers")
    inference = Inference(3, opened, batch=5)
    ease = inference.ease()
    ours = inference.ours()
    agree(ours, inference.passes(ease))
    assert int((ours[:, 1:] != 0).any(2).sum()) == 5 * opened
    ways = Ways(inference, QUICK)
    for way in (ways.open_only, ways.shared_trunk, ways.one_batch):
        agree(ours, way())


def test_other_adapters_do_not_agree() -> None:
    pytest.importorskip("transformers")
    inference = Inference(2, batch=3)
    ease = inference.ease()
    ease.adapters[0][-1].up.bias.data[0] += 0.02  # 0.002 in one entry of tokens of order 0.1
    with pytest.raises(AssertionError):
        agree(inference.ours(), inference.passes(ease))


def test_training_goes_as_in_plain_pytorch() -> None:
    pytest.importorskip("transformers")
    epochs = Epochs(QUICK)
    for adapters in (None, as_written, one_operator):
        epochs.agrees(adapters)


def test_other_training_does_not_agree() -> None:
    pytest.importorskip("transformers")

    def scaled(ease: Ease) -> None:
        ease.adapters[0][2].scale *= 1.01

    with pytest.raises(AssertionError, match="apart"):
        Epochs(QUICK).agrees(scaled)


# ---------------------------------------------------------------------- causes


def by_causes(name: str) -> Comparison:
    if name != "causes/mlp-item":
        pytest.importorskip("transformers")
    return BY_CAUSES[name](QUICK)


@pytest.mark.parametrize("name", BY_CAUSES)
def test_a_split_multiplies_to_the_whole(name: str) -> None:
    """On made-up times: a step's figure is the median of its ratios, whatever they are."""
    comparison = by_causes(name)
    verify(comparison)
    generator = torch.Generator().manual_seed(len(name))
    times = (0.1 + torch.rand((1 + len(comparison.peers), 7), generator=generator)).tolist()
    row = {"case": name, **weigh(comparison, times, [None] * len(times), None)}
    causes_of = split(row)
    assert [cause for cause, _ in causes_of] == list(CAUSES[name])
    assert math.prod(factor for _, factor in causes_of) == pytest.approx(row["peers"][0]["speedup"], rel=1e-12)
    last = [peer["speedup"] for peer in row["peers"]][-1]
    assert causes_of[-1][1] == last


def test_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="causes/mlp-item"):
        split({"case": "learner/item", "peers": []})
    with pytest.raises(ValueError, match="not the figures"):
        split({"case": "causes/mlp-item", "skipped": "no"})
    with pytest.raises(ValueError, match="1 steps, but 4 causes"):
        split({"case": "causes/mlp-item", "peers": [{"speedup": 2.0}]})


@pytest.mark.parametrize("name", BY_CAUSES)
def test_categories_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the time of the call, which torch's profiler tells as that of the range around it."""
    comparison, totals = by_causes(name), []

    class Watched(torch.profiler.profile):
        def events(self) -> Any:
            found = super().events()
            totals.append(max(e.cpu_time_total for e in found if e.name == "flexkern.benchmarks.profiling"))
            return found

    monkeypatch.setattr(torch.profiler, "profile", Watched)
    seconds = profile(comparison.ours)
    assert tuple(seconds) == CATEGORIES
    assert all(s >= 0 for s in seconds.values())
    # Times are kept in whole nanoseconds, a few thousand events.
    assert sum(seconds.values()) == pytest.approx(totals[0] / 1e6, rel=1e-3)
    present = {
        "causes/mlp-item": ("products", "product and update", "update"),
        "causes/artsy-inference": ("products", "attention", "adapter"),
        "causes/artsy-training": ("products", "attention", "adapter", "update"),
    }[name]
    assert all(seconds[category] > 0 for category in present)


def test_an_adapters_backward_pass_is_the_adapters() -> None:
    """Nothing but one adapter: what autograd does counts as its own, but for bookkeeping."""
    adapter = causes.Adapter(256, 32)
    x, residual = (torch.randn(64, 32, 256, requires_grad=True) for _ in range(2))
    seconds = profile(lambda: torch.autograd.backward(adapter(x, residual), torch.ones(64, 32, 256)))
    assert seconds["adapter"] > 0
    assert seconds["products"] == seconds["attention"] == 0
