"""nonfinite="skip": a weight that would become NaN stays, in every optimizer, item and parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from flexkern.optim import Metaplastic, MetaplasticAdamW, MetaplasticSGD

Params = list[Parameter]
MAKERS: dict[str, Callable[[Params], Any]] = {
    "SGD": lambda params: MetaplasticSGD(params, 0.1, scale=20.0),
    "AdamW": lambda params: MetaplasticAdamW(params, 0.1, scale=20.0),
    "around SGD": lambda params: Metaplastic(torch.optim.SGD(params, 0.1), scale=20.0),
    "around RMSprop": lambda params: Metaplastic(torch.optim.RMSprop(params, 0.1), scale=20.0),
    "around AdamW, every step": lambda params: Metaplastic(
        torch.optim.AdamW(params, 0.1), scale=20.0, gate="step"
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("items", [0, 1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_the_others_step_and_this_one_stays(name: str, items: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((6, 5), (5,))]
    optimizer = MAKERS[name](params)
    for _ in range(items):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
        optimizer.consolidate()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        p.grad.flatten()[1] = torch.nan
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert p.isfinite().all()
        assert p.flatten()[1] == old.flatten()[1]
        assert (p != old).sum() > 1
