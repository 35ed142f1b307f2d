"""Several networks of the same experiment: a process for each core, or one after the other, or batched as one.

The experiments of the metaplasticity paper (``flexkern run serial-position`` and so on) train the same network
for several seeds. This is what decided how.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.benchmarks.case import Comparison, Peer, Setting, Work, case, faster
from flexkern.learners import MetaplasticMLP
from flexkern.streams import Experience

NETWORKS, LR, SCALE = 6, 0.02, 1e4
CLASSES = 10
_share: list[tuple[MetaplasticMLP, Experience]] = []  # of a worker


class Task:
    """What each network learns, and its size; plain numbers, so that a worker is told them."""

    def __init__(self, width: int, at: Setting) -> None:
        self.width = at.size(width, 16)
        self.features = at.size(2048, 32)
        self.inputs = at.size(4096, 128)
        self.batch = at.size(1024, 64)

    def item(self, seed: int) -> Experience:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn((self.inputs, self.features), generator=generator)
        labels = torch.randint(CLASSES, (self.inputs,), generator=generator)
        return Experience("item", 0, inputs, labels, inputs[:10], labels[:10])

    def learner(self, seed: int) -> MetaplasticMLP:
        widths = (self.width, self.width)
        return MetaplasticMLP(
            (self.features,), CLASSES, widths=widths, lr=LR, scale=SCALE, batch_size=self.batch, seed=seed
        )

    def operations(self) -> int:
        """Of an item of all networks: the products forward, and to the gradients of weights and inputs."""
        sizes = (self.features, self.width, self.width, CLASSES)
        products = [a * b for a, b in pairwise(sizes)]
        return NETWORKS * 2 * self.inputs * (3 * sum(products) - products[0])  # the inputs need no gradient


def _begin(task: Task, numbers: Sequence[int]) -> None:
    """In a worker: one thread, and its share of the networks."""
    torch.set_num_threads(1)
    _share.extend((task.learner(seed), task.item(seed)) for seed in numbers)


def _learn() -> None:
    learn(_share)


def learn(networks: Sequence[tuple[MetaplasticMLP, Experience]]) -> None:
    for learner, item in networks:
        learner.learn(item, epochs=1)


class Batched:
    """All networks as one, with a leading dimension: batched products, alpha kept through the item."""

    def __init__(self, task: Task) -> None:
        sizes = (task.features, task.width, task.width, CLASSES)
        models: list[Any] = [task.learner(seed).model for seed in range(NETWORKS)]  # layers by number
        self.task = task
        self.weights = [torch.stack([m[i].weight.detach() for m in models]).requires_grad_() for i in (0, 2, 4)]
        self.biases = [torch.zeros(NETWORKS, 1, size, requires_grad=True) for size in sizes[1:]]
        self.alphas = [torch.ones_like(w) for w in self.weights]
        items = [task.item(seed) for seed in range(NETWORKS)]
        self.inputs = torch.stack([e.train_inputs for e in items])
        self.labels = torch.stack([e.train_labels for e in items])
        self.items_learned = 0

    def learn(self) -> None:
        rngs = [np.random.default_rng([seed, self.items_learned, 0]) for seed in range(NETWORKS)]
        orders = torch.from_numpy(np.stack([rng.permutation(self.task.inputs) for rng in rngs]))
        every = torch.arange(NETWORKS)[:, None]
        for batch in orders.split(self.task.batch, 1):
            logits, labels = self.forward(self.inputs[every, batch]), self.labels[every, batch]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) * NETWORKS
            grads = torch.autograd.grad(loss, [*self.weights, *self.biases])
            with torch.no_grad():
                for w, alpha, g in zip(self.weights, self.alphas, grads, strict=False):
                    w.addcmul_(alpha, g, value=-LR)
                for b, g in zip(self.biases, grads[len(self.weights) :], strict=True):
                    b.sub_(g, alpha=LR)
        self.items_learned += 1

    def forward(self, x: Tensor) -> Tensor:
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(b, x.relu() if i else x, w.mT)
        return x


class Workers:
    """A pool of one process for each core, so that each has its networks to itself."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.jobs = min(NETWORKS, max(2, torch.get_num_threads()))
        shares = [range(job, NETWORKS, self.jobs) for job in range(self.jobs)]
        self.pools = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(task, share))
            for share in shares
        ]

    def learn(self) -> None:
        futures = [pool.submit(_learn) for pool in self.pools]
        wait(futures)
        for future in futures:
            future.result()  # raises what was raised there

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown()


def check_agreement(task: Task) -> None:
    """The first item, with alpha = 1: batched networks end with the weights of single ones."""
    batched = Batched(task)
    batched.learn()
    for seed in range(NETWORKS):
        learner = task.learner(seed)
        start = [p.detach().clone() for p in learner.model.parameters()]
        learner.learn(task.item(seed), epochs=1)
        theirs = [t[seed] for pair in zip(batched.weights, batched.biases, strict=True) for t in pair]
        for before, p, q in zip(start, learner.model.parameters(), theirs, strict=True):
            # Sums in another order differ by some 1e-6 of what they add. But of the 4 million times that a
            # ReLU is asked, about one finds its unit so near 0 that this decides; then one of 1,024 inputs
            # counts for one unit more or less: up to 1 % of what the weights moved.
            assert (p - q.view_as(p)).norm() <= 0.01 * (p - before).norm(), f"network {seed}"


def build(width: int, at: Setting) -> Comparison:
    task = Task(width, at)
    workers, batched = Workers(task), Batched(task)
    networks = [(task.learner(seed), task.item(seed)) for seed in range(NETWORKS)]
    peers = [
        Peer(
            "one after the other, all threads", partial(learn, networks),
            "the same learner, in another process", faster(1.0),
        ),
        Peer("batched as one network, all threads", batched.learn, partial(check_agreement, task), faster(1.0)),
    ]  # fmt: skip
    return Comparison(
        f"{NETWORKS} networks of width {task.width}, an item, a process a core",
        workers.learn,
        peers,
        Work(operations=task.operations()),
        memory=False,
        note=f"{task.features}-{task.width}-{task.width}-{CLASSES}, {task.inputs} inputs, batch {task.batch}, "
        f"{workers.jobs} processes",
        close=workers.close,
    )


for _width in (64, 256, 512):
    case(f"seeds/width-{_width}")(partial(build, _width))
