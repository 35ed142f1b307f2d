"""Replay and joint training: what is kept, and what a step is taken on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern.learners import JointMLP, MetaplasticMLP, ReplayMLP
from flexkern.learners.mlp.replay import _reservoir
from flexkern.streams import Experience, Stream
from helpers.mlp_blobs import CLASSES, bits, blobs, make

# ----------------------------------------------------------------- replay


def test_the_reservoir_is_algorithm_r() -> None:
    for seed in range(20):
        slots: dict[int, int] = {}
        reference: dict[int, int] = {}
        seen = 0
        for item, count in enumerate((3, 1, 30, 17)):
            rows, taken, size = _reservoir(8, seen, count, np.random.default_rng([seed, item]))
            slots.update({int(s): seen + int(r) for s, r in zip(taken, rows, strict=True)})
            draws = np.random.default_rng([seed, item]).integers(0, np.arange(seen, seen + count) + 1)
            for n, j in enumerate(draws, start=seen):
                if n < 8:
                    reference[n] = n
                elif j < 8:
                    reference[int(j)] = n
            seen += count
            assert slots == reference
            assert size == len(slots) == min(8, seen)


def test_memory_is_a_uniform_sample_of_all_inputs() -> None:
    memory, counts, runs = 12, (5, 20, 35), 2000
    total = sum(counts)
    kept = np.zeros(total)
    for seed in range(runs):
        slots, seen = np.zeros(memory, dtype=int), 0
        for item, count in enumerate(counts):
            rows, taken, _ = _reservoir(memory, seen, count, np.random.default_rng([seed, item]))
            slots[taken] = seen + rows
            seen += count
        assert len(set(slots)) == memory
        kept[slots] += 1
    p = memory / total
    # Each input is kept in a share p of the runs. For samples without repeats the covariance of two inputs is
    # -p (1 - p) / (total - 1), so this is chi-square with total - 1 = 59 degrees of freedom in the limit: mean
    # 59, deviation sqrt(2 * 59) = 10.9. Six deviations: fewer than one fresh set of seeds in 10^5 fails.
    statistic = ((kept - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (total - 1) / total
    assert abs(statistic - 59) < 6 * math.sqrt(2 * 59)


def test_memory_holds_inputs_with_the_labels_that_were_told(stream: Stream) -> None:
    told = Stream([Experience(e.name, e.number, e.train_inputs, (e.train_labels + 1) % CLASSES,
                              e.test_inputs, e.test_labels) for e in stream], CLASSES)  # fmt: skip
    net = make(ReplayMLP, memory=50)
    for number, e in enumerate(told, start=1):
        net.learn(e, epochs=1)
        assert net.inputs_kept == 50
        inputs = torch.cat([e.train_inputs for e in told[:number]])
        labels = torch.cat([e.train_labels for e in told[:number]])
        same = (net._inputs[:, None] == inputs).all(2)
        assert (same.sum(1) == 1).all()
        assert torch.equal(labels[same.nonzero()[:, 1]], net._labels)
    assert net._seen == 240
    assert set(net._labels.tolist()) == set(range(CLASSES))


@pytest.mark.parametrize(("replay_batch", "expected"), [(None, 16), (5, 5), (1000, 30)])
def test_each_step_draws_from_memory_anew(replay_batch: int | None, expected: int, stream: Stream) -> None:
    net = make(ReplayMLP, memory=30, replay_batch=replay_batch)
    batches: list[tuple[Tensor, Tensor]] = []
    original = net._batch

    def watch(inputs: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        joined = original(inputs, labels, step)
        assert torch.equal(joined[0][: len(labels)], inputs)
        assert torch.equal(joined[1][: len(labels)], labels)
        batches.append((joined[0][len(labels) :], joined[1][len(labels) :]))
        return joined

    net._batch = watch
    conventional = make(MetaplasticMLP, network="conventional")
    net.learn(stream[0], epochs=2)
    conventional.learn(stream[0], epochs=2)
    assert bits(net) == bits(conventional)
    assert [len(x) for x, _ in batches] == [0] * 10
    batches.clear()
    inputs, labels = net._inputs.clone(), net._labels.clone()
    net.learn(stream[1], epochs=2)
    assert [len(x) for x, _ in batches] == [expected] * 10
    for x, y in batches:
        same = (x[:, None] == inputs).all(2)
        assert (same.sum(1) == 1).all()
        assert same.any(0).sum() == expected  # no repeats
        assert torch.equal(labels[same.nonzero()[:, 1]], y)
    assert len({x.numpy().tobytes() for x, _ in batches}) == 10


def test_replay_forgets_less() -> None:
    two = blobs(2, seed=2)
    replay, conventional = make(ReplayMLP, memory=20), make(MetaplasticMLP, network="conventional")
    for e in two:
        replay.learn(e, epochs=5)
        conventional.learn(e, epochs=5)
    # Each test set has 80 inputs of classes that hardly touch.
    assert replay.evaluate(two).accuracies.min() > 0.9
    assert conventional.evaluate(two).accuracies[1] > 0.9
    assert conventional.evaluate(two).accuracies[0] < 0.2


# ----------------------------------------------------------------- joint training


def test_joint_trains_on_everything_seen_so_far(stream: Stream) -> None:
    net, losses = make(JointMLP), []
    conventional = make(MetaplasticMLP, network="conventional")
    for e in stream:
        net.learn(e, epochs=5, progress=lambda p: losses.append(p))
        conventional.learn(e, epochs=5)
        assert net.inputs_kept == 80 * (e.number + 1)
        assert (bits(net) == bits(conventional)) == (e.number == 0)
    assert [(p.item, p.epoch) for p in losses] == [(i, e) for i in range(3) for e in range(1, 6)]
    assert net.evaluate(stream).accuracies.min() > 0.9
    assert conventional.evaluate(stream).accuracies[0] < 0.5


def test_joints_second_item_is_one_set_of_both(stream: Stream) -> None:
    net = make(JointMLP)
    net.learn(stream[0], epochs=1)
    a, b = stream[:2]
    inputs, labels = (torch.cat([getattr(e, n) for e in (a, b)]) for n in ("train_inputs", "train_labels"))
    conventional = make(MetaplasticMLP, network="conventional")
    conventional.learn(a, epochs=1)
    conventional.learn(Experience("both", 1, inputs, labels, b.test_inputs, b.test_labels), epochs=2)
    net.learn(b, epochs=2)
    assert bits(net) == bits(conventional)
