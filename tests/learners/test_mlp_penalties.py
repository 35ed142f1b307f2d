"""EWC and SI: their formulas, step by step, against slow references."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import EWC, SI, MetaplasticMLP, Progress
from flexkern.learners.mlp.fisher import diagonal_fisher, draw_labels, mean_squared_gradients
from flexkern.streams import Stream
from helpers.mlp_blobs import CLASSES, LR, SIZE, all_bits, bits, blobs, in_float64, make, order

# ----------------------------------------------------------------- elastic weight consolidation

# Of two runs of at most 40 steps in float64: a gradient is made of sums of at most 400 terms up to 10, so it is
# sure to 400 * 1.1e-16 * 10; 40 steps with lr 0.05 and momentum, a sum of at most 20, that do not grow an error
# tenfold, make 400 * 1.1e-16 * 10 * 20 * 10 = 8.8e-11 of it. The changes that are compared are over 1e-3.
FLOAT64 = 8.8e-11


def test_the_squares_are_those_of_a_gradient_for_each_input(stream: Stream) -> None:
    model = make(EWC).model.double()
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
    few = in_float64(make(EWC, fisher_samples=20))
    few.learn(stream[0], epochs=1)
    inputs = stream[0].train_inputs.double()
    rng = np.random.default_rng([3, 0, 0, 0, 1])
    chosen = torch.from_numpy(rng.choice(len(inputs), 20, replace=False))
    expected = diagonal_fisher(few.model, inputs[chosen], torch.from_numpy(rng.random(20)))
    for a, b in zip(few._importance, expected, strict=True):
        assert b.max() > 1e-5
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=0)
    everything, more = make(EWC, fisher_samples=80), make(EWC, fisher_samples=10**6)
    for net in (everything, more):
        net.learn(stream[0], epochs=1)
    assert all_bits(everything) == all_bits(more)


def test_fisher_information_is_a_running_sum_with_decay(stream: Stream) -> None:
    for decay in (1.0, 0.25, 0.0):
        net = make(EWC, strength=0, decay=decay)
        alone = make(EWC, strength=0, decay=0.0)
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
    net = in_float64(make(EWC, strength=strength))
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
    free = in_float64(make(EWC, strength=0))
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
    net = in_float64(make(SI, strength=strength, damping=damping, momentum=momentum))
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
    net = make(SI)
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


@pytest.mark.parametrize("kind", [EWC, SI])
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


@pytest.mark.parametrize("kind", [EWC, SI])
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
    kept = moved = 0.0
    for p, q, a, g, i in zip(
        net.model.parameters(), free.model.parameters(), anchors, gradients, important, strict=True
    ):
        assert i.sum() > i.numel() / 4
        # At the bound w - lr (g + (w - a) / lr) is a - lr g: five roundings, each by 2^-24 of at most w + lr g.
        error = (p - a + LR * g)[i].abs().max()
        assert error < 5 * 2**-24 * (p.abs().max() + LR * g.abs().max())
        kept += (p - a)[i].abs().sum().item()
        moved += (q - a)[i].abs().sum().item()
    # One step of the last batch, against the sum of 10 that pull one way at first and less later.
    assert kept < moved / 4


@pytest.mark.parametrize(("kind", "strength"), [(EWC, 30.0), (SI, 10.0)])
def test_a_penalty_keeps_what_was_learned(kind: type, strength: float) -> None:
    two = blobs(2, seed=2)
    kept, free = make(kind, strength=strength), make(kind, strength=0)
    for e in two:
        kept.learn(e, epochs=5)
        free.learn(e, epochs=5)
    assert free.evaluate(two).accuracies[0] < 0.2
    assert kept.evaluate(two).accuracies[0] > 0.4
