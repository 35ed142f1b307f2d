"""Artsy's inference: one pass for E0 and one batch of (image, open task) pairs, against EASE's pass for each task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.benchmarks.case import CPU, GPU, Contest, Goal, Peer, Setting, Skip, at_most, case, faster
from flexkern.benchmarks.peers.ease import Ease
from flexkern.nn import AdapterBank, attach_adapters

__all__ = ["Inference", "backbone"]

RANKS = {"small": 16, "vit-b16": 64}


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

    Attributes:
        bank, adapted: what ours runs.
        images: [batch, 3, h, w].
        openings: [batch, tasks], 1 where a synapse is open.

    Raises:
        Skip: if transformers is not installed.
    """

    def __init__(
        self, tasks: int, opened: int = 1, *, size: str = "small", batch: int = 64, device: str = CPU
    ) -> None:
        network = backbone(size, device)
        config = network.config
        self.tasks, self._size, self._device = tasks, size, device
        self.bank = AdapterBank(config.num_hidden_layers, config.hidden_size, RANKS[size], device=device)
        for _ in range(tasks):
            self.bank.add_task()
        with torch.no_grad():
            for p in self.bank.parameters():
                p.normal_(std=0.05)
        self.bank.freeze()
        self.adapted = attach_adapters(network, self.bank).eval()
        self.images = torch.rand(batch, 3, config.image_size, config.image_size, device=device)
        first = torch.arange(batch) * tasks // batch
        self.openings = torch.zeros(batch, tasks, device=device)
        for k in range(opened):
            self.openings[torch.arange(batch), (first + k) % tasks] = 1

    @torch.no_grad()
    def ours(self) -> Tensor:
        """[batch, 1 + tasks, width]: features of E0 and of each open sub-network; 0 where a synapse is silent."""
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
