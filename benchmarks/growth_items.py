"""An item's time, and the memory, as a learner of a thousand items goes on: both should stay what they were."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from flexkern.benchmarks.case import CPU, GPU, Point, Setting, Skip, series
from flexkern.benchmarks.peers.mlp import PlainMLP, PlainSGD
from flexkern.benchmarks.timing import quartiles, sample
from flexkern.learners import MetaplasticMLP
from flexkern.measure import used_mb
from flexkern.streams import Experience

__all__ = ["item_memory", "item_number"]

CLASSES, LR, SEED = 10, 1e-2, 0
OURS, RESERVE, PLAIN = (
    "flexkern",
    "flexkern, half of it silent at first",
    "plain SGD, torch.optim.SGD(fused=True)",
)
Learn = Callable[[Experience], object]


class Size:
    """How large the network and its items are: on a GPU so that steps take longer than their launches."""

    def __init__(self, at: Setting) -> None:
        on_gpu = at.device == GPU
        self.device = at.device
        self.features = at.size(784, 64)
        width = at.size(4096 if on_gpu else 256, 32)
        self.widths = (width, width)
        self.batch = at.size(256 if on_gpu else 64, 16)
        self.inputs = at.size(1024 if on_gpu else 256, 32)
        self.items = at.size(1000, 12)
        self.points = at.size(25, 4)


def make_items(size: Size) -> list[Experience]:
    """A few random items that learners meet again and again, so that the stream itself takes no memory."""
    generator = torch.Generator().manual_seed(1)
    items = []
    for number in range(8):
        inputs = torch.randn((size.inputs, size.features), generator=generator).relu()
        labels = torch.randint(CLASSES, (size.inputs,), generator=generator)
        items.append(Experience(f"item {number}", number, inputs, labels, inputs[:1], labels[:1]))
    return items


def ours(size: Size, silent_fraction: float = 0.0) -> Learn:
    """The learner as it is by default: alpha is taken once per item and kept."""
    learner = MetaplasticMLP(
        (size.features,), CLASSES, widths=size.widths, lr=LR, batch_size=size.batch, seed=SEED,
        device=size.device, silent_fraction=silent_fraction,
    )  # fmt: skip
    return lambda item: learner.learn(item, epochs=1)


def plain(size: Size) -> Learn:
    """The same network and the same number of steps in plain PyTorch."""
    torch.manual_seed(SEED)
    sizes = itertools.pairwise((size.features, *size.widths, CLASSES))
    layers = [nn.Linear(fan_in, fan_out, device=size.device) for fan_in, fan_out in sizes]
    network = PlainMLP(layers, partial(PlainSGD, lr=LR), seed=SEED, batch_size=size.batch)
    return lambda item: network.learn(item.train_inputs.to(size.device), item.train_labels.to(size.device))


LEARNERS: dict[str, Callable[[Size], Learn]] = {
    OURS: ours,
    RESERVE: lambda size: ours(size, 0.5),
    PLAIN: plain,
}


@series(
    "growth/item-number",
    title="Time of an item",
    x="item number",
    y="seconds",
    devices=(CPU, GPU),
    flat=True,
)
def item_number(at: Setting) -> Iterator[Point]:
    """Quartiles over the items of a stretch, at its middle; all learners learn every item.

    784-256-256-10 and 256 inputs per item; on a GPU 784-4096-4096-10 and 1,024.
    """
    size = Size(at)
    items = make_items(size)
    for build in LEARNERS.values():  # what is done once a process is no part of the first item
        build(size)(items[0])
    learners = {line: build(size) for line, build in LEARNERS.items()}
    for numbers in np.array_split(np.arange(1, size.items + 1), size.points):
        times: dict[str, list[float]] = {line: [] for line in learners}
        for number in numbers:
            item = items[number % len(items)]
            for line, learn in learners.items():
                times[line].append(sample(lambda learn=learn, item=item: learn(item), at.device))
        yield Point(float(numbers.mean()), {line: quartiles(seconds) for line, seconds in times.items()})


@series(
    "growth/item-memory",
    title="Memory that a learner holds after an item",
    x="item number",
    y="MB",
    devices=(CPU, GPU),
    flat=True,
)
def item_memory(at: Setting) -> Iterator[Point]:
    """Over what there was before the learner was made, quartiles over a stretch; one learner after another."""
    size = Size(at)
    size.inputs = size.batch  # how many steps an item has makes no difference to what is kept
    items = make_items(size)
    stretches = np.array_split(np.arange(1, size.items + 1), size.points)
    values: list[dict[str, tuple[float, float, float]]] = [{} for _ in stretches]
    for line, build in LEARNERS.items():
        gc.collect()
        before = in_use(at.device)
        learn = build(size)
        for numbers, point in zip(stretches, values, strict=True):
            values_in_use = []
            for number in numbers:
                learn(items[number % len(items)])
                values_in_use.append(in_use(at.device) - before)
            point[line] = quartiles(values_in_use)
        del learn
    for numbers, point in zip(stretches, values, strict=True):
        yield Point(float(numbers.mean()), point)


def in_use(device: str) -> float:
    """Memory in use now, in MiB.

    Raises:
        Skip: where that cannot be told.
    """
    now = used_mb(device)
    if now is None:
        raise Skip("resident memory is read as Linux and the GNU C library tell it")
    return now
