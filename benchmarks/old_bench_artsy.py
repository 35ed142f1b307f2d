"""Artsy's inference, one batch of (image, open task) pairs, against EASE's: a whole pass of the network for
each task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench_adapter import Modules
from flexkern.backbones import random_backbone
from flexkern.nn import AdapterBank, attach_adapters
from flexkern.nn.adapted import parts_of
from harness import Row

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")
BATCH = 64


def ease_adapter(bank: AdapterBank, task: int, layer: int) -> Modules:
    """One task's adapter in one block as its authors write it, with the bank's weights."""
    rows = bank.rows[task]
    modules = Modules(bank.width, bank.rank).to(rows.row("down", layer).device)
    with torch.no_grad():
        modules.down.weight.copy_(rows.row("down", layer).T)
        modules.down.bias.copy_(rows.row("down_bias", layer))
        modules.up.weight.copy_(rows.row("up", layer).T)
        modules.up.bias.copy_(rows.row("up_bias", layer))
    return modules


def _count(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


class Artsy:
    """A network with adapters of ``tasks`` tasks, and a gate that opens ``opened`` of them for each image."""

    def __init__(
        self, tasks: int, opened: int, *, size: str = "small", batch: int = BATCH, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        model = random_backbone(size, **({"attn_implementation": "eager"} if device == "cpu" else {})).to(
            device
        )
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        bank = AdapterBank(depth, width, 16 if size == "small" else 64, device=device)
        for _ in range(tasks):
            bank.add_task()
        with torch.no_grad():
            for p in bank.parameters():
                p.normal_(std=0.05)
        self.peers = nn.ModuleList(
            nn.ModuleList(ease_adapter(bank, t, layer) for layer in range(depth)) for t in range(tasks)
        ).eval()
        self.parts = parts_of(model)
        self.adapted = attach_adapters(model, bank).eval()
        self.tasks = tasks
        self.images = torch.rand(batch, 3, model.config.image_size, model.config.image_size, device=device)
        first = torch.arange(batch) * tasks // batch
        self.openings = torch.zeros(batch, tasks, device=device)
        for k in range(opened):
            self.openings[torch.arange(batch), (first + k) % tasks] = 1

    @torch.no_grad()
    def ours(self) -> Tensor:
        """[batch, 1 + tasks, width]: features of E0 and of each open sub-network."""
        trunk = self.adapted.trunk(self.images)
        h0 = self.adapted.features(trunk)
        task, image = self.openings.T.nonzero(as_tuple=True)
        opened = self.adapted.features(trunk, task.to(torch.int32), image)
        spaces = h0.new_zeros((len(h0), 1 + self.tasks, h0.shape[1]))
        spaces[:, 0] = h0
        spaces[image, 1 + task] = opened
        return spaces

    @torch.no_grad()
    def passes(self) -> Tensor:
        """The same as EASE computes it, and the closed ones masked."""
        assert self.parts is not None
        outputs = []
        for task in range(-1, self.tasks):
            tokens = self.parts.embed(self.images)
            for layer, (block, norm) in enumerate(self.parts.points):
                kept: list[Tensor] = []
                hook = norm.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0]))
                tokens = block(tokens)
                hook.remove()
                if task >= 0:
                    tokens = self.peers[task][layer](kept[0], tokens)
            features = self.parts.norm(tokens)[:, 0]
            outputs.append(features if task < 0 else features * self.openings[:, task : task + 1])
        return torch.stack(outputs, 1)


def check_agreement(artsy: Artsy) -> None:
    # Sums of some hundred values of order 1 in another order, through all blocks.
    torch.testing.assert_close(artsy.ours(), artsy.passes(), rtol=1e-3, atol=1e-3)


@CPU_ONLY
@pytest.mark.parametrize(("tasks", "goal"), [(1, 0.9), (10, 4.0), (50, 16.0)])
def test_one_open_synapse(race: Callable[..., Row], tasks: int, goal: float) -> None:
    artsy = Artsy(tasks, 1)
    check_agreement(artsy)
    row = Row(
        f"Artsy inference, {_count(tasks)}, 1 open synapse an image",
        f"EASE, {tasks + 1} whole passes",
        goal,
        False,
    )
    race(row, artsy.ours, artsy.passes, rounds=9 if tasks < 50 else 5, warm=1)


@CPU_ONLY
@pytest.mark.parametrize("tasks", [10, 50])
def test_flat(race: Callable[..., Row], tasks: int) -> None:
    """With one open synapse an image the number of tasks does not matter."""
    row = Row(
        f"Artsy inference, {_count(tasks)}, 1 open synapse an image", "the same with 1 task", 1.15, at_most=True
    )
    race(row, Artsy(tasks, 1).ours, Artsy(1, 1).ours, rounds=15)


@CPU_ONLY
def test_follows_the_open_rate(race: Callable[..., Row]) -> None:
    """Five open synapses an image: six passes' worth against two."""
    row = Row("Artsy inference, 10 tasks, 5 open synapses an image", "the same with 1 open", 3.3, at_most=True)
    race(row, Artsy(10, 5).ours, Artsy(10, 1).ours, rounds=9)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize(("tasks", "goal"), [(10, 4.5), (50, 20.0)])
def test_gpu_vit_b16(
    gpu_race: Callable[..., Row], gpu_backend: None, backend: str, tasks: int, goal: float
) -> None:
    artsy = Artsy(tasks, 1, size="vit-b16", batch=128, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        name = f"Artsy inference, ViT-B/16, {tasks} tasks, 1 open ({backend})"
        gpu_race(Row(name, f"EASE, {tasks + 1} whole passes", goal, False), artsy.ours, artsy.passes, rounds=5)
