"""Digits, item after item, by several processes: with accelerate or with Lightning Fabric.

torchrun --nproc-per-node 2 examples/processes_digits.py accelerate      (or fabric)
python examples/processes_digits.py alone

Needs accelerate, or lightning. Each process has its share of every batch, and all of them the network that one
process would have, up to the order of sums. An item ends on all of them at once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

from digits import accuracies, as_input, digits_stream, network, table
from flexkern.optim import MetaplasticSGD


def alone(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any, int, int]:
    """Model, optimizer, the function of the backward pass, this process's number, and how many there are."""
    return model, optimizer, torch.Tensor.backward, 0, 1


def of_accelerate(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any, int, int]:
    """As :func:`alone`."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer, accelerator.backward, accelerator.process_index, accelerator.num_processes


def of_fabric(model: nn.Module, optimizer: Any) -> tuple[Any, Any, Any, int, int]:
    """As :func:`alone`."""
    from lightning.fabric import Fabric

    fabric = Fabric(strategy="ddp", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fabric.launch()
    model, optimizer = fabric.setup(model, optimizer)
    return model, optimizer, fabric.backward, fabric.global_rank, fabric.world_size


FRAMEWORKS = {"alone": alone, "accelerate": of_accelerate, "fabric": of_fabric}


def learn(framework: str, items: int = 5, epochs: int = 2) -> dict[str, Any]:
    """The accuracies of all items at the end, the scale that was measured, and the weights."""
    stream = digits_stream(items)
    plain = network(stream)
    # Names, so that each weight has the flexibilities that it has in one process.
    metaplastic = MetaplasticSGD(plain.named_parameters(), lr=0.002, scale="auto", flexible_vectors=True)
    model, optimizer, backward, rank, count = FRAMEWORKS[framework](plain, metaplastic)
    generator = torch.Generator().manual_seed(1)  # all processes draw the same batches
    for item in stream:
        x, y = as_input(item.train_inputs), item.train_labels
        for _ in range(epochs):
            for batch in torch.randperm(len(y), generator=generator).split(32):
                mine = batch[: len(batch) // count * count].chunk(count)[rank]
                optimizer.zero_grad()
                device = next(model.parameters()).device
                backward(nn.functional.cross_entropy(model(x[mine].to(device)), y[mine].to(device)))
                optimizer.step()
        metaplastic.consolidate()  # on all processes
    plain = plain.cpu().eval()
    return {
        "accuracies": accuracies(plain, stream),
        "scales": metaplastic.scales(),
        "weights": [p.detach().clone() for p in plain.parameters()],
        "rank": rank,
    }


if __name__ == "__main__":
    found = learn(sys.argv[1])
    if found["rank"] == 0:
        table({"MetaplasticSGD": found["accuracies"]})
