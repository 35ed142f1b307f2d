"""Adapters of a learner's network: their options, the network that has them, and what trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexkern.backbones.parts import Parts
from flexkern.learners.vit.training import CosineHead
from flexkern.nn.adapters import homes
from flexkern.nn.adapters.adapted_model import AdaptedModel, Trunk, attach_adapters
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.adapters.paged_bank import PagedAdapterBank
from flexkern.plain import choice, number, whole_number

__all__ = ["OFFLOADS", "adapter_logits", "adapter_options", "offload_options", "with_adapters"]

OFFLOADS = ("none", *homes.OFFLOADS)


def adapter_options(rank: int, adapter_scale: float, dropout: float, blocks: int | None) -> dict[str, Any]:
    """What a learner is told of its adapters, as plain numbers; TypeError or ValueError naming the argument."""
    return {
        "rank": whole_number(rank, "rank"),
        "adapter_scale": number(adapter_scale, "adapter_scale"),
        "dropout": number(dropout, "dropout", 0, 1, below=True),
        "blocks": None if blocks is None else whole_number(blocks, "blocks"),
    }


def offload_options(offload: str, resident_tasks: int) -> dict[str, Any]:
    """Where a learner has its adapters, as plain values; empty where that is what it always was, so that its
    checkpoints are, too. TypeError or ValueError naming the argument."""
    choice(offload, "offload", OFFLOADS)
    resident_tasks = whole_number(resident_tasks, "resident_tasks")
    return {} if offload == "none" else {"offload": offload, "resident_tasks": resident_tasks}


def with_adapters(
    network: nn.Module,
    parts: Parts,
    width: int,
    options: dict[str, Any],
    device: torch.device,
    capacity: int = 4,
) -> AdaptedModel:
    """The network with a bank of adapters, float32, that has no task yet.

    Args:
        network, parts, width: the backbone, in parts, and its tokens' width.
        options: of :func:`adapter_options`, and of :func:`offload_options`.
        device: of the adapters.
        capacity: tasks that there is room for at first.

    Raises:
        ValueError: if the network has fewer blocks than ``options["blocks"]``.
    """
    blocks = len(parts.points)
    if options["blocks"] is not None:
        blocks = whole_number(options["blocks"], "blocks", most=blocks)
    given = {"scale": options["adapter_scale"], "dropout": options["dropout"]}
    given |= {"dtype": torch.float32, "device": device}
    bank: AdapterBank
    if "offload" in options:
        given |= {"offload": options["offload"], "resident_tasks": options["resident_tasks"]}
        bank = PagedAdapterBank(blocks, width, options["rank"], **given)
    else:
        bank = AdapterBank(blocks, width, options["rank"], capacity=capacity, **given)
    return attach_adapters(network, bank, parts, blocks=blocks).eval()


def adapter_logits(adapted: AdaptedModel, head: CosineHead, task: int, trunk: Trunk) -> Tensor:
    """What a task's head makes of images with the task's adapter, whose dropout is on meanwhile.

    Not longer than a forward pass: whoever asks in between, as one who watches may, gets no dropout.
    """
    adapted.bank.train()
    try:
        return head(adapted.features(trunk, task))
    finally:
        adapted.bank.eval()
