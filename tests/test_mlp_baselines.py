"""EWC, SI, replay and joint training: each is its written formula, and each resumes to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import MetaplasticMLP, Progress
from flexkern.learners.fisher import diagonal_fisher, draw_labels, mean_squared_gradients
from flexkern.learners.mlp_baselines import MLP_METHODS, load_mlp
from flexkern.learners.mlp_penalties import ElasticMLP, IntelligentMLP
from flexkern.learners.mlp_rehearsal import JointMLP, ReplayMLP, _reservoir
from flexkern.streams import Experience, Stream

CLASSES, SIZE, LR, BATCH = 6, 20, 0.05, 16


def blobs(items: int, per_class: int = 40, seed: int = 0) -> Stream:
    """Items of two classes each, a class being a point with noise around it; all have something in common."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, SIZE, generator=generator) + 0.5

    def draw(classes: Tensor) -> tuple[Tensor, Tensor]:
        labels = classes.repeat_interleave(per_class)
        return centres[labels] + 0.4 * torch.randn(len(labels), SIZE, generator=generator), labels

    experiences = []
    for i in range(items):
        classes = torch.tensor([2 * i, 2 * i + 1])
        experiences.append(Experience(f"item {i}", i, *draw(classes), *draw(classes)))
    return Stream(experiences, CLASSES)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return blobs(3)


def make(kind: type[MetaplasticMLP], **options: Any) -> Any:
    return kind((SIZE,), CLASSES, **({"widths": (24, 16), "lr": LR, "batch_size": BATCH, "seed": 3} | options))


def bits(learner: MetaplasticMLP) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in learner.model.parameters()]


def all_bits(learner: MetaplasticMLP) -> dict[str, bytes]:
    extra = {name: value.numpy().tobytes() for name, value in learner._extra_state().items()}
    return extra | {str(i): value for i, value in enumerate(bits(learner))}


def in_float64(learner: Any) -> Any:
    """The learner, from the same weights, with all its arithmetic in float64."""
    learner.model.double()
    learner._anchors, learner._importance = learner._copies(), learner._zeros()
    if isinstance(learner, IntelligentMLP):
        learner._path = learner._zeros()
    learner._training_set = lambda inputs, labels: (inputs.double(), labels)
    return learner


def order(item: int, epoch: int, count: int) -> tuple[Tensor, ...]:
    return torch.from_numpy(np.random.default_rng([3, item, epoch]).permutation(count)).split(BATCH)


# Of two runs of at most 40 steps in float64: a gradient is made of sums of at most 400 terms up to 10, so it is
# sure to 400 * 1.1e-16 * 10; 40 steps with lr 0.05 and momentum, a sum of at most 20, that do not grow an error
# tenfold, make 400 * 1.1e-16 * 10 * 20 * 10 = 8.8e-11 of it. The changes that are compared are over 1e-3.
FLOAT64 = 8.8e-11


# ----------------------------------------------------------------- elastic weight consolidation


def test_the_squares_are_those_of_a_gradient_for_each_input(stream: Stream) -> None:
    model = make(ElasticMLP).model.double()
    x = torch.randn(30, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(30) % CLASSES
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for one, label in zip(x, labels, strict=True):
        log_p = model(one).log_softmax(0)[label]
        for total, g in zip(expected, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
            total += g**2 / 30
    found = mean_squared_gradients(model, x, labels)
    for p, a, b in zip(model.parameters(), found, expected, strict=True):
        assert a.shape == p.shape
        assert b.max() > 1e-3
        # Sums of fewer than 100 products at each of 3 layers, in float64: 300 roundings of 1.1e-16 of values
        # whose own sizes (before terms cancel in delta) are under 100.
        assert (a - b).abs().max() < 300 * 1.1e-16 * 100


def test_labels_are_drawn_from_the_models_own_answer() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    n = 10_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = draw_labels(p.log().expand(n, 4), u)
    # Evenly spread u: each class is drawn as often as its share, up to one for each of its two bounds.
    assert ((drawn.bincount(minlength=4) - n * p).abs() <= 2).all()
    assert drawn.bincount(minlength=4)[1] == 0
    assert draw_labels(torch.zeros(1, 3), torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 2


def test_fisher_is_measured_on_drawn_labels_of_at_most_so_many_inputs(stream: Stream) -> None:
    few = in_float64(make(ElasticMLP, fisher_samples=20))
    few.learn(stream[0], epochs=1)
    inputs = stream[0].train_inputs.double()
    rng = np.random.default_rng([3, 0, 0, 0, 1])
    chosen = torch.from_numpy(rng.choice(len(inputs), 20, replace=False))
    expected = diagonal_fisher(few.model, inputs[chosen], torch.from_numpy(rng.random(20)))
    for a, b in zip(few._importance, expected, strict=True):
        assert b.max() > 1e-5
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=0)
    everything, more = make(ElasticMLP, fisher_samples=80), make(ElasticMLP, fisher_samples=10**6)
    for net in (everything, more):
        net.learn(stream[0], epochs=1)
    assert all_bits(everything) == all_bits(more)


def test_fisher_information_is_a_running_sum_with_decay(stream: Stream) -> None:
    for decay in (1.0, 0.25, 0.0):
        net = make(ElasticMLP, strength=0, decay=decay)
        alone = make(ElasticMLP, strength=0, decay=0.0)
        kept = net._zeros()
        for e in stream:
            net.learn(e, epochs=1)
            alone.learn(e, epochs=1)
            kept = [decay * old + new for old, new in zip(kept, alone._importance, strict=True)]
        for a, b in zip(net._importance, kept, strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(a, p) for a, p in zip(net._anchors, net.model.parameters(), strict=True))


def test_ewc_follows_the_gradient_of_its_written_loss(stream: Stream) -> None:
    strength = 5.0
    net = in_float64(make(ElasticMLP, strength=strength))
    net.learn(stream[0], epochs=2)
    model, fisher = copy.deepcopy(net.model), [f.clone() for f in net._importance]
    anchors = [p.detach().clone() for p in model.parameters()]
    assert strength * max(f.max() for f in fisher) < 1 / LR  # or the bound would enter
    for epoch in range(2):
        for batch in order(1, epoch, 80):
            x, y = stream[1].train_inputs[batch].double(), stream[1].train_labels[batch]
            loss = nn.functional.cross_entropy(model(x), y)
            for p, f, a in zip(model.parameters(), fisher, anchors, strict=True):
                loss = loss + strength / 2 * (f * (p - a) ** 2).sum()
            descend(model, loss)
    net.learn(stream[1], epochs=2)
    free = in_float64(make(ElasticMLP, strength=0))
    for e in stream[:2]:
        free.learn(e, epochs=2)
    for p, q, r in zip(net.model.parameters(), model.parameters(), free.model.parameters(), strict=True):
        assert (p - q).abs().max() < FLOAT64
        assert (p - r).abs().max() > 1e-3


def descend(model: nn.Module, loss: Tensor, buffers: Sequence[Tensor] = (), momentum: float = 0.0) -> None:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for buffer, g in zip(buffers, gradients, strict=bool(buffers)):
            buffer.mul_(momentum).add_(g)
        for p, g in zip(model.parameters(), buffers or gradients, strict=True):
            p -= LR * g


# ----------------------------------------------------------------- synaptic intelligence


@pytest.mark.parametrize(("momentum", "epochs"), [(0.0, 2), (0.9, 4)])
def test_si_is_its_written_path_integral_and_loss(momentum: float, epochs: int, stream: Stream) -> None:
    strength, damping = 0.5, 0.1
    net = in_float64(make(IntelligentMLP, strength=strength, damping=damping, momentum=momentum))
    model = copy.deepcopy(net.model)
    parameters = list(model.parameters())
    omega = [torch.zeros_like(p) for p in parameters]  # Omega of the paper
    starts = [p.detach().clone() for p in parameters]
    buffers = [torch.zeros_like(p) for p in parameters]
    for item in range(2):
        path = [torch.zeros_like(p) for p in parameters]
        for epoch in range(epochs):
            for batch in order(item, epoch, 80):
                x, y = stream[item].train_inputs[batch].double(), stream[item].train_labels[batch]
                task = nn.functional.cross_entropy(model(x), y)
                gradients = torch.autograd.grad(task, parameters, retain_graph=True)
                before = [p.detach().clone() for p in parameters]
                penalty = sum(
                    (o * (p - s) ** 2).sum() for o, p, s in zip(omega, parameters, starts, strict=True)
                )
                descend(model, task + strength * penalty, buffers, momentum)
                for w, g, p, b in zip(path, gradients, parameters, before, strict=True):
                    w -= g * (p.detach() - b)
        net.learn(stream[item], epochs=epochs)
        for o, w, p, s in zip(omega, path, parameters, starts, strict=True):
            o += w / ((p.detach() - s) ** 2 + damping)
            o.clamp_(min=0)
            s.copy_(p.detach())
        assert 2 * strength * max(o.max() for o in omega) < 1 / LR  # or the bound would enter
        for p, q, o, importance, w in zip(
            net.model.parameters(), parameters, omega, net._importance, net._path, strict=True
        ):
            assert (p - q).abs().max() < FLOAT64
            # The damping of 0.1 divides, so that what is compared is ten times less sure.
            assert (o - importance).abs().max() < 10 * FLOAT64
            assert o.max() > 1e-3
            assert (w == 0).all()


def test_si_takes_no_negative_importance(stream: Stream) -> None:
    net = make(IntelligentMLP)
    net.learn(stream[0], epochs=1)
    before = net._importance[0].clone()

    def climb(_: Progress) -> None:
        net._path[0].fill_(-1e6)
        net._path[1].fill_(-1e-30)

    kept = net._importance[1].clone()
    net.learn(stream[1], epochs=1, progress=climb)
    assert before.max() > 0
    assert (net._importance[0] == 0).all()
    assert torch.equal(net._importance[1], kept)  # a fall too small to be seen beside it


# ----------------------------------------------------------------- both penalties


@pytest.mark.parametrize("kind", [ElasticMLP, IntelligentMLP])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_strength_0_is_the_conventional_network(kind: type, momentum: float, stream: Stream) -> None:
    net = make(kind, strength=0, momentum=momentum)
    conventional = make(MetaplasticMLP, network="conventional", momentum=momentum)
    strong = make(kind, strength=5.0, momentum=momentum)
    for e in stream:
        for one in (net, conventional, strong):
            one.learn(e, epochs=2)
        assert bits(net) == bits(conventional)
        assert (bits(strong) == bits(conventional)) == (e.number == 0)


@pytest.mark.parametrize("kind", [ElasticMLP, IntelligentMLP])
def test_a_huge_strength_holds_important_weights_one_step_from_their_anchor(kind: type, stream: Stream) -> None:
    net, free = make(kind, strength=1e30), make(kind, strength=0)
    net.learn(stream[0], epochs=2)
    free.learn(stream[0], epochs=2)
    anchors, important = net._copies(), [i > 1e-6 for i in net._importance]
    gradients: list[Tensor] = []
    original = net._before_step

    def watch() -> None:
        gradients[:] = [p.grad.clone() for p in net.model.parameters()]
        original()

    net._before_step = watch
    net.learn(stream[1], epochs=2)
    free.learn(stream[1], epochs=2)
    held = moved = 0.0
    for p, q, a, g, i in zip(
        net.model.parameters(), free.model.parameters(), anchors, gradients, important, strict=True
    ):
        assert i.sum() > i.numel() / 4
        # At the bound w - lr (g + (w - a) / lr) is a - lr g: five roundings, each by 2^-24 of at most w + lr g.
        error = (p - a + LR * g)[i].abs().max()
        assert error < 5 * 2**-24 * (p.abs().max() + LR * g.abs().max())
        held += (p - a)[i].abs().sum().item()
        moved += (q - a)[i].abs().sum().item()
    # One step of the last batch, against the sum of 10 that pull one way at first and less later.
    assert held < moved / 4


@pytest.mark.parametrize(("kind", "strength"), [(ElasticMLP, 30.0), (IntelligentMLP, 10.0)])
def test_a_penalty_keeps_what_was_learned(kind: type, strength: float) -> None:
    two = blobs(2, seed=2)
    held, free = make(kind, strength=strength), make(kind, strength=0)
    for e in two:
        held.learn(e, epochs=5)
        free.learn(e, epochs=5)
    assert free.evaluate(two).accuracies[0] < 0.2
    assert held.evaluate(two).accuracies[0] > 0.4


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


# ----------------------------------------------------------------- all of them

ALL = [
    (ElasticMLP, {"strength": 30.0, "decay": 0.5, "fisher_samples": 50}),
    (ElasticMLP, {"strength": 30.0, "momentum": 0.9}),
    (IntelligentMLP, {"strength": 3.0, "damping": 0.01}),
    (IntelligentMLP, {"momentum": 0.9}),
    (ReplayMLP, {"memory": 30, "replay_batch": 8}),
    (ReplayMLP, {"memory": 500, "momentum": 0.9}),
    (JointMLP, {}),
]


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_resumes_to_the_bit_after_each_item_and_each_epoch(
    kind: type[MetaplasticMLP], options: dict, stream: Stream, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    straight = make(kind, **options)
    stops: list[Path] = [tmp_path / "start"]
    straight.save(stops[0])

    def save(p: Progress) -> None:
        stops.append(tmp_path / f"{p.item}-{p.epoch}")
        straight.save(stops[-1])

    for e in stream:
        straight.learn(e, epochs=2, progress=save)
        stops.append(tmp_path / f"{e.number}-end")
        straight.save(stops[-1])
    assert len(stops) == 10
    for stop in stops:
        resumed = load_mlp(stop)
        assert type(resumed) is kind
        for e in stream[resumed.items_learned :]:
            resumed.learn(e, epochs=2)
        assert all_bits(resumed) == all_bits(straight), stop.name
        assert resumed._configuration == straight._configuration


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_an_exception_out_of_progress_changes_nothing(
    kind: type[MetaplasticMLP], options: dict, stream: Stream
) -> None:
    class Stop(Exception):  # noqa: N818 - it is a signal
        pass

    def stop(_: Progress) -> None:
        raise Stop

    straight, stopped = make(kind, **options), make(kind, **options)
    for e in stream:
        straight.learn(e, epochs=2)
        for _ in range(2):
            with pytest.raises(Stop):
                stopped.learn(e, epochs=2, progress=stop)
        stopped.learn(e, epochs=2)
        assert all_bits(stopped) == all_bits(straight)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_one_seed_gives_the_same_bits_and_leaves_the_global_generator(
    kind: type[MetaplasticMLP], options: dict, stream: Stream
) -> None:
    runs = []
    for global_seed, seed in ((1, 4), (2, 4), (2, 5)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        net = make(kind, seed=seed, **options)
        for e in stream[:2]:
            net.learn(e, epochs=1)
        assert torch.equal(before, torch.get_rng_state())
        runs.append(all_bits(net))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_load_mlp_reads_the_metaplastic_network_and_refuses_others(stream: Stream, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net = make(MetaplasticMLP)
    net.learn(stream[0], epochs=1)
    net.save(tmp_path / "net")
    again = load_mlp(tmp_path / "net")
    assert type(again) is MetaplasticMLP is MLP_METHODS["metaplastic"]
    assert bits(again) == bits(net)
    with pytest.raises(ValueError, match="holds 'MetaplasticMLP' in format 1; this version reads 'ReplayMLP'"):
        ReplayMLP.load(tmp_path / "net")
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "other", {"flexkern": '{"learner": "Other"}'})
    with pytest.raises(ValueError, match="holds 'Other', which is none of"):
        load_mlp(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_mlp(tmp_path / "absent")


def test_features_are_taken_inside_and_kept_honest(stream: Stream, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("directions", torch.randn(SIZE, 7, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return x.float() @ self.directions

    features = Features()
    net = make(ReplayMLP, features=features, memory=10)
    net.learn(stream[0], epochs=1)
    net.save(tmp_path / "net")
    assert net._inputs.shape == (10, 7)
    again = load_mlp(tmp_path / "net", features)
    assert all_bits(again) == all_bits(net)
    with pytest.raises(ValueError, match="not the extractor"):
        load_mlp(tmp_path / "net")


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (ElasticMLP, {"strength": -1.0}, ValueError, r"strength must be in \[0, 1e\+30\], got -1"),
        (ElasticMLP, {"strength": math.nan}, ValueError, "strength must be in"),
        (IntelligentMLP, {"strength": math.inf}, ValueError, "strength must be in .* got inf"),
        (IntelligentMLP, {"strength": "strong"}, TypeError, "strength must be a number, got 'strong'"),
        (ElasticMLP, {"decay": 1.5}, ValueError, r"decay must be in \[0, 1\], got 1.5"),
        (ElasticMLP, {"fisher_samples": 0}, ValueError, "fisher_samples must be at least 1, got 0"),
        (ElasticMLP, {"fisher_samples": 2.5}, TypeError, "fisher_samples must be a whole number, got 2.5"),
        (IntelligentMLP, {"damping": 0}, ValueError, r"damping must be in \[1e-30, 1e\+30\], got 0"),
        (ReplayMLP, {"memory": 0}, ValueError, "memory must be at least 1, got 0"),
        (ReplayMLP, {"memory": True}, TypeError, "memory must be a whole number, got True"),
        (ReplayMLP, {"replay_batch": -3}, ValueError, "replay_batch must be at least 1, got -3"),
        (JointMLP, {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (JointMLP, {"network": "hybrid"}, TypeError, "unexpected keyword argument 'network'"),
        (ReplayMLP, {"memroy": 10}, TypeError, "unexpected keyword argument 'memroy'"),
    ],
)
def test_arguments_are_checked(kind: type, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(kind, **options)


@pytest.mark.parametrize("kind", [ElasticMLP, IntelligentMLP, ReplayMLP, JointMLP])
def test_an_experience_that_does_not_fit_changes_nothing(kind: type, stream: Stream) -> None:
    net = make(kind)
    net.learn(stream[0], epochs=1)
    before = all_bits(net)
    x, y = stream[1].train_inputs, stream[1].train_labels
    with pytest.raises(ValueError, match=r"labels must be in \[0, 6\)"):
        net.learn(Experience("a", 0, x, y + 6, x, y))
    assert all_bits(net) == before
    assert net.items_learned == 1
