"""All families of vision transformers: features are what they pool themselves, adapters are in their place."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.backbones.families import own_features, parts_of, vision_part
from flexkern.backbones.parts import Parts
from flexkern.backbones.sizes import fitted
from flexkern.backbones.trial import tried_parts
from flexkern.learners import make_learner
from flexkern.nn import AdapterBank, attach_adapters
from helpers.families import BLOCKS, FAMILIES, PATCH, REFUSED, SIZE, WIDTH, family

# The same layers on the same values, some hundred additions in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def parts_for(name: str) -> Parts:
    parts = parts_of(family(name))
    assert parts is not None
    return parts


def images(size: int = SIZE, count: int = 3) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(1))


def with_adapters(name: str, tasks: int = 2) -> Any:
    bank = AdapterBank(BLOCKS, WIDTH, 4)
    for _ in range(tasks):
        bank.add_task()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return attach_adapters(vision_part(copy.deepcopy(family(name))), bank).eval()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_are_what_the_model_pools(name: str) -> None:
    model, (_, feature, prefix) = family(name), FAMILIES[name]
    parts = tried_parts(model, SIZE)
    assert (parts.feature, parts.prefix, len(parts.points)) == (feature, prefix, BLOCKS)
    own = own_features(model, images())
    assert own is not None
    torch.testing.assert_close(parts.features(images()), own, **CLOSE)
    patches = parts.embed(images()).shape[1] - prefix
    assert patches == (SIZE // PATCH) ** 2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_adapters_are_parallel_to_the_mlp(name: str) -> None:
    """What an adapter reads is what the block gives when its MLP gives nothing."""
    parts = parts_for(name)
    tokens = parts.embed(images())
    for block, norm in parts.points:
        read: list[Tensor] = []
        hooks = [
            norm.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0])),  # type: ignore[misc]
            block.mlp.register_forward_hook(lambda *_: torch.zeros(())),  # type: ignore[union-attr, operator]
        ]
        try:
            output = block(tokens, **parts.block_arguments(tokens))
        finally:
            for hook in hooks:
                hook.remove()
        output = output if isinstance(output, Tensor) else output[0]
        torch.testing.assert_close(output, read[0], rtol=0, atol=1e-6)
        assert not torch.allclose(output, tokens, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_passes_from_the_trunk_equal_whole_passes(name: str) -> None:
    adapted = with_adapters(name)
    trunk, x = adapted.trunk(images()), images()
    for task in (None, 1, torch.tensor([0, -1, 1])):
        with adapted.tasks(task):
            whole = own_features(adapted.model, x)
        torch.testing.assert_close(adapted.features(trunk, task), whole, **CLOSE)
    assert not torch.allclose(adapted.features(trunk, 0), adapted.features(trunk, 1), atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_mean_leaves_out_all_tokens_but_the_patches(name: str) -> None:
    adapted, parts = with_adapters(name), parts_for(name)
    tokens = parts.embed(images())
    arguments = parts.block_arguments(tokens)
    for point in parts.points:
        output = point.block(tokens, **arguments)
        tokens = output if isinstance(output, Tensor) else output[0]
    tokens = parts.norm(tokens)
    mean = torch.stack([tokens[:, i] for i in range(FAMILIES[name][2], tokens.shape[1])]).mean(0)
    mean = mean if parts.last is None else parts.last(mean)
    both = adapted.features(adapted.trunk(images()), mean=True)
    torch.testing.assert_close(both[:, WIDTH:], mean, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_copy_is_of_its_own_model(name: str) -> None:
    parts = parts_for(name)
    before = parts.features(images())
    for other in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        assert torch.equal(other.features(images()), before)
        for field in dataclasses.fields(other):
            for module in vars(getattr(other, field.name)).values() if field.name == "embed" else ():
                if isinstance(module, nn.Module):
                    for parameter in module.parameters():
                        parameter.zero_()
    assert torch.equal(parts.features(images()), before)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_images_of_another_size(name: str) -> None:
    """All of these families can; the model that is given stays as it is."""
    model, size = family(name), 48
    before = parts_for(name).features(images())
    other = backbones.load_backbone(model, image_size=size)
    assert (backbones.image_size(other), backbones.image_size(model)) == (size, SIZE)
    fitting, interpolate = fitted(other, size)
    parts = tried_parts(fitting, size, interpolate=interpolate)
    assert parts.embed(images(size)).shape[1] - parts.prefix == (size // PATCH) ** 2
    assert torch.equal(parts_for(name).features(images()), before)
    with pytest.raises(ValueError, match="image_size must be a multiple of the backbone's patches of 8 x 8"):
        backbones.load_backbone(model, image_size=7)
    with pytest.raises(ValueError, match="image_size must be a multiple"):
        fitted(model, 36)
    with pytest.raises(ValueError, match="image_size must be at most 1024"):
        fitted(model, 8 * 129)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_low_precision(name: str, dtype: str) -> None:
    model = family(name)
    low = backbones.load_backbone(model, dtype=dtype)
    assert {p.dtype for p in low.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ours, exact = tried_parts(low, SIZE).features(images()), parts_for(name).features(images())
    # About 16 roundings one after the other, of half an ulp each: an attention, an MLP and two norms a block.
    most = 16 * torch.finfo(ours.dtype).eps / 2 * float(exact.abs().max())
    assert float((ours.float() - exact).abs().max()) < most


@pytest.mark.parametrize(("method", "name"), [("simplecil", name) for name in REFUSED] + [("artsy", "Swin")])
def test_what_is_not_supported_is_refused_by_name(method: str, name: str) -> None:
    """When the learner is made: before it sees an image."""
    make, why = REFUSED[name]
    with pytest.raises(ValueError, match=why) as caught:
        make_learner(method, make().eval())
    assert str(caught.value).startswith("backbone: ")
    assert "of Hugging Face ViT" in str(caught.value) or "fails on one image" in str(caught.value)


class Strange(nn.Module):
    """Looks like one of timm's, and is none."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 4, 4)
        self.embed_dim, self.error = 4, error

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x

    @property
    def blocks(self) -> Any:
        if self.error is not None:
            raise self.error
        return []


@pytest.mark.parametrize(
    "error", [None, RuntimeError("no blocks"), KeyError("x"), AttributeError("y"), OSError(2, "z")]
)
def test_whatever_a_module_raises_is_a_refusal(error: BaseException | None) -> None:
    kind = type("VisionTransformer", (Strange,), {})
    with pytest.raises(ValueError, match=r"^backbone: "):
        make_learner("artsy", kind(error), image_size=8)


def test_features_that_the_model_does_not_pool_are_refused() -> None:
    class VisionTransformer(type(family("timm"))):  # type: ignore[misc]
        def forward_features(self, x: Tensor) -> Tensor:
            return super().forward_features(x.flip(-1))

    model = copy.deepcopy(family("timm"))
    model.__class__ = VisionTransformer
    with pytest.raises(ValueError, match=r"in parts gives features that are .* off what it pools itself"):
        make_learner("simplecil", model)


def test_a_class_token_of_infinity_is_refused() -> None:
    model: Any = copy.deepcopy(family("timm"))
    model.cls_token.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        make_learner("simplecil", model)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_tokens_of_the_last_layers(name: str) -> None:
    """The last layer's are the features and the mean; earlier ones those of a network that ends there."""
    parts = parts_for(name)
    one, two = parts.tokens(images()), parts.tokens(images(), layers=2)
    wide = parts.summaries * WIDTH
    assert two.shape == (len(images()), 2 * wide)
    torch.testing.assert_close(two[:, wide:], one, **CLOSE)
    torch.testing.assert_close(one[:, :WIDTH], parts.features(images()), **CLOSE)
    cut = dataclasses.replace(parts, points=parts.points[:1])
    torch.testing.assert_close(two[:, :wide], cut.tokens(images()), **CLOSE)
    adapted = with_adapters(name)
    both = adapted.features(adapted.trunk(images()), mean=True)
    if parts.summaries == 2:
        torch.testing.assert_close(one, both, **CLOSE)
        assert not torch.allclose(both[:, :WIDTH], both[:, WIDTH:], atol=1e-3)
    else:
        torch.testing.assert_close(both[:, :WIDTH], both[:, WIDTH:], **CLOSE)
    for layers in (0, 3):
        with pytest.raises(ValueError, match="layers must be"):
            parts.tokens(images(), layers=layers)


def test_other_modules_that_are_given() -> None:
    model = copy.deepcopy(family("ViT"))
    compiled = nn.Module()
    compiled._orig_mod = model  # as torch.compile keeps it
    assert backbones.load_backbone(compiled) is model
    with pytest.raises(ValueError, match="on the meta device, without weights"):
        make_learner("simplecil", copy.deepcopy(model).to("meta"))
    with pytest.raises(ValueError, match="no blocks"):
        make_learner("simplecil", _without_blocks())


def _without_blocks() -> nn.Module:
    model: Any = copy.deepcopy(family("timm"))
    model.blocks = nn.Sequential()
    return model


def test_a_size_is_kept_with_the_copy_that_was_made_for_it() -> None:
    for name in ("ViT", "timm"):
        larger = backbones.load_backbone(family(name), image_size=48)
        for model in (larger, copy.deepcopy(larger), backbones.load_backbone(larger)):
            assert backbones.image_size(model) == 48
        assert backbones.image_size(backbones.load_backbone(larger, image_size=32)) == 32
