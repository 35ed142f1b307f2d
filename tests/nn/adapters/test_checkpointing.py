"""Activation checkpointing through an adapted model: a backward pass computes again with its own task."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flexkern.nn import AdaptedModel, AdapterBank, AdapterPoint, Parts, attach_adapters

WIDTH, BLOCKS = 6, 3


def plain(block: torch.nn.Module, x: Tensor) -> Tensor:
    return block(x)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x)).tanh()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(4, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.run: Callable[..., Tensor] = plain

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)


def reentrant(block: torch.nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x.requires_grad_() if x.is_leaf else x, use_reentrant=True)


def non_reentrant(block: torch.nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    net = Net()
    bank = AdapterBank(BLOCKS, WIDTH, 3, dropout=0.0)
    for _ in range(3):
        bank.add_task()
    for p in bank.parameters():
        p.data.normal_()
        p.requires_grad_()
    points = [AdapterPoint(block, block.norm) for block in net.blocks]
    return attach_adapters(net, bank, Parts(net.embed, points, net.norm))


def gradients(model: AdaptedModel) -> list[Tensor | None]:
    found = [p.grad for p in model.bank.parameters()]
    model.bank.zero_grad()
    return found


TASKS = (0, torch.tensor([1, -1]))


def losses(model: AdaptedModel, whole: bool | None = None) -> list[Tensor]:
    """Of two passes with other tasks; ``whole``: the model is one checkpoint, reentrant or not."""
    found = []
    for number, task in enumerate(TASKS):
        x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(number), dtype=torch.float32)
        with model.tasks(task):
            y = (
                model.model(x)
                if whole is None
                else checkpoint(model.model, x.requires_grad_(), use_reentrant=whole)
            )
        found.append(y.square().sum() * (number + 1))
    return found


@pytest.mark.parametrize(
    "how",
    [reentrant, non_reentrant, True, False],
    ids=["blocks, reentrant", "blocks", "whole, reentrant", "whole"],
)
@pytest.mark.parametrize("order", ["sum", "first", "last", "in another pass"])
def test_gradients_with_two_tasks_interleaved(order: str, how: Callable[..., Tensor] | bool) -> None:
    model = adapted()
    sum(losses(model)).backward()
    expected = gradients(model)
    model.model.run = plain if isinstance(how, bool) else how
    found = losses(model, how if isinstance(how, bool) else None)
    if order == "sum":
        sum(found).backward()
    elif order == "in another pass":
        with model.tasks(2):
            for loss in found:
                loss.backward()
    else:
        for loss in found if order == "first" else reversed(found):
            loss.backward()
    for one, other in zip(gradients(model), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert sum(g is not None for g in expected) > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_hugging_face_checkpointing(use_reentrant: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
    )
    vit = transformers.ViTModel(config, add_pooling_layer=False)
    bank = AdapterBank(2, 8, 3, dropout=0.0)
    for _ in range(2):
        bank.add_task()
    for p in bank.parameters():
        p.data.normal_()
        p.requires_grad_()
    model = attach_adapters(vit, bank)
    images = torch.rand(2, 3, 8, 8)

    def run() -> list[Tensor | None]:
        with model.tasks(0):
            first = model.model(images).last_hidden_state.square().sum()
        with model.tasks(1):
            second = model.model(images).last_hidden_state.square().sum()
        second.backward()
        first.backward()
        return gradients(model)

    expected = run()
    with warnings.catch_warnings():  # deprecated, and still what Trainer calls
        warnings.simplefilter("ignore", FutureWarning)
        vit.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        vit.enable_input_require_grads()
    vit.train()  # transformers checkpoints in training only; there is no dropout here
    calls = []
    vit.layers[1].layernorm_before.register_forward_pre_hook(lambda *_: calls.append(1))
    found = run()
    assert len(calls) == 4  # what the blocks do was done again
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def copies(model: AdaptedModel) -> list[AdaptedModel]:
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(kept, weights_only=False)]


def test_a_copy_has_adapters_of_its_own() -> None:
    model = adapted()
    x = torch.randn(2, 5, 4)
    before = model(x, task=1).detach()
    for other in copies(model):
        assert torch.equal(other(x, task=1), before)
        assert torch.equal(other.features(other.trunk(x), 1), model.features(model.trunk(x), 1))
        with torch.no_grad():
            for p in other.bank.parameters():
                p.add_(1.0)
        assert not torch.allclose(other(x, task=1), before)
        assert not torch.allclose(other.features(other.trunk(x), 1), model.features(model.trunk(x), 1))
        assert torch.equal(model(x, task=1), before)
        other.remove()
        assert torch.equal(other(x, task=1), other(x))
        assert torch.equal(model(x, task=1), before)


def test_a_copy_of_the_frozen_model_alone_has_no_adapters() -> None:
    model = adapted()
    x = torch.randn(2, 5, 4)
    alone = copy.deepcopy(model.model)
    with model.tasks(1):
        assert torch.equal(alone(x), model(x))
