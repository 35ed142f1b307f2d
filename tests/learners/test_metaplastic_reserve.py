"""The learner with a silent reserve and with the step in the backward pass."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.features import RandomConvolutions, extract
from flexkern.learners import MetaplasticMLP, Progress, Reserve, checkpoint
from flexkern.nn import AdaptiveThreshold, MetaplasticLinear, SilentLinear
from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.nn.silent.state import decode
from flexkern.streams import Stream, two_digit_stream

ITEMS, WIDTHS = 3, (24, 40)  # the second layer has a row of one word, the last of two
ADAPTIVE = AdaptiveThreshold(target=0.02, gain=5.0, start=0.5)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """Features of about size 1 of three easy items: each digit is a pattern with noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 6, 6, generator=generator) > 0.5
    labels = torch.arange(400) % 10
    noise = torch.randint(0, 60, (400, 6, 6), generator=generator)
    images = (patterns[labels] * 180 + noise).to(torch.uint8)
    items = two_digit_stream(images, labels, items=ITEMS, train_per_item=60, test_per_item=40, seed=1)
    return extract(items, RandomConvolutions(4, kernel=3, grid=4).calibrate(items[0].train_inputs))


def learner(stream: Stream, **options: object) -> MetaplasticMLP:
    given: dict[str, Any] = {"widths": WIDTHS, "lr": 0.02, "batch_size": 16, **options}
    return MetaplasticMLP(stream.input_shape, stream.classes, **given)


def learn(net: MetaplasticMLP, stream: Stream) -> MetaplasticMLP:
    for item in stream[net.items_learned :]:
        net.learn(item, epochs=2)
    return net


def silent_layers(net: MetaplasticMLP) -> list[SilentLinear]:
    return [layer for layer in net.model if isinstance(layer, SilentLinear)]


def masks(net: MetaplasticMLP) -> list[Tensor]:
    return [ops.unpack_mask(layer.silent, layer.in_features) for layer in silent_layers(net)]


def state(net: MetaplasticMLP) -> dict[str, Any]:
    """All of the network: weights, masks, thresholds, counts; tensors as bytes."""
    return {
        name: v.numpy().tobytes() if isinstance(v, Tensor) else v for name, v in net.model.state_dict().items()
    }


# ----------------------------------------------------------------- the reserve


def test_a_reserve_leaves_out_synapses_and_changes_no_other(stream: Stream) -> None:
    plain, net = learner(stream, seed=7), learner(stream, seed=7, silent_fraction=0.5)
    assert [type(layer) for layer in net.model[::2]] == [SilentLinear, SilentLinear, nn.Linear]
    for before, layer, silent in zip(plain.model[:4:2], net.model[:4:2], masks(net), strict=True):
        assert torch.equal(layer.weight, before.weight.masked_fill(silent, 0.0))
        # Each of n synapses is silent by a coin: the share strays by sqrt(1 / (4 n)); five of that.
        assert abs(silent.double().mean() - 0.5) < 5 * (4 * silent.numel()) ** -0.5
        assert (layer.bias == 0).all()
    assert torch.equal(net.model[4].weight, plain.model[4].weight)
    assert net.functional_share() == [pytest.approx(1 - s.double().mean().item()) for s in masks(net)] + [1.0]
    assert plain.functional_share() == [1.0, 1.0, 1.0]
    assert not silent_layers(plain)


def test_each_seed_and_each_layer_has_its_own_silent_synapses(stream: Stream) -> None:
    a, again, b = (learner(stream, widths=(64, 64), silent_fraction=0.5, seed=seed) for seed in (1, 1, 2))
    first, second = masks(a)  # both 64 x 64
    assert all(torch.equal(x, y) for x, y in zip(masks(a), masks(again), strict=True))
    for other in (second, *masks(b)):
        # Independent coins differ at half the 4,096 places; five deviations of 1 / 128.
        assert abs((first != other).double().mean() - 0.5) < 5 / 128


def test_what_is_never_driven_over_its_threshold_stays_silent(stream: Stream) -> None:
    net = learner(stream, silent_fraction=0.4, threshold=1e30, momentum=0.5)
    before = masks(net)
    learn(net, stream)
    for layer, silent, now in zip(silent_layers(net), before, masks(net), strict=True):
        assert torch.equal(silent, now)
        assert (layer.weight[silent] == 0).all()
    assert net.conversions() == [[0, 0, 0]] * ITEMS


@pytest.mark.parametrize("rule", ["rate", "hebbian"])
@pytest.mark.parametrize("insert", ["init", "hebbian"])
def test_a_driven_reserve_comes_alive(stream: Stream, rule: str, insert: str) -> None:
    net = learner(stream, silent_fraction=0.5, threshold=ADAPTIVE, rule=rule, insert=insert, eta=0.01)
    began = masks(net)
    shares = [net.functional_share()]
    for item in stream:
        net.learn(item, epochs=2)
        shares.append(net.functional_share())
    counts = net.conversions()
    assert len(counts) == ITEMS
    for number, layer in enumerate(silent_layers(net)):
        assert sum(item[number] for item in counts) > 0
        for item in range(ITEMS):
            more = (shares[item + 1][number] - shares[item][number]) * layer.weight.numel()
            # Shares are float32 means of float32: a few roundings of 2^-24, times at most 64 * 24 synapses.
            assert more == pytest.approx(counts[item][number], abs=0.01)
    for layer, silent, now in zip(silent_layers(net), began, masks(net), strict=True):
        assert not (now & ~silent).any()  # one way: nothing was pruned
        assert (layer.weight[now] == 0).all()
        if insert == "init":
            inserted = ops.materialize(layer.init, layer.weight.shape)[silent & ~now]
            learned = layer.weight[silent & ~now] - inserted
            assert 0 < learned.abs().mean() < inserted.abs().mean()
    assert [item[2] for item in counts] == [0] * ITEMS
    for layer in silent_layers(net):
        assert layer.threshold.unique().numel() > 1  # each unit has its own by now


def test_a_reserve_that_can_be_pruned_back(stream: Stream) -> None:
    net = learner(stream, prune=0.05)  # nothing is silent to begin with
    assert net.functional_share() == [1.0, 1.0, 1.0]
    net.learn(stream[0], epochs=2)
    assert all(0 < share < 1 for share in net.functional_share()[:2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"silent_fraction": 1.5}, ValueError, r"silent_fraction must be a share of synapses in \[0, 1\]"),
        ({"silent_fraction": "half"}, TypeError, "silent_fraction must be a number, got 'half'"),
        ({"silent_fraction": 0.5, "threshold": -1.0}, ValueError, "threshold must be >= 0, got -1.0"),
        ({"threshold": torch.ones(24)}, TypeError, "threshold must be a number or an AdaptiveThreshold"),
        ({"silent_fraction": 0.5, "rule": "stdp"}, ValueError, "rule must be one of"),
        ({"silent_fraction": 0.5, "insert": "zero"}, ValueError, "insert must be one of"),
        ({"silent_fraction": 0.5, "prune": -1.0}, ValueError, "prune must be finite and >= 0"),
    ],
)
def test_mistakes_are_named(stream: Stream, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        learner(stream, **options)


def test_the_reserve_is_one_record_or_its_fields(stream: Stream, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"silent_fraction": 0.5, "threshold": ADAPTIVE, "insert": "hebbian", "eta": 0.01}
    a, b = learner(stream, **fields), learner(stream, reserve=Reserve(**fields))
    assert a.configuration() == b.configuration()
    for net in (a, b):
        learn(net, stream)
    assert state(a) == state(b)
    b.save(tmp_path / "net")
    assert MetaplasticMLP.load(tmp_path / "net").configuration() == a.configuration()
    with pytest.raises(TypeError, match="give reserve or silent_fraction, eta, not both"):
        learner(stream, reserve=Reserve(), silent_fraction=0.5, eta=0.1)
    with pytest.raises(TypeError, match="MetaplasticMLP got an unexpected keyword argument 'silent'"):
        learner(stream, silent=0.5)


# ----------------------------------------------------------------- the fused step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "gate": "step", "scale": 50.0},
        {"silent_fraction": 0.5, "threshold": 0.05},
        {"silent_fraction": 0.5, "threshold": 0.05, "rule": "hebbian", "insert": "hebbian", "eta": 0.01},
    ],
)
def test_fused_and_unfused_agree_up_to_rounding(stream: Stream, options: dict) -> None:
    # gate="item" with a stated scale, so that both have the same scale to the bit.
    given = {"scale": 20.0, **options}
    plain, fused = (learn(learner(stream, fused_step=on, **given), stream) for on in (False, True))
    assert all(type(layer) in (MetaplasticLinear, SilentLinear) for layer in fused.model[::2])
    start = learner(stream, **given)
    for p, q, p0 in zip(
        plain.model.parameters(), fused.model.parameters(), start.model.parameters(), strict=True
    ):
        moved = (p - p0).abs().max()
        assert moved > 0.01
        # The 48 steps each round a gradient, a sum of 16 products of size 1, by up to 16 * 2^-24, of which
        # lr / (1 - momentum) enters the weight, and a weight under 1 by 2^-25. An error comes back through the
        # gradients of later steps: with lr 0.02 and curvature of size 1 it grows by e^(48 * 0.02) < 3.
        rate = 0.02 / (1 - given.get("momentum", 0.0))
        assert (p - q).abs().max() < 3 * 48 * (rate * 16 * 2**-24 + 2**-25)
    assert plain.conversions() == fused.conversions()
    for a, b in zip(masks(plain), masks(fused), strict=True):
        assert torch.equal(a, b)
    accuracies = [net.evaluate(stream).accuracies for net in (plain, fused)]
    assert (accuracies[0] == accuracies[1]).all()


def test_a_fused_learner_leaves_no_gradients_of_weights(stream: Stream) -> None:
    net = learner(stream, fused_step=True)
    net.learn(stream[0], epochs=1)
    for layer in net.model[::2]:
        assert layer.fused_step
        assert isinstance(layer.weight.grad, SteppedGrad)
        assert layer.bias.grad.shape == layer.bias.shape


# ----------------------------------------------------------------- resuming

RESERVES = [
    {"silent_fraction": 0.5, "threshold": ADAPTIVE},
    {"silent_fraction": 0.5, "threshold": ADAPTIVE, "fused_step": True},
    {"silent_fraction": 0.6, "threshold": ADAPTIVE, "rule": "hebbian", "insert": "hebbian", "eta": 0.01,
     "momentum": 0.9, "fused_step": True},
    {"silent_fraction": 0.3, "threshold": 0.0, "prune": 0.01, "gate": "step", "scale": 50.0},
    {"silent_fraction": 0.3, "threshold": 0.0},  # the reserve is used up: nothing is silent any more
    {"silent_fraction": 0.3, "threshold": 0.0, "fused_step": True},
    {"silent_fraction": 0.5, "network": "conventional", "insert": "hebbian", "eta": 0.1},
    {"fused_step": True, "momentum": 0.5, "gate": "step"},
]  # fmt: skip


@pytest.mark.parametrize("options", RESERVES)
def test_resumes_to_the_bit_after_each_epoch(stream: Stream, options: dict, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    straight = learner(stream, **options)
    stops: list[Path] = []

    def save(p: Progress) -> None:
        stops.append(tmp_path / f"{p.item}-{p.epoch}.safetensors")
        straight.save(stops[-1])

    for item in stream:
        straight.learn(item, epochs=2, progress=save)
        stops.append(tmp_path / f"{item.number}-end.safetensors")
        straight.save(stops[-1])
    assert len(stops) == 9
    for stop in stops:
        resumed = learn(MetaplasticMLP.load(stop), stream)
        assert state(resumed) == state(straight), stop.name
        assert resumed.conversions() == straight.conversions()
        assert resumed.functional_share() == straight.functional_share()


def test_a_checkpoint_of_a_reserve_is_tensors_and_json(stream: Stream, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    net = learner(stream, silent_fraction=0.5, threshold=ADAPTIVE)
    net.learn(stream[0], epochs=1)
    path = tmp_path / "net.safetensors"
    net.save(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    record = json.loads(header["__metadata__"]["flexkern"])
    assert record["configuration"]["silent_fraction"] == 0.5
    assert record["configuration"]["threshold"]["target"] == 0.02
    assert record["model"] == {}
    tensors, _ = checkpoint.read(path)
    _, conversions = decode(tensors["model.0._extra_state"])
    assert conversions == [net.conversions()[0][0]]
    assert header["model.0.silent"]["dtype"] == "I32"
    # Initial weights are procedural with a reserve too.
    assert not any(name.endswith("anchor") for name in header)
