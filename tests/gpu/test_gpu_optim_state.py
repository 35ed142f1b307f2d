"""MetaplasticSGD with a learning rate on the GPU: its steps and its consolidation wait for nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from flexkern import Field, ops
from flexkern.optim import MetaplasticSGD

SHAPES = ((6, 5), (5,), (3, 4, 2))
ANCHORS = [Field.normal(2, i, std=0.3) for i in range(3)]


def make_parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(ops.materialize(f, s).to(dtype)) for f, s in zip(ANCHORS, SHAPES, strict=True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("gate", ["item", "step"])
def test_steps_do_not_wait_for_the_gpu(gate: str) -> None:
    params = [Parameter(p.detach().cuda()) for p in make_parameters()]
    optimizer = MetaplasticSGD(params, torch.tensor(0.05, device="cuda"), scale=20.0, gate=gate, momentum=0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()  # kernels may load here
    optimizer.consolidate()
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.consolidate()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
