"""Artsy's inference, one pass for E0 and one batch of (image, open task) pairs, against EASE's passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.benchmarks.case import (
    CPU,
    GPU,
    Comparison,
    Goal,
    Peer,
    Setting,
    Skip,
    Work,
    at_most,
    case,
    faster,
)
from flexkern.benchmarks.peers.ease import Ease
from flexkern.nn import AdapterBank, PagedAdapterBank, attach_adapters

__all__ = ["Inference", "agree", "backbone", "precision", "shape"]

BACKENDS = ("triton",)  # adapters have no CUDA C++ kernel
RANKS = {"small": 16, "vit-b16": 64}
HALF = "adapters in the last half of the blocks, "  # of a title


def backbone(size: str, device: str) -> nn.Module:
    """A vision transformer with random weights.

    Raises:
        Skip: if transformers is not installed.
    """
    torch.manual_seed(0)
    # On a CPU, transformers' own attention is faster than torch's fused one at these sizes.
    options = {"attn_implementation": "eager"} if device == CPU else {}
    try:
        return backbones.random_backbone(size, **options).to(device)
    except ImportError as error:
        raise Skip(str(error)) from error


class Inference:
    """A frozen network with adapters of ``tasks`` tasks, images, and a gate that opens ``opened`` for each.

    Args:
        tasks: T.
        opened: how many synapses are open for each image, 0 to T.
        size: of the network, see :func:`flexkern.backbones.random_backbone`.
        batch: how many images.
        device: where.
        half: adapters are in the last half of the blocks.
        offload: where adapters lie, see :class:`flexkern.nn.PagedAdapterBank`; "none": all are on the device.
        resident_tasks: how many tasks the device has room for then.

    Attributes:
        bank, adapted: what ours runs.
        images: [batch, 3, h, w].
        openings: [batch, tasks], 1 where a synapse is open.

    Raises:
        Skip: if transformers is not installed.
    """

    def __init__(
        self,
        tasks: int,
        opened: int = 1,
        *,
        size: str = "small",
        batch: int = 64,
        device: str = CPU,
        half: bool = False,
        offload: str = "none",
        resident_tasks: int = 8,
    ) -> None:
        network = backbone(size, device)
        config: Any = network.config  # of transformers
        self.tasks, self._size, self._device = tasks, size, device
        blocks = config.num_hidden_layers // (2 if half else 1)
        sizes = blocks, config.hidden_size, RANKS[size]
        self.bank = (
            AdapterBank(*sizes, device=device)
            if offload == "none"
            else PagedAdapterBank(*sizes, device=device, offload=offload, resident_tasks=resident_tasks)
        )
        for _ in range(tasks):
            self.bank.add_task()
        with torch.no_grad():
            for p in self.bank.parameters():
                p.normal_(std=0.05)
        self.bank.freeze()
        self.adapted = attach_adapters(network, self.bank, blocks=blocks).eval()
        self.images = torch.rand(batch, 3, config.image_size, config.image_size, device=device)
        first = torch.arange(batch) * tasks // batch
        self.openings = torch.zeros(batch, tasks, device=device)
        for k in range(opened):
            self.openings[torch.arange(batch), (first + k) % tasks] = 1

    @torch.no_grad()
    def ours(self) -> Tensor:
        """[batch, 1 + tasks, width]: features of E0 and of each open sub-network; 0 where one is silent."""
        trunk = self.adapted.trunk(self.images)
        h0 = self.adapted.features(trunk)
        task, image = self.openings.T.nonzero(as_tuple=True)
        opened = self.adapted.features(trunk, task.to(torch.int32), image)
        spaces = h0.new_zeros((len(h0), 1 + self.tasks, h0.shape[1]))
        spaces[:, 0] = h0
        spaces[image, 1 + task] = opened
        return spaces

    def ease(self) -> Ease:
        """The same network and adapters as EASE's authors have them."""
        return Ease(backbone(self._size, self._device), self.bank)

    @torch.no_grad()
    def passes(self, ease: Ease) -> Tensor:
        """What :meth:`ours` gives, by EASE's T + 1 whole passes; the silent ones masked afterwards."""
        spaces = ease(self.images)
        spaces[:, 1:] *= self.openings[:, :, None].to(spaces)
        return spaces

    def work(self) -> Work:
        """Operations of the passes that are needed: products and attention of the network, and adapters."""
        config: Any = self.adapted.model.config
        bank = self.bank
        tokens, d = 1 + (config.image_size // config.patch_size) ** 2, config.hidden_size
        block = 2 * tokens * (4 * d * d + 2 * d * config.intermediate_size) + 4 * tokens * tokens * d
        adapter = 4 * tokens * d * bank.rank
        embedding = 2 * (tokens - 1) * d * 3 * config.patch_size**2
        images, pairs = len(self.images), int(self.openings.sum())
        operations = images * (embedding + config.num_hidden_layers * block)
        operations += pairs * ((bank.layers - 1) * block + bank.layers * adapter)
        return Work(0, operations, "bfloat16" if self._device == GPU else "float32")


def shape(at: Setting) -> tuple[str, int]:
    """Network and batch: the small one and 64 images on a CPU; ViT-B/16 and 128 on a GPU."""
    return ("vit-b16", 128) if at.device == GPU and not at.quick else ("small", at.size(64, 6))


def precision(at: Setting) -> AbstractContextManager[object]:
    """Mixed precision on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if at.device == GPU else nullcontext()


def described(at: Setting) -> str:
    size, batch = shape(at)
    return f"{'ViT-B/16, bf16' if size == 'vit-b16' else 'small ViT'}, {batch} images{at.suffix()}"


def make(at: Setting, tasks: int, opened: int = 1, *, half: bool = False) -> Inference:
    size, batch = shape(at)
    return Inference(tasks, opened, size=size, batch=batch, device=at.device, half=half)


def mixed(at: Setting, call: Callable[[], object]) -> Callable[[], object]:
    """The call in the precision of the case."""

    def run() -> object:
        with precision(at):
            return call()

    return run if at.device == GPU else call


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Two ways through the network, both in float32, after its last norm: values of order 1.

    Sums of d to 4 d values in another order, about ten in each block, a block's errors on top of the last's:
    10 * 12 * sqrt(3072) * 2^-24 = 4e-4 for the largest network.
    """
    torch.testing.assert_close(ours, theirs, rtol=4e-4, atol=4e-4)
    assert bool((ours[:, 1:] != 0).any())


def ease_name(tasks: int) -> str:
    return f"EASE, {tasks + 1} whole passes"


def inference(at: Setting, tasks: int, goal: Goal, *, half: bool = False) -> Comparison:
    ours = make(at, tasks, half=half)
    ease = ours.ease()
    passes = partial(ours.passes, ease)
    count = "1 task" if tasks == 1 else f"{tasks} tasks"
    return Comparison(
        f"Artsy inference, {count}, 1 open synapse per image, {HALF if half else ''}{described(at)}",
        mixed(at, ours.ours),
        [Peer(ease_name(tasks), mixed(at, passes), lambda: agree(ours.ours(), passes()), goal)],
        ours.work(),
    )


def goal_at(at: Setting, cpu: float, gpu: float) -> Goal:
    return faster(gpu if at.device == GPU else cpu)


@case("artsy/inference-1")
def inference_1(at: Setting) -> Comparison:
    return inference(at, 1, faster(0.9))


@case("artsy/inference-10", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def inference_10(at: Setting) -> Comparison:
    return inference(at, at.size(10, 3), goal_at(at, 6.0, 4.5))


@case("artsy/inference-50", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def inference_50(at: Setting) -> Comparison:
    return inference(at, at.size(50, 5), goal_at(at, 28.0, 20.0))


@case("artsy/inference-half", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def inference_half(at: Setting) -> Comparison:
    return inference(at, at.size(10, 3), goal_at(at, 9.0, 6.0), half=True)


@case("artsy/flat", devices=(CPU, GPU), backends=BACKENDS)
def flat(at: Setting) -> Comparison:
    many, one = make(at, at.size(50, 5)), make(at, 1)
    return Comparison(
        f"Artsy inference, {many.tasks} tasks, 1 open synapse per image, {described(at)}",
        mixed(at, many.ours),
        [Peer("the same with 1 task", mixed(at, one.ours), "other adapters", at_most(1.15))],
        many.work(),
    )


@case("artsy/open-5", devices=(CPU, GPU), backends=BACKENDS)
def open_5(at: Setting) -> Comparison:
    five, one = make(at, at.size(10, 6), 5), make(at, at.size(10, 6), 1)
    ease = five.ease()
    return Comparison(
        f"Artsy inference, {five.tasks} tasks, 5 open synapses per image, {described(at)}",
        mixed(at, five.ours),
        [
            Peer("the same with 1 open", mixed(at, one.ours), "it answers less", at_most(3.3)),
            Peer(
                ease_name(five.tasks),
                mixed(at, partial(five.passes, ease)),
                lambda: agree(five.ours(), five.passes(ease)),
            ),
        ],
        five.work(),
        note=f"work alone says {five.work().operations / one.work().operations:.2f} times that of one open",
    )
