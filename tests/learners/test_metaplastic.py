"""The learner: it is the paper's classifier and rule, it reproduces itself to the bit, and it resumes."""

from __future__ import annotations

import copy
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import flexkern
from flexkern.features import RandomConvolutions, extract, extract_from, fingerprint
from flexkern.learners import MetaplasticMLP, Progress
from flexkern.streams import Experience, Stream, two_digit_stream

ITEMS, WIDTHS = 3, (24, 16)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """Three easy items of random 6 x 6 digits: each digit is a pattern with noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 6, 6, generator=generator) > 0.5
    labels = torch.arange(400) % 10
    noise = torch.randint(0, 60, (400, 6, 6), generator=generator)
    images = (patterns[labels] * 180 + noise).to(torch.uint8)
    return two_digit_stream(images, labels, items=ITEMS, train_per_item=60, test_per_item=40, seed=1)


def learner(stream: Stream, **options: object) -> MetaplasticMLP:
    return MetaplasticMLP(
        stream.input_shape, stream.classes, **({"widths": WIDTHS, "lr": 0.02, "batch_size": 16} | options)
    )


def scaled(stream: Stream) -> Stream:
    """The images as features of about size 1."""
    return extract(stream, RandomConvolutions(4, kernel=3, grid=4).calibrate(stream[0].train_inputs))


def bits(learner: MetaplasticMLP) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in learner.model.parameters()]


# ----------------------------------------------------------------- the network and the rule


def test_it_is_the_papers_classifier(stream: Stream) -> None:
    net = learner(stream, widths=(50, 40), seed=7)
    kinds = [type(layer) for layer in net.model]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(144, 50), (50, 40), (40, ITEMS)]
    for layer, (fan_in, fan_out) in zip(net.model[::2], sizes, strict=True):
        assert layer.weight.shape == (fan_out, fan_in)
        assert (layer.bias == 0).all()
        # Mean and deviation of n normal values stray by std / sqrt(n) and std / sqrt(2 n): five of each.
        n, std = fan_in * fan_out, math.sqrt(2 / (fan_in + fan_out))
        assert abs(layer.weight.mean()) < 5 * std / math.sqrt(n)
        assert abs(layer.weight.std() - std) < 5 * std / math.sqrt(2 * n)


def train_by_hand(
    stream: Stream, net: MetaplasticMLP, flexibility: float | None, scale: float, epochs: int
) -> list[torch.Tensor]:
    """The release's loop, written out in float64 from the formula: alpha once per item, from the weights."""
    model = copy.deepcopy(net.model).double()
    anchors = [p.detach().clone() for p in model.parameters()]
    fields = [
        flexkern.ops.flexibility_field(p.shape, seed=net.seed, stream=i).double()
        if flexibility is None
        else torch.full_like(p, flexibility)
        for i, p in enumerate(anchors)
    ]
    for item, e in enumerate(stream):
        alphas = []
        for p, a, f in zip(model.parameters(), anchors, fields, strict=True):
            k = scale * (1 - f) / f * (p.detach() - a).abs()
            alphas.append(1 - k.tanh() ** 2 if p.dim() > 1 else torch.ones_like(p))
        for epoch in range(epochs):
            order = torch.from_numpy(
                np.random.default_rng([net.seed, item, epoch]).permutation(len(e.train_labels))
            )
            for batch in order.split(16):
                model.zero_grad()
                x = e.train_inputs[batch].flatten(1).double()
                nn.functional.cross_entropy(model(x), e.train_labels[batch]).backward()
                with torch.no_grad():
                    for p, alpha in zip(model.parameters(), alphas, strict=True):
                        p -= 0.02 * alpha * p.grad
    return list(model.parameters())


@pytest.mark.parametrize(("network", "flexibility"), [("conventional", 1.0), ("hybrid", None), ("stable", 0.3)])
def test_learning_is_the_releases_loop(stream: Stream, network: str, flexibility: float | None) -> None:
    features = scaled(stream)
    net = learner(features, network=network, scale=200.0, seed=5)
    expected = train_by_hand(features, net, flexibility, 200.0, epochs=2)
    for e in features:
        net.learn(e, epochs=2)
    # In the 16 steps of an item a weight of up to 0.5 gathers 16 * 0.5 * 2^-25 = 2.4e-7 of rounding. It changes
    # k by up to 200 * 7/3 * 2.4e-7 = 1.1e-4 (f = 0.3), alpha, whose slope is at most 0.77, by 8.5e-5, and what
    # an item adds to a weight, at most 0.3, by 2.6e-5. The items move weights of every layer by over 0.05.
    for p, q in zip(net.model.parameters(), expected, strict=True):
        assert (p.double() - q).abs().max() < 2.6e-5


@pytest.mark.parametrize("gate", ["item", "step"])
def test_auto_scale_is_measured_over_the_first_item(stream: Stream, gate: str) -> None:
    features = scaled(stream)
    net = learner(features, gate=gate)
    assert net.optimizer.scales() == [None]
    net.learn(features[0], epochs=2)
    (measured,) = net.optimizer.scales()
    assert measured is not None
    assert measured > 0
    # The first item has alpha = 1 with either gate; from then on the measured number is the scale.
    given = learner(features, gate="item", scale=measured)
    given.learn(features[0], epochs=2)
    assert bits(given) == bits(net)
    given.optimizer.param_groups[0]["gate"] = gate
    for e in features[1:]:
        net.learn(e, epochs=2)
        given.learn(e, epochs=2)
    assert net.optimizer.scales() == [measured]
    assert bits(given) == bits(net)


def test_anchors_are_not_stored(stream: Stream) -> None:
    net = learner(stream)
    net.learn(stream[0], epochs=1)
    assert not any(isinstance(state.get("anchor"), torch.Tensor) for state in net.optimizer.state.values())


@pytest.mark.parametrize("network", ["conventional", "hybrid"])
def test_it_learns_each_item(stream: Stream, network: str) -> None:
    # That the hybrid network also remembers them is shown on real digits, in test_demo.py.
    features = scaled(stream)
    net = learner(features, network=network, widths=(64, 64), lr=0.05)
    for e in features:
        net.learn(e, epochs=2)
        assert net.evaluate(features).accuracies[e.number] > 0.8


# ----------------------------------------------------------------- the same bits


def test_one_seed_gives_the_same_bits_whatever_the_global_generator(stream: Stream) -> None:
    runs = []
    for global_seed, seed in ((1, 4), (2, 4), (2, 5)):
        torch.manual_seed(global_seed)
        net = learner(stream, seed=seed)
        for e in stream:
            net.learn(e, epochs=2)
        runs.append(bits(net))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_learning_leaves_the_global_generator_alone(stream: Stream) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = learner(stream, features=RandomConvolutions(2, kernel=3, grid=2))
    net.learn(stream[0], epochs=1)
    assert torch.equal(before, torch.get_rng_state())


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"gate": "step", "momentum": 0.5, "scale": 300.0},
    {"network": "stable"},
    {"network": 0.0, "scale": 1.0},
    {"network": "conventional"},
    {"network": flexkern.Field.uniform(3, 9, low=0.5)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_resumes_to_the_bit_after_each_item_and_inside_items(
    stream: Stream, options: dict, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    features = scaled(stream)
    straight = learner(features, **options)
    stops: list[Path] = []

    def save(p: Progress) -> None:
        stops.append(tmp_path / f"{p.item}-{p.epoch}.safetensors")
        straight.save(stops[-1])

    for e in features:
        straight.learn(e, epochs=3, progress=save)
        stops.append(tmp_path / f"{e.number}-end.safetensors")
        straight.save(stops[-1])
    assert len(stops) == 12
    for stop in stops:
        resumed = MetaplasticMLP.load(stop)
        for e in features[resumed.items_learned :]:
            resumed.learn(e, epochs=3)
        assert bits(resumed) == bits(straight), stop.name
        assert resumed.optimizer.scales() == straight.optimizer.scales()


def test_a_stopped_item_goes_on_with_the_next_epoch(stream: Stream) -> None:
    class Stop(Exception):  # noqa: N818 - it is a signal
        pass

    def stop(p: Progress) -> None:
        if p.epoch == 2:
            raise Stop

    straight, stopped = learner(stream), learner(stream)
    straight.learn(stream[0], epochs=4)
    with pytest.raises(Stop):
        stopped.learn(stream[0], epochs=4, progress=stop)
    with pytest.raises(ValueError, match=r"was begun \(2 epochs are done\) and not ended"):
        stopped.learn(stream[1], epochs=4)
    seen: list[Progress] = []
    stopped.learn(stream[0], epochs=4, progress=seen.append)
    assert [p.epoch for p in seen] == [3, 4]
    assert bits(stopped) == bits(straight)


# ----------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_tensors_and_json_and_keeps_the_extractor_honest(
    stream: Stream, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    extractor = RandomConvolutions(3, kernel=3, grid=3).calibrate(stream[0].train_inputs)
    net = learner(stream, features=extractor, momentum=0.9)
    net.learn(stream[0], epochs=1)
    path = tmp_path / "net.safetensors"
    net.save(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    record = json.loads(header["__metadata__"]["flexkern"])
    assert record["configuration"]["widths"] == list(WIDTHS)
    assert {name.split(".")[0] for name in header if name != "__metadata__"} == {"model", "optimizer"}
    assert not any(name.endswith("anchor") for name in header)

    again = MetaplasticMLP.load(path, features=extractor)
    assert torch.equal(again.predict(stream[1].test_inputs), net.predict(stream[1].test_inputs))
    with pytest.raises(ValueError, match="it had another one"):
        MetaplasticMLP.load(path, features=RandomConvolutions(3, kernel=3, grid=3))
    with pytest.raises(ValueError, match="not the extractor"):
        MetaplasticMLP.load(path)


def test_saving_is_atomic(stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    net = learner(stream)
    path = tmp_path / "net.safetensors"
    net.save(path)
    before = path.read_bytes()
    net.learn(stream[0], epochs=1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        net.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        MetaplasticMLP.load(tmp_path / "absent")
    (tmp_path / "junk").write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="not a checkpoint, or damaged"):
        MetaplasticMLP.load(tmp_path / "junk")
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="was not written by flexkern"):
        MetaplasticMLP.load(tmp_path / "foreign")
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "other", {"flexkern": '{"learner": "Other"}'})
    with pytest.raises(ValueError, match="holds 'Other' in format None"):
        MetaplasticMLP.load(tmp_path / "other")


# ----------------------------------------------------------------- features and evaluation


class Counting(nn.Module):
    """Flattens, and counts the inputs that went through."""

    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.seen += len(x)
        return x.flatten(1).float() / 255


def test_features_are_taken_once_an_item(stream: Stream) -> None:
    module = Counting()
    net = learner(stream, features=module)
    module.seen = 0
    net.learn(stream[0], epochs=4)
    assert module.seen == len(stream[0].train_inputs)


def test_extracting_first_changes_nothing(stream: Stream) -> None:
    extractor = RandomConvolutions(3, kernel=3, grid=3).calibrate(stream[0].train_inputs)
    inside, outside = learner(stream, features=extractor), learner(extract(stream, extractor))
    inside.learn(stream[0], epochs=2)
    outside.learn(extract(stream[0], extractor), epochs=2)
    assert bits(inside) == bits(outside)
    a, b = inside.evaluate(stream), outside.evaluate(extract(stream, extractor))
    assert (a.confusion == b.confusion).all()


def test_evaluation_counts_predictions(stream: Stream) -> None:
    net = learner(stream)
    result = net.evaluate(stream)
    assert result.confusion.sum() == 40 * ITEMS
    for e, accuracy in zip(stream, result.accuracies, strict=True):
        predictions = net.predict(e.test_inputs)
        assert accuracy == (predictions == e.test_labels).double().mean().item()
        assert result.confusion[e.number, e.number] == (predictions == e.number).sum()


def test_random_convolutions_are_seeded_frozen_and_centred(stream: Stream) -> None:
    images = stream[0].train_inputs
    a, b = RandomConvolutions(6, kernel=3, grid=4, seed=2), RandomConvolutions(6, kernel=3, grid=4, seed=2)
    assert a.out_features == 96
    assert not list(a.parameters())
    assert fingerprint(a) == fingerprint(b) != fingerprint(RandomConvolutions(6, kernel=3, grid=4, seed=3))
    # Mean 0 and length 1 up to the rounding of 9 float32 values of at most 1.
    assert a.weight.sum((1, 2, 3)).abs().max() < 9 * 2**-24
    assert (a.weight.square().sum((1, 2, 3)) - 1).abs().max() < 9 * 2**-23
    assert torch.equal(a(images), b(images.unsqueeze(1)))
    # A division and a multiplication rounded twice each, through sums of 9 products of values up to 1.
    torch.testing.assert_close(a(images), a(images.float() / 255), rtol=0, atol=0)
    raw = extract_from(a, images)
    a.calibrate(images)
    centred = extract_from(a, images, batch_size=7)
    # Both are sums over n features of order 1: float32 rounds each to 2^-24 of the raw size.
    assert centred.double().mean(0).abs().max() < 2**-22 * (raw.abs().max() / a.size + 1)
    assert abs(centred.double().square().mean() - 1) < 2**-20 * (raw.abs().max() / a.size + 1)
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(None) is None


def test_random_convolutions_refuse_what_they_cannot_take() -> None:
    with pytest.raises(ValueError, match="kernel must be odd"):
        RandomConvolutions(kernel=4)
    with pytest.raises(ValueError, match="grid must be at least 1"):
        RandomConvolutions(grid=0)
    module = RandomConvolutions(2)
    with pytest.raises(ValueError, match=r"images must be \[n, h, w\]"):
        module(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        module.calibrate(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="all have the same features"):
        module.calibrate(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        extract_from(module, torch.zeros(3, 8, 8), batch_size=0)


# ----------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "plastic"}, "network must be one of .*'plastic'"),
        ({"network": 1.5}, "flexibility"),
        ({"widths": (), "silent_fraction": 0.5}, r"silent_fraction=0\.5.* no hidden layer"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"scale": -1.0}, "scale"),
        ({"lr": -1.0}, "lr"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_options_are_named(stream: Stream, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner(stream, **options)


def test_wrong_experiences_are_named(stream: Stream) -> None:
    net = learner(stream)
    before = bits(net)
    x, y = torch.zeros(4, 12, 12), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="its inputs are"):
        net.learn(Experience("a", 0, x[:, :5], y, x[:, :5], y))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 3 to 3"):
        net.learn(Experience("a", 0, x, y + 3, x, y))
    with pytest.raises(ValueError, match="no training inputs"):
        net.learn(Experience("a", 0, x[:0], y[:0], x, y))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        net.learn(stream[0], epochs=0)
    with pytest.raises(ValueError, match=r"x must be \[n, 12, 12\]"):
        net.predict(torch.zeros(4, 5, 5))
    assert bits(net) == before
