"""alpha of layers with silent synapses stays in float32, where an optimizer keeps other layers' in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from flexkern.nn import SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.nets import batches, mlp, optimizer_of, silent, train

WIDE, NARROW = torch.float32, torch.bfloat16


def learned(alpha_dtype: torch.dtype, fused: bool) -> tuple[nn.Sequential, MetaplasticSGD]:
    """Two items, and a step of a third one: each layer has the alpha that the second left."""
    model = mlp(silent(silent=0.4, threshold=0.02))
    # No vector of weights is flexible, so only the two weights have an alpha.
    optimizer = optimizer_of(model, alpha_dtype=alpha_dtype)
    if fused:
        fuse_into_backward(model, optimizer)
    train(model, optimizer, batches(12), items=2)
    for x, y in batches(1, seed=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def alphas(model: nn.Sequential, optimizer: MetaplasticSGD) -> list[Tensor]:
    return [optimizer.state[layer.weight]["alpha"] for layer in model if isinstance(layer, SilentLinear)]


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_alpha_of_silent_layers_is_never_rounded(fused: bool) -> None:
    (wide, wide_optimizer), (narrow, narrow_optimizer) = (learned(d, fused) for d in (WIDE, NARROW))
    found, expected = alphas(narrow, narrow_optimizer), alphas(wide, wide_optimizer)
    assert len(found) == 2
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is WIDE
        assert torch.equal(a, b)
        assert not torch.equal(a, a.to(NARROW).to(WIDE))  # rounding would show
    for p, q in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(p, q)
    for a, b in zip(narrow, wide, strict=True):
        if isinstance(a, SilentLinear):
            assert torch.equal(a.silent, b.silent)


def test_only_layers_with_silent_synapses_keep_it() -> None:
    model = nn.Sequential(*mlp(silent(silent=0.4, threshold=0.02))[:2], nn.Linear(17, 5))
    optimizer = optimizer_of(model, alpha_dtype=NARROW)
    train(model, optimizer, batches(6), items=2)
    for x, y in batches(1, seed=1):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert [optimizer.state[model[i].weight]["alpha"].dtype for i in (0, 2)] == [WIDE, NARROW]


def test_a_checkpoint_keeps_the_dtype_of_each() -> None:
    model, optimizer = learned(NARROW, fused=False)
    state = copy.deepcopy(optimizer.state_dict())
    again = mlp(silent(silent=0.4, threshold=0.02))
    again.load_state_dict(model.state_dict())
    restored = optimizer_of(again, alpha_dtype=NARROW)
    restored.load_state_dict(state)
    for a, b in zip(alphas(again, restored), alphas(model, optimizer), strict=True):
        assert a.dtype is WIDE
        assert torch.equal(a, b)
