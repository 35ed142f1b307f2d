"""Adapters as modules: EASE's (arXiv 2403.12030), one for each task, and LoRA's as `peft` has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["EaseAdapter", "grouped", "has_grouped_product", "loop_over_tasks", "lora"]

_grouped_product = getattr(nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


class EaseAdapter(nn.Module):
    """One adapter in parallel to a layer, as EASE has it: ReLU bottleneck, dropout, a fixed scale."""

    def __init__(self, d: int, rank: int, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.relu, self.dropout = nn.Linear(d, rank), nn.ReLU(), nn.Dropout(dropout)
        self.up = nn.Linear(rank, d)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.scale * self.up(self.dropout(self.relu(self.down(x))))


def loop_over_tasks(
    adapters: Sequence[Callable[[Tensor, Tensor], Tensor]], counts: Sequence[int], x: Tensor, residual: Tensor
) -> Tensor:
    """Each task's samples, which stand together, through its adapter; ``counts``: how many samples each has."""
    if len(adapters) == 1:
        return adapters[0](x, residual)
    parts = zip(adapters, x.split(counts), residual.split(counts), strict=True)
    return torch.cat([adapter(part, rest) for adapter, part, rest in parts])


def has_grouped_product() -> bool:
    """Whether this torch has the product that :func:`grouped` is made of."""
    return _grouped_product is not None


def grouped(
    bank: Sequence[Tensor], index: Tensor, ends: Tensor, x: Tensor, residual: Tensor, *, scale: float, p: float
) -> Tensor:
    """Each task's samples through its adapter, by two of torch's grouped products and what lies between.

    Args:
        bank: down [T, d, r], its bias [T, r], up [T, r, d] and its bias [T, d].
        index: [samples], sorted: the task of each.
        ends: [T], int32: how many rows of the tokens, samples x positions, the tasks up to this one have.
        x, residual: [samples, positions, d].
        p: of dropout.
    """
    assert _grouped_product is not None
    down, down_bias, up, up_bias = bank
    samples, positions, _ = x.shape
    hidden = _grouped_product(x.flatten(0, 1), down, offs=ends).view(samples, positions, -1)
    hidden = nn.functional.dropout((hidden + down_bias[index][:, None]).relu(), p)
    out = _grouped_product(hidden.flatten(0, 1), up, offs=ends).view_as(x)
    return residual + scale * (out + up_bias[index][:, None])


class _Given(nn.Linear):
    """A frozen layer whose output is there already: what is left to time is the adapter."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]  # peft passes all on
        return residual


def lora(d: int, rank: int, tasks: int, *, scale: float, dropout: float) -> nn.Module | None:
    """`peft`'s LoRA layer of the same rank, with an adapter for each task; None where peft cannot be imported.

    Call it with ``(x, residual)``, and with ``adapter_names=[...]``, the strings "0", "1", ... for each sample,
    where a batch mixes tasks (peft does that in inference only). Its up-projection begins at 0.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        return None
    model = nn.ModuleDict({"layer": _Given(d, d, bias=False)})
    config = LoraConfig(r=rank, lora_alpha=scale * rank, lora_dropout=dropout, target_modules=["layer"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several adapters in one model: they are meant
        for task in range(tasks):
            inject_adapter_in_model(config, model, adapter_name=str(task))
    layer = model["layer"]
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return layer
