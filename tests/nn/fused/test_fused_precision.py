"""fuse_into_backward with precision="bfloat16": float32 weights, bfloat16 products."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.nn import MetaplasticLinear, SilentLinear
from flexkern.optim import fuse_into_backward
from helpers.nets import batches, mlp, optimizer_of, silent

NETWORKS = {"plain": {}, "silent": {"make": silent(silent=0.5, threshold=0.2)}}


def narrow(**options: Any) -> tuple[nn.Sequential, Any]:
    model = mlp(**options)
    optimizer = optimizer_of(model, momentum=0.9)
    fuse_into_backward(model, optimizer, precision="bfloat16")
    return model, optimizer


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, *, autocast: bool = False) -> Tensor:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(x)
    nn.functional.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    return logits


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_it_is_autocast_without_autocast(options: dict[str, Any]) -> None:
    """Also after an item, a copy and a pickle, to the bit; the inputs and outputs of layers stay float32."""
    model, optimizer = narrow(**options)
    other = mlp(**options)
    others = optimizer_of(other, momentum=0.9)
    fuse_into_backward(other, others)
    for number, (x, y) in enumerate(batches(8)):
        logits = step(model, optimizer, x, y)
        assert logits.dtype is torch.float32
        assert torch.equal(logits, step(other, others, x, y, autocast=True).float())
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        if number in (2, 5):
            optimizer.consolidate()
            others.consolidate()
            pair = (model, optimizer)
            model, optimizer = copy.deepcopy(pair) if number == 2 else pickle.loads(pickle.dumps(pair))
    assert all(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_answers_have_the_precision_of_training(options: dict[str, Any]) -> None:
    model, _ = narrow(**options)
    x = batches(1)[0][0]
    trained = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), trained)
    model.eval()
    assert torch.equal(model(x), trained)
    for layer in model:
        if isinstance(layer, MetaplasticLinear):
            layer.fused_step = False  # back to what it was
    plain = mlp(**options)
    assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), trained)


def test_weights_that_are_written_between_passes_are_the_ones_multiplied_with() -> None:
    model, optimizer = narrow()
    for x, y in batches(2):
        step(model, optimizer, x, y)
        layer = model[0]
        layer.weight.data.fill_(0.5)  # of which torch's counter of versions tells nothing
        out = layer(x)
        expected = x.bfloat16().sum(1, keepdim=True, dtype=torch.float32) * 0.5 + layer.bias.detach()
        torch.testing.assert_close(out, expected.expand_as(out), rtol=2**-7, atol=2**-7)
        optimizer.zero_grad()
        model = model.train()
        layer.pending.clear()


def test_micro_batches() -> None:
    model = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer, window=2, precision="bfloat16")
    before = model[0].weight.detach().clone()
    for number, (x, y) in enumerate(batches(2)):
        (nn.functional.cross_entropy(model(x), y) / 2).backward()
        assert torch.equal(model[0].weight, before) == (number == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    model, optimizer = narrow(dtype=dtype)
    other = mlp(dtype=dtype)
    others = optimizer_of(other, momentum=0.9)
    fuse_into_backward(other, others)
    for x, y in batches(3):
        step(model, optimizer, x.to(dtype), y)
        step(other, others, x.to(dtype), y)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_state_and_words() -> None:
    model, optimizer = narrow()
    step(model, optimizer, *batches(1)[0])
    assert set(model.state_dict()) == set(mlp().state_dict())
    assert "precision='bfloat16'" in repr(model[0])
    file = io.BytesIO()
    torch.save(model, file)
    assert file.getbuffer().nbytes < 6 * sum(p.numel() for p in model.parameters()) + 20_000
    assert not hasattr(SilentLinear(3, 2).__dict__, "precision")


def test_another_precision_is_refused_and_nothing_changes() -> None:
    model = mlp()
    for wrong, kind in (("float16", ValueError), (torch.bfloat16, (TypeError, ValueError))):
        with pytest.raises(kind, match=r"precision must be .*'float32'.*'bfloat16'"):
            fuse_into_backward(model, optimizer_of(model), precision=wrong)  # type: ignore[arg-type]
    assert type(model[0]) is nn.Linear


def test_layers_that_were_pickled_before_there_was_a_precision() -> None:
    layer = MetaplasticLinear(3, 2)
    state = {name: value for name, value in layer.__getstate__().items() if name != "precision"}
    old = MetaplasticLinear.__new__(MetaplasticLinear)
    old.__setstate__(state)
    assert torch.equal(old(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    assert old.precision == "float32"
