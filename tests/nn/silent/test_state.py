"""The state of SilentLinear is tensors; averages of it are layers; it loads what earlier versions saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flexkern import Field, Purpose
from flexkern.nn import AdaptiveThreshold, SilentLinear
from flexkern.optim import MetaplasticSGD
from helpers.nets import batches, mask_of, mlp, optimizer_of, silent, silent_are_zero, train


def layer_of(seed: int = 3, **options: Any) -> SilentLinear:
    """40 inputs, so that a row of the mask has two words; trained enough to convert some synapses."""
    layer = SilentLinear(40, 6, silent=0.5, seed=seed, threshold=0.05, **options)
    step(layer, 1)
    return layer


def step(layer: SilentLinear, seed: int, threshold: float = 0.05) -> None:
    layer.threshold.fill_(threshold)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    generator = torch.Generator().manual_seed(seed)
    layer(torch.rand(8, 40, generator=generator)).square().sum().backward()
    optimizer.step()
    layer.convert()
    layer.end_item()


def assert_valid(layer: SilentLinear) -> None:
    mask = mask_of(layer)
    assert (layer.weight[mask] == 0).all()
    assert torch.equal(layer.silent_count, mask.sum(1))
    assert torch.equal(layer.functional_share(), 1 - mask.sum(1) / 40)


def assert_trains(layer: SilentLinear) -> None:
    before = mask_of(layer)
    step(layer.train(), 7, threshold=1e30)
    assert torch.equal(mask_of(layer), before)
    assert_valid(layer)


def test_the_state_is_tensors_and_safetensors_saves_the_model(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    layer, other = layer_of(), SilentLinear(40, 6, silent=0.1, seed=99)
    assert all(isinstance(value, Tensor) for value in layer.state_dict().values())
    safetensors.save_model(layer, str(tmp_path / "layer"))
    safetensors.load_model(other, str(tmp_path / "layer"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in layer.state_dict().items())
    assert (other.init, other.conversions) == (layer.init, layer.conversions)
    assert layer.conversions[0] > 0


def test_every_field_and_any_number_of_items_is_kept() -> None:
    field = Field.normal(
        2**64 - 1, 2**32 - 1, mean=-1 / 3, std=1e-300, purpose=Purpose.ANCHOR, offset=2**62 - 1
    )
    for items in (0, 1, 256, 257, 1000):
        layer, other = SilentLinear(3, 2, init=field), SilentLinear(3, 2)
        layer.conversions = [7 * i for i in range(items)]
        other.load_state_dict(layer.state_dict())
        assert (other.init, other.conversions) == (field, layer.conversions)


def test_the_plain_data_of_earlier_versions_loads() -> None:
    layer, other = layer_of(), SilentLinear(40, 6, silent=0.1, seed=99)
    state = layer.state_dict()
    state["_extra_state"] = {"conversions": [5, 3], "init": list(layer.init.source())}
    other.load_state_dict(state)
    assert (other.init, other.conversions) == (layer.init, [5, 3])
    assert torch.equal(mask_of(other), mask_of(layer))


def ema(state: dict[str, Any], new: dict[str, Any], decay: float) -> dict[str, Tensor]:
    return {name: value * decay + new[name] * (1 - decay) for name, value in state.items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_an_average_of_state_dicts(decay: float) -> None:
    """What timm's EMA computes of each entry of two state_dicts."""
    one = layer_of()
    two = copy.deepcopy(one)
    step(two, 2, threshold=0.01)
    assert not torch.equal(mask_of(one), mask_of(two))
    average = copy.deepcopy(one)
    average.load_state_dict(ema(one.state_dict(), two.state_dict(), decay))
    assert torch.equal(mask_of(average), mask_of(one) & mask_of(two))
    torch.testing.assert_close(average.weight, one.weight * decay + two.weight * (1 - decay))
    assert average.init == one.init
    assert_valid(average)
    assert_trains(average)
    # The average of a layer with itself is the layer.
    itself = SilentLinear(40, 6, silent=0.9, seed=8)
    itself.load_state_dict(ema(two.state_dict(), two.state_dict(), decay))
    assert torch.equal(mask_of(itself), mask_of(two))
    assert (itself.init, itself.conversions) == (two.init, two.conversions)


def test_an_average_in_place() -> None:
    """timm's ModelEmaV2: it copies averages into the state_dict of the averaged model."""
    one = layer_of()
    average = copy.deepcopy(one)
    for seed in (2, 3, 4):
        step(one, seed, threshold=0.02)
        for mine, new in zip(average.state_dict().values(), one.state_dict().values(), strict=True):
            mine.copy_(0.7 * mine + 0.3 * new)
    x = torch.rand(5, 40)
    assert torch.equal(average.eval()(x), nn.functional.linear(x, average.weight, average.bias))
    assert torch.equal(mask_of(average), average.weight == 0)
    assert_valid(average)
    assert_trains(average)


def test_an_average_over_different_initial_fields_keeps_the_layers_own() -> None:
    one, two = layer_of(seed=3), layer_of(seed=4)
    own = one.init
    one.load_state_dict(ema(one.state_dict(), two.state_dict(), 0.5))
    assert one.init == own
    assert torch.equal(mask_of(one), one.weight == 0)
    assert_valid(one)


@pytest.mark.parametrize("how", ["swa", "ema", "ema multi"])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model(use_buffers: bool, how: str) -> None:
    options: dict[str, Any] = {
        "swa": {},
        "ema": {"avg_fn": lambda old, new, _: 0.9 * old + 0.1 * new},
        "ema multi": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    }[how]
    layer = layer_of(prune=1e-3)
    model = AveragedModel(nn.Sequential(layer), use_buffers=use_buffers, **options)
    seen = []
    for seed in (2, 3, 4):
        step(layer, seed, threshold=0.02)
        model.update_parameters(nn.Sequential(layer))
        seen.append(mask_of(layer))
    average = model.module[0]
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(mask_of(average), torch.stack(seen).all(0))
    assert_valid(average)
    other = AveragedModel(nn.Sequential(SilentLinear(40, 6)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(mask_of(other.module[0]), mask_of(average))
    average.prune = 0.0
    assert_trains(average)


def test_a_functional_synapse_of_weight_zero_stays_functional() -> None:
    """What nobody else wrote into is taken as it is, also where a functional weight is exactly 0."""
    layer = SilentLinear(4, 3, silent=0.0)
    with torch.no_grad():
        layer.weight[1, 2] = 0
    for one in (layer, copy.deepcopy(layer), SilentLinear(4, 3)):
        one.load_state_dict(layer.state_dict())
        assert not mask_of(one.train()).any()


@pytest.mark.parametrize("assign", [False, True])
def test_from_the_meta_device(assign: bool) -> None:
    model = mlp(silent(silent=0.5, threshold=AdaptiveThreshold(0.02, start=0.3), rule="hebbian"))
    train(model, optimizer_of(model), batches(4), items=2)
    with torch.device("meta"):
        empty = mlp(silent(silent=0.1, threshold=AdaptiveThreshold(0.02, start=0.1), rule="hebbian"))
    assert all(p.is_meta for p in empty.parameters())
    repr(empty)
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    assert all(not t.is_meta for module in empty.modules() for t in module.buffers())
    assert silent_are_zero(empty)
    data = batches(4, seed=5)
    train(model, optimizer_of(model), data)
    train(empty, optimizer_of(empty), data)
    for name, value in model.state_dict().items():
        assert torch.equal(value, empty.state_dict()[name]), name


def test_parameters_that_are_swapped(swapping: None) -> None:
    layer, x = layer_of(), torch.rand(3, 40)
    mask, y = mask_of(layer), layer(x).detach()
    other = SilentLinear(40, 6, silent=0.2, seed=5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    for one in (layer.double(), layer.half().float()):
        assert torch.equal(mask_of(one), mask)
        assert torch.allclose(one(x.to(one.weight.dtype)).float(), y, atol=1e-2)
    weight = layer.weight
    assert layer.to(torch.bfloat16).weight is weight
    assert_trains(layer.float())


def test_a_layer_that_was_pickled_when_its_records_were_buffers() -> None:
    layer = SilentLinear(3, 2, silent=0.5)
    layer(torch.ones(4, 3))
    state = layer.__getstate__()
    state["_buffers"] = {
        **state["_buffers"],
        **{name: state.pop(name) for name in ("_pre", "_post", "_samples")},
    }
    state["_buffers"]["_coincidence"] = state.pop("_coincidence")
    for name in ("process_group", "total"):
        state.pop(name)
    old = SilentLinear.__new__(SilentLinear)
    old.__setstate__(state)
    assert old.recorded().keys() == {"pre", "post"}
    assert all(torch.equal(value, layer.recorded()[name]) for name, value in old.recorded().items())
    assert {name for name, _ in old.named_buffers()} == {"silent", "threshold", "silent_count", "changes"}
    old.to(torch.float64)
    assert old.convert().converted.shape == (2,)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_state_of_its_optimizer_is_known_before_it_is_loaded(pretrained: bool) -> None:
    """torch.distributed.checkpoint asks a new optimizer which state there will be, when the weights have been
    loaded and are not those of the field any more."""

    def made() -> tuple[SilentLinear, MetaplasticSGD]:
        layer = SilentLinear(9, 7, threshold=0.01)
        if pretrained:  # so its anchor is stored
            layer.load_state_dict({"weight": torch.ones(7, 9), "bias": torch.zeros(7)}, strict=False)
        return layer, MetaplasticSGD(layer.named_parameters(), 0.1, scale=5.0)

    def learn(layer: SilentLinear, optimizer: MetaplasticSGD) -> None:
        for step in range(3):
            optimizer.zero_grad()
            layer(torch.randn(4, 9, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
        optimizer.consolidate()

    whole = StateDictOptions(full_state_dict=True)
    layer, optimizer = made()
    learn(layer, optimizer)
    weights = copy.deepcopy(get_model_state_dict(layer, options=whole))
    state = copy.deepcopy(get_optimizer_state_dict(layer, optimizer, options=whole))
    assert isinstance(state["state"]["weight"]["anchor"], Tensor) == pretrained
    other, again = made()
    set_model_state_dict(other, weights, options=whole)
    set_optimizer_state_dict(other, again, state, options=whole)
    for of_one in ((layer, optimizer), (other, again)):
        learn(*of_one)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.silent, layer.silent)


def test_what_torch_puts_in_for_a_missing_state_is_no_state() -> None:
    layer = SilentLinear(9, 7, seed=3)
    state = {"0.weight": torch.ones(7, 9), "0.bias": torch.zeros(7)}
    set_model_state_dict(
        nn.Sequential(layer), state, options=StateDictOptions(full_state_dict=True, strict=False)
    )
    assert layer.init == SilentLinear(9, 7, seed=3).init
    assert torch.equal(layer.bias, torch.zeros(7))
