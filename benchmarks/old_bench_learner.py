"""A whole item of the paper's classifier, against the same network trained in plain PyTorch (DESIGN 4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from flexkern.learners import MetaplasticMLP
from flexkern.streams import Experience
from harness import Row

FEATURES, WIDTHS, CLASSES, BATCH = 3136, (4096, 4096), 10, 256
INPUTS, EPOCHS = 2000, 1  # an item of the release has 2,000 images (and 5 epochs, all alike)
LR, SCALE, SEED = 1e-4, 4e5, 0
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")


def make_item() -> Experience:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((INPUTS, FEATURES), generator=generator).relu()
    labels = torch.randint(CLASSES, (INPUTS,), generator=generator)
    return Experience("item", 0, inputs, labels, inputs[:10], labels[:10])


def make_learner(fused_step: bool = True) -> MetaplasticMLP:
    return MetaplasticMLP(
        (FEATURES,), CLASSES, widths=WIDTHS, lr=LR, scale=SCALE, gate="step", batch_size=BATCH, seed=SEED,
        fused_step=fused_step,
    )  # fmt: skip


class Plain:
    """The same network and the same batches in plain PyTorch; ``step`` updates the parameters."""

    def __init__(self, step: Callable[[list[nn.Parameter]], Callable[[], None]]) -> None:
        layers: list[nn.Module] = []
        for linear in (m for m in make_learner(False).model if isinstance(m, nn.Linear)):
            layers += [nn.Linear(linear.in_features, linear.out_features), nn.ReLU()]
            layers[-2].load_state_dict({"weight": linear.weight, "bias": linear.bias})
        self.model = nn.Sequential(*layers[:-1])
        self._step = step(list(self.model.parameters()))

    def learn(self, item: Experience) -> None:
        inputs, labels = item.train_inputs, item.train_labels
        for epoch in range(EPOCHS):
            order = torch.from_numpy(np.random.default_rng([SEED, 0, epoch]).permutation(INPUTS))
            for batch in order.split(BATCH):
                self.model.zero_grad()
                nn.functional.cross_entropy(self.model(inputs[batch]), labels[batch]).backward()
                self._step()


def sgd(params: list[nn.Parameter]) -> Callable[[], None]:
    return torch.optim.SGD(params, lr=LR, fused=True).step


def eager_formula(params: list[nn.Parameter]) -> Callable[[], None]:
    """The flexible update as the paper writes it, in place; biases move freely."""
    anchors = [p.detach().clone() for p in params]
    generator = torch.Generator().manual_seed(SEED)
    flexibilities = [torch.rand(p.shape, generator=generator) for p in params]

    @torch.no_grad()
    def step() -> None:
        for p, a, f in zip(params, anchors, flexibilities, strict=True):
            g = p.grad
            assert g is not None
            if p.dim() > 1:
                k = SCALE * (1 - f) / f * (p - a).abs()
                g = (1 - torch.tanh(k) ** 2) * g
            p.sub_(LR * g)

    return step


def check_agreement(item: Experience) -> None:
    """With f = 1 the learner is plain SGD: the same weights after an item, up to the rounding of gradients."""
    learner = MetaplasticMLP(
        (FEATURES,), CLASSES, widths=WIDTHS, network="conventional", lr=LR, scale=SCALE, gate="step",
        batch_size=BATCH, seed=SEED, fused_step=True,
    )  # fmt: skip
    peer = Plain(sgd)
    before = [p.detach().clone() for p in peer.model.parameters()]
    learner.learn(item, epochs=EPOCHS)
    peer.learn(item)
    for start, p, q in zip(before, learner.model.parameters(), peer.model.parameters(), strict=True):
        moved = (q - start).norm()
        assert moved > 0
        # Gradients of either are sums of at most 4096 products: relative errors of about sqrt(4096) ulp at
        # most; and a weight's own rounding in each step, 2^-24 of its size.
        steps = EPOCHS * -(-INPUTS // BATCH)
        assert (p - q).norm() <= 64 * 2**-23 * moved + steps * 2**-24 * q.norm()


def learn(learner: MetaplasticMLP, item: Experience) -> Callable[[], None]:
    return lambda: learner.learn(item, epochs=EPOCHS)


PEERS = {
    "plain SGD, torch.optim.SGD(fused=True)": (sgd, 1.15, True, 9),
    "the formula in eager PyTorch": (eager_formula, 2.0, False, 5),
}


@CPU_ONLY
@pytest.mark.parametrize("peer", PEERS)
def test_item(race: Callable[..., Row], peer: str) -> None:
    item = make_item()
    step, goal, at_most, rounds = PEERS[peer]
    if step is sgd:
        check_agreement(item)
    plain = Plain(step)
    row = Row("MLP learner, an item of 2,000, gate='step'", peer, goal, at_most=at_most)
    row.note = "3136-4096-4096-10, batch 256, fused step"
    race(row, learn(make_learner(), item), lambda: plain.learn(item), rounds=rounds, warm=1)
