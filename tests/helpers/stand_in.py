"""The CPU's kernels in the place of a GPU's: for what Python does before a kernel of a GPU is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern.backends import requested
from flexkern.ops import adapter, displacement, field, linear, mask, metaplastic, operator, synapse

__all__ = ["on_a_gpu"]

OPERATORS = [
    *metaplastic.STEPS.values(), *synapse.STEPS.values(), *linear.STEPS.values(), metaplastic.GATE,
    adapter.FORWARD, displacement.DISPLACEMENT, field.FILL, mask.PACK, mask.UNPACK,
]  # fmt: skip


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on tensors of the CPU say that they are on a GPU, which the compiled kernels serve."""

    def choose(op: str, device: torch.device, supported: Callable[[str], str | None]) -> str:
        if requested() == "reference":
            return "reference"
        return next(name for name in ("cuda", "triton", "reference") if supported(name) is None)

    monkeypatch.setattr(Tensor, "is_cpu", property(lambda _: False), raising=False)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True), raising=False)
    monkeypatch.setattr(operator, "choose", choose)
    for one in OPERATORS:
        monkeypatch.setattr(one, "_on_gpus", {})
        if "cuda" in one.spec.lacks:  # those that have no CUDA kernels: the CPU's stand for Triton's
            monkeypatch.setitem(one._calls, "triton", one.compiled)
