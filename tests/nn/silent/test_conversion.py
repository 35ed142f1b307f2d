"""Silent synapses become functional in the step of MetaplasticSGD, fused and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern import Field, ops
from flexkern.nn import MetaplasticLinear, SilentLinear
from flexkern.optim import fuse_into_backward
from helpers.nets import BATCH, mask_of, optimizer_of, silent_are_zero

NEVER = 1e30  # a threshold that nothing reaches


def one_step(
    layer: SilentLinear, inputs: list[Tensor], *, fused: bool, **options: Any
) -> tuple[Any, list[Tensor]]:
    """One optimizer step after the micro-batches; returns the optimizer and the layer's outputs."""
    options = {"scale": 5.0, "lr": 0.1} | options
    optimizer = optimizer_of(layer, **options)
    optimizer.zero_grad()
    if fused:
        fuse_into_backward(layer, optimizer, window=len(inputs))
    outputs = []
    for x in inputs:
        y = layer(x)
        outputs.append(y.detach().clone())
        (y.square().sum() / len(inputs)).backward()
    optimizer.step()
    return optimizer, outputs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("rule", ["rate", "hebbian"])
@pytest.mark.parametrize("threshold", ["number", "tensor"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_step_converts_what_was_active_together(
    dtype: torch.dtype, parts: int, threshold: str, rule: str, insert: str, fused: bool
) -> None:
    fan_in, fan_out = 37, 11
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, fan_in, generator=generator).to(dtype)
    level = 0.0813 if rule == "rate" else 0.207
    theta = level if threshold == "number" else level * (0.5 + torch.rand(fan_out, generator=generator))
    layer = SilentLinear(
        fan_in, fan_out, silent=0.6, threshold=theta, rule=rule, insert=insert, eta=0.5, seed=1, dtype=dtype
    )
    before, was = layer.weight.detach().double().clone(), mask_of(layer)
    optimizer, outputs = one_step(layer, list(x.chunk(parts)), fused=fused)
    pre, post = x.double().clamp(min=0), torch.cat(outputs).double().clamp(min=0)
    c = torch.outer(post.mean(0), pre.mean(0)) if rule == "rate" else post.T @ pre / BATCH
    level = torch.as_tensor(theta, dtype=torch.float64).reshape(-1, 1)
    u = 2 * 2.0**-53 if dtype is torch.float64 else 2.0**-24
    # c sums at most BATCH terms twice (rate: two means), divides twice and multiplies: 2 BATCH + 4 roundings;
    # theta rounds once. No synapse is so near to its threshold that this could decide.
    assert ((c - level).abs() > (2 * BATCH + 5) * u * (c + level)).all()
    converts = was & (c >= level)
    assert 0 < converts.sum() < was.sum()
    assert torch.equal(mask_of(layer), was & ~converts)
    exact = optimizer.state[layer.weight].get("master", layer.weight).detach().double()
    field = ops.materialize(layer.init, layer.weight.shape).double()
    inserted = 0.5 * c if insert == "hebbian" else field
    assert ((exact - inserted)[converts].abs() <= (2 * BATCH + 5) * u * inserted[converts].abs()).all()
    assert (layer.weight[was & ~converts] == 0).all()
    assert (exact[~was] != before[~was]).any()
    anchor = optimizer.state[layer.weight]["anchor"]
    if insert == "init":
        assert not isinstance(anchor, torch.Tensor)  # procedural
    else:
        assert torch.equal(anchor.double()[converts], exact[converts])
        assert torch.equal(anchor.double()[~converts & was], field[~converts & was])
    assert torch.equal(layer.changes[0], converts.sum(1))
    assert torch.equal(layer.silent_count, mask_of(layer).sum(1))


@pytest.mark.parametrize("fused", [False, True])
def test_micro_batches_are_one_large_batch(fused: bool) -> None:
    """Also of unequal size: coincidences are means over samples."""
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    masks = []
    for parts in ([12], [6, 6], [1, 4, 7]):
        layer = SilentLinear(20, 16, silent=0.7, threshold=0.03, rule="rate")
        one_step(layer, list(x.split(parts)), fused=fused)
        masks.append(mask_of(layer))
    assert 0 < layer.changes[0].sum() < 0.7 * 320
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_what_was_recorded_is_used_once() -> None:
    layer = SilentLinear(8, 8, silent=0.5, threshold=NEVER, rule="hebbian")
    x = torch.rand(4, 8)
    optimizer, _ = one_step(layer, [x], fused=False)
    assert all(value.isnan().all() for value in layer.recorded().values())
    layer.threshold.zero_()
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()  # nothing was recorded since, so nothing converts
    assert layer.changes.sum() == 0
    layer.eval()
    layer(x)
    layer.train()
    with torch.no_grad():
        layer(x)
    optimizer.step()
    assert layer.changes.sum() == 0
    layer(x)
    optimizer.step()
    assert not mask_of(layer).any()


@pytest.mark.parametrize("fused", [False, True])
def test_pruned_synapses_go_silent(fused: bool) -> None:
    layer = SilentLinear(
        8, 8, silent=0.0, threshold=NEVER, prune=0.1, init=Field.uniform(3, low=-1.0, high=1.0)
    )
    start = layer.weight.detach().clone()
    optimizer, _ = one_step(layer, [torch.full((1, 8), 1e-6)], fused=fused)  # hardly a gradient
    pruned = start.abs() < 0.1
    assert 0 < pruned.sum() < 64
    assert torch.equal(mask_of(layer), pruned)
    assert silent_are_zero(layer)
    assert torch.equal(layer.changes[1], pruned.sum(1))
    optimizer.consolidate()
    assert layer.conversions == [0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_alpha_of_silent_synapses_is_that_of_their_anchor(fused: bool, zero: bool) -> None:
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    f = torch.rand(8, 9)
    if zero:
        f[::2] = 0
    mask, flexibility = mask_of(layer), [f, 1.0]
    optimizer, _ = one_step(layer, [torch.randn(5, 9)], fused=fused, scale=50.0, flexibility=flexibility)
    optimizer.consolidate()
    optimizer.zero_grad()
    layer(torch.randn(5, 9)).sum().backward()
    optimizer.step()
    alpha = optimizer.state[layer.weight]["alpha"]
    assert torch.equal(alpha[mask], (f[mask] != 0).float())
    assert (alpha[~mask] < 0.99).any()


def test_where_the_anchor_comes_from() -> None:
    x = torch.randn(5, 9)
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    optimizer, _ = one_step(layer, [x], fused=False)
    found = optimizer.state[layer.weight]["anchor"]
    assert (found["seed"], found["stream"]) == (layer.init.seed, layer.init.stream)
    assert (found["kind"], found["low"], found["high"]) == (layer.init.kind, *layer.init.parameters)

    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    layer.load_state_dict(nn.Linear(9, 8).state_dict(), strict=False)
    weight, mask = layer.weight.detach().clone(), mask_of(layer)
    optimizer, _ = one_step(layer, [x], fused=False)
    field = ops.materialize(layer.init, (8, 9))
    assert torch.equal(optimizer.state[layer.weight]["anchor"], torch.where(mask, field, weight))

    # A Field that was given has to be right, where synapses are functional.
    layer = SilentLinear(9, 8, silent=0.5, threshold=NEVER)
    with pytest.raises(ValueError, match="does not hold the values"):
        one_step(layer, [x], fused=False, anchor=[Field.normal(0), None])
    one_step(layer, [x], fused=False, anchor=[layer.init, None])

    # Conventional synapses (f = 1) have no use for an anchor, but for what is inserted.
    layer = SilentLinear(9, 8, silent=0.5, threshold=0.0)
    optimizer, _ = one_step(layer, [x.abs()], fused=False, flexibility=1.0)
    assert layer.changes[0].sum() == mask.sum()
    assert torch.equal(layer.weight[mask], field[mask])


def test_auto_scale_counts_functional_synapses_only() -> None:
    """Silent synapses have not moved: a reserve does not look like weights that went far."""
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[:, 5:] = True
    layer = SilentLinear(9, 8, silent=mask, threshold=NEVER)
    start = layer.weight.detach().clone()
    optimizer, _ = one_step(layer, [x], fused=False, scale="auto")
    displacement = (layer.weight - start)[~mask].abs().mean().item()
    watched = optimizer.param_groups[0]["first_item"]
    # `speed` is displacement / effort, after one step of lr 0.1; sums of 40 float32 values in another order.
    assert watched[3] == pytest.approx(displacement / 0.1, rel=40 * 2.0**-24)
    optimizer.consolidate()
    assert optimizer.scales()[0] > 0


def test_other_optimizers_convert_by_hand() -> None:
    x = torch.rand(6, 9)
    for dtype in (torch.float32, torch.bfloat16):
        for insert in ("init", "hebbian"):
            layer = SilentLinear(9, 8, silent=0.5, threshold=0.01, insert=insert, dtype=dtype)
            was = mask_of(layer)
            optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9)
            c = torch.outer(
                layer(x.to(dtype)).detach().double().clamp(min=0).mean(0), x.to(dtype).double().mean(0)
            )
            layer(x.to(dtype)).sum().backward()
            optimizer.step()
            assert torch.equal(mask_of(layer), was)
            weight = layer.weight.detach().clone()
            conversions = layer.convert()
            converted = was & ~mask_of(layer)
            assert 0 < converted.sum() < was.sum()
            assert torch.equal(conversions.converted, converted.sum(1).int())
            assert torch.equal(layer.weight[~converted], weight[~converted])
            inserted = c if insert == "hebbian" else ops.materialize(layer.init, (8, 9))
            # The inserted weight is rounded once to bfloat16; in float32 both means, their product and eta c.
            rtol = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-20
            assert torch.allclose(
                layer.weight[converted].double(), inserted[converted].double(), rtol=rtol, atol=0
            )
            layer.end_item()
            assert layer.conversions == [int(converted.sum())]


def test_a_layer_that_is_all_functional_is_an_ordinary_one() -> None:
    layer, plain = SilentLinear(9, 8, silent=0.9, threshold=0.0), MetaplasticLinear(9, 8)
    x = torch.rand(6, 9)
    optimizer, _ = one_step(layer, [x], fused=False, flexibility=1.0)
    optimizer.consolidate()
    assert layer.conversions == [layer.in_features * 8 - int((~mask_of(SilentLinear(9, 8, silent=0.9))).sum())]
    assert not layer.may_convert()
    assert (layer.functional_share() == 1).all()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    for module in (layer, plain):
        one_step(module, [x], fused=False)
    assert torch.equal(layer.weight, plain.weight)
    for module in (layer, plain):
        one_step(module, [x], fused=True)
    assert torch.equal(layer.weight, plain.weight)
