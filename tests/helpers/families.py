"""Tiny vision transformers of all families, with random weights: made once, and not to be changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.timm_models import import_timm

SIZE, PATCH, WIDTH, BLOCKS = 32, 8, 32, 2
TIMM = {
    "img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": 2,
    "num_classes": 5,
}  # fmt: skip
HUGGING_FACE = {
    "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": SIZE, "patch_size": PATCH,
}  # fmt: skip
_TEXT = {
    "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _timm(name: str | None = None, **options: Any) -> nn.Module:
    timm = import_timm()
    make = timm.models.VisionTransformer if name is None else functools.partial(timm.create_model, name)
    return make(**(TIMM | options))


def _block(name: str) -> nn.Module:
    module = import_timm().models.vision_transformer
    return _timm(block_fn=getattr(module, name))


def _transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def _hugging_face(name: str, options: dict[str, Any] | None = None, **config: Any) -> nn.Module:
    base = name.removesuffix("ForImageClassification").removesuffix("Model")
    made = getattr(_transformers(), f"{base}Config")(**(HUGGING_FACE | config))
    return getattr(_transformers(), name)(made, **(options or {}))


def _swin() -> Any:
    return _transformers().SwinConfig(image_size=56, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4)


def _with_text(name: str, base: str) -> nn.Module:
    config = getattr(_transformers(), f"{base}Config")(vision_config=HUGGING_FACE, text_config=_TEXT)
    return getattr(_transformers(), name)(config)


_VIT = functools.partial(_hugging_face, "ViTModel")
_EVA = functools.partial(_timm, "eva02_tiny_patch14_224")
# Name: how it is made, what its feature is, tokens before the patches'.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "timm": (_timm, "class token", 1),
    "timm, avg": (lambda: _timm(global_pool="avg"), "mean of the patch tokens, then fc_norm", 1),
    "timm, avg without fc_norm": (
        lambda: _timm(global_pool="avg", fc_norm=False), "mean of the patch tokens", 1,
    ),
    "timm, avg without a class token": (
        lambda: _timm(global_pool="avg", class_token=False), "mean of the patch tokens, then fc_norm", 0,
    ),
    "timm, avg with registers": (
        lambda: _timm(global_pool="avg", reg_tokens=3), "mean of the patch tokens, then fc_norm", 4,
    ),
    "timm, avg of all": (
        lambda: _timm(global_pool="avg", reg_tokens=3, pool_include_prefix=True),
        "mean of all tokens, then fc_norm", 4,
    ),
    "timm, token with fc_norm": (lambda: _timm(fc_norm=True), "class token, then fc_norm", 1),
    "timm, registers": (lambda: _timm(reg_tokens=2), "class token", 3),
    "timm, map": (
        lambda: _timm(global_pool="map", class_token=False), "attention pooling of the tokens", 0,
    ),
    "timm, CLIP": (lambda: _timm(pre_norm=True, final_norm=False, init_values=0.1), "class token", 1),
    "timm, sizes as they come": (lambda: _timm(dynamic_img_size=True), "class token", 1),
    "timm SigLIP": (lambda: _timm("vit_base_patch16_siglip_224"), "attention pooling of the tokens", 0),
    "timm DeiT, distilled": (
        lambda: _timm("deit_tiny_distilled_patch16_224"), "mean of class and distillation token", 2,
    ),
    "timm DeiT III": (lambda: _timm("deit3_small_patch16_224"), "class token", 1),
    "timm EVA-02": (_EVA, "mean of the patch tokens, then fc_norm", 1),
    "timm EVA-02, sizes as they come": (
        lambda: _EVA(dynamic_img_size=True), "mean of the patch tokens, then fc_norm", 1,
    ),
    "timm DINOv3": (lambda: _timm("vit_small_patch16_dinov3"), "mean of the patch tokens", 5),
    "timm BEiT": (lambda: _timm("beit_base_patch16_224"), "mean of the patch tokens, then fc_norm", 1),
    "timm BEiT, token": (
        lambda: _timm("beit_base_patch16_224", global_pool="token"), "class token", 1,
    ),
    "ViT": (_VIT, "class token", 1),
    "ViT, classifier": (lambda: _hugging_face("ViTForImageClassification"), "class token", 1),
    "DeiT": (lambda: _hugging_face("DeiTModel"), "class token", 2),
    "DINOv2": (lambda: _hugging_face("Dinov2Model"), "class token", 1),
    "DINOv2 with registers": (
        lambda: _hugging_face("Dinov2WithRegistersModel", num_register_tokens=3), "class token", 4,
    ),
    "DINOv3": (lambda: _hugging_face("DINOv3ViTModel", num_register_tokens=3), "class token", 4),
    "I-JEPA": (lambda: _hugging_face("IJepaModel"), "mean of the patch tokens", 0),
    "ViT-MSN": (lambda: _hugging_face("ViTMSNModel"), "class token", 1),
    "BEiT": (lambda: _hugging_face("BeitModel"), "mean of the patch tokens, then a norm", 1),
    "BEiT, relative": (
        lambda: _hugging_face("BeitModel", use_relative_position_bias=True, use_mean_pooling=False),
        "class token", 1,
    ),
    "BEiT, shared": (
        lambda: _hugging_face("BeitForImageClassification", use_shared_relative_position_bias=True),
        "mean of the patch tokens, then a norm", 1,
    ),
    "SigLIP": (lambda: _hugging_face("SiglipVisionModel"), "attention pooling of the tokens", 0),
    "SigLIP with texts": (lambda: _with_text("SiglipModel", "Siglip"), "attention pooling of the tokens", 0),
    "CLIP": (lambda: _hugging_face("CLIPVisionModel"), "class token", 1),
    "CLIP with texts": (lambda: _with_text("CLIPModel", "CLIP"), "class token", 1),
}  # fmt: skip
# Name: how it is made, and a word of why it is refused.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm without pooling": (lambda: _timm(global_pool=""), "VisionTransformer pools nothing"),
    "timm, norms after": (lambda: _block("ResPostBlock"), "blocks of the kind ResPostBlock"),
    "timm, parallel": (lambda: _block("ParallelScalingBlock"), "blocks of the kind ParallelScalingBlock"),
    "timm, grey": (lambda: _timm(in_chans=1), "VisionTransformer fails on one image"),
    "timm EVA, norms after": (
        lambda: import_timm().models.eva.Eva(**TIMM, use_post_norm=True), "blocks of the kind EvaBlockPostNorm",
    ),
    "timm, mixed rope": (lambda: _timm("vit_small_patch16_rope_mixed_224"), "rope_mixed"),
    "timm relative": (lambda: _timm("vit_relpos_small_patch16_224"), "VisionTransformerRelPos is not"),
    "timm CaiT": (
        lambda: import_timm().create_model("cait_xxs24_224", img_size=32, embed_dim=8, depth=1, num_heads=2),
        "Cait is not",
    ),
    "timm XCiT": (
        lambda: import_timm().create_model("xcit_nano_12_p16_224", embed_dim=8, depth=1, num_heads=2),
        "Xcit is not",
    ),
    "timm ResNet": (
        lambda: import_timm().create_model("resnet18", channels=(8, 8, 8, 8)), "ResNet",
    ),
    "timm Swin": (
        lambda: import_timm().models.SwinTransformer(56, 4, embed_dim=8, depths=(1,), num_heads=(1,)),
        "SwinTransformer is not",
    ),
    "ViTMAE": (lambda: _hugging_face("ViTMAEModel"), "ViTMAEModel is not"),
    "Data2Vec": (lambda: _hugging_face("Data2VecVisionModel"), "Data2VecVisionModel is not"),
    "BEiT without a pooler": (
        lambda: _hugging_face("BeitModel", {"add_pooling_layer": False}), "made without its pooler",
    ),
    "SigLIP without a pooler": (
        lambda: _hugging_face("SiglipVisionModel", vision_use_head=False), "has no pooling head",
    ),
    "SigLIP, classifier": (lambda: _with_text("SiglipForImageClassification", "Siglip"), "is not a vision"),
    "Swin": (lambda: _transformers().SwinModel(_swin()), "SwinModel is not"),
    "ResNet": (
        lambda: _hugging_face("ResNetModel", embedding_size=8, hidden_sizes=[8], depths=[1]), "ResNetModel",
    ),
    "CLIP, texts": (
        lambda: _with_text("CLIPModel", "CLIP").text_model, "CLIPText",
    ),
    "a linear layer": (lambda: nn.Linear(3, 3), "Linear"),
}  # fmt: skip


@functools.cache
def family(name: str) -> nn.Module:
    """The network of that name, in evaluation mode; tests share it.

    Its weights are noisy: made afresh, layers with a scale, and class tokens, do next to nothing.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[name][0]().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
