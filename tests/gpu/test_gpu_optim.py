"""MetaplasticSGD on a GPU: its steps ask nothing of the device that they would have to wait for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from flexkern import Field, ops
from flexkern.optim import MetaplasticSGD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]

SHAPES = ((6, 5), (5,), (3, 4, 2))


@pytest.mark.parametrize("gate", ["item", "step"])
def test_steps_do_not_wait_for_the_gpu(gate: str) -> None:
    anchors = [Field.normal(2, i, std=0.3) for i in range(3)]
    params = [Parameter(ops.materialize(f, s).cuda()) for f, s in zip(anchors, SHAPES, strict=True)]
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
